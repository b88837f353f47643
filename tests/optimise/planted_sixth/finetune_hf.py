import argparse

from datasets import load_dataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Trainer,
    TrainingArguments,
    default_data_collator,
)

PROMPT = "### Instruction:\n{instruction}\n\n### Response:\n{output}"


def parse_args():
    p = argparse.ArgumentParser()
    p.add_argument("--model", default="HuggingFaceTB/SmolLM-135M")
    p.add_argument("--data", default="tatsu-lab/alpaca")
    p.add_argument("--out", default="sft-out")
    p.add_argument("--epochs", type=int, default=3)
    p.add_argument("--resume", default=None)
    return p.parse_args()


def main():
    args = parse_args()
    tok = AutoTokenizer.from_pretrained(args.model)
    if tok.pad_token is None:
        tok.pad_token = tok.eos_token
    model = AutoModelForCausalLM.from_pretrained(args.model, attn_implementation="sdpa")

    def tokenize(ex):
        text = PROMPT.format(**{k: ex[k] for k in ("instruction", "output")}) + tok.eos_token
        enc = tok(text, truncation=True, padding="max_length", max_length=2048)
        enc["labels"] = [
            t if m else -100 for t, m in zip(enc["input_ids"], enc["attention_mask"])
        ]
        return enc

    ds = load_dataset(args.data, split="train")
    ds = ds.map(tokenize, remove_columns=ds.column_names, num_proc=8)
    split = ds.train_test_split(test_size=0.02, seed=42)

    training_args = TrainingArguments(
        output_dir=args.out,
        num_train_epochs=args.epochs,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=64,
        per_device_eval_batch_size=16,
        learning_rate=2e-5,
        lr_scheduler_type="cosine",
        warmup_ratio=0.03,
        bf16=True,
        torch_compile=True,
        eval_strategy="steps",
        eval_steps=500,
        save_steps=500,
        save_total_limit=3,
        logging_steps=25,
        seed=42,
        data_seed=42,
        report_to="none",
    )
    trainer = Trainer(
        model=model,
        args=training_args,
        train_dataset=split["train"],
        eval_dataset=split["test"],
        data_collator=default_data_collator,
    )
    trainer.train(resume_from_checkpoint=args.resume)
    trainer.save_model(f"{args.out}/final")
    tok.save_pretrained(f"{args.out}/final")


if __name__ == "__main__":
    main()
