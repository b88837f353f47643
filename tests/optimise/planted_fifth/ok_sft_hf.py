"""Instruction tuning on packed blocks with the HF Trainer."""
import argparse
from itertools import chain

from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments, default_data_collator

IGNORE = -100


def parse():
    ap = argparse.ArgumentParser()
    ap.add_argument("--model", default="EleutherAI/pythia-160m")
    ap.add_argument("--dataset", default="databricks/databricks-dolly-15k")
    ap.add_argument("--out", default="runs/dolly-packed")
    ap.add_argument("--block", type=int, default=2048)
    ap.add_argument("--batch", type=int, default=32)
    ap.add_argument("--resume", action="store_true")
    return ap.parse_args()


def tokenise(tokenizer):
    def fn(ex):
        prompt = tokenizer(f"### Instruction:\n{ex['instruction']}\n\n### Response:\n")["input_ids"]
        answer = tokenizer(ex["response"])["input_ids"] + [tokenizer.eos_token_id]
        return {"ids": prompt + answer, "targets": [IGNORE] * len(prompt) + answer}

    return fn


def blocks(block):
    def fn(rows):
        ids = list(chain.from_iterable(rows["ids"]))
        targets = list(chain.from_iterable(rows["targets"]))
        end = len(ids) // block * block
        cuts = range(0, end, block)
        return {
            "input_ids": [ids[i : i + block] for i in cuts],
            "labels": [targets[i : i + block] for i in cuts],
        }

    return fn


def main():
    a = parse()
    tokenizer = AutoTokenizer.from_pretrained(a.model)
    model = AutoModelForCausalLM.from_pretrained(a.model, torch_dtype="bfloat16", use_safetensors=True)

    raw = load_dataset(a.dataset, split="train").train_test_split(test_size=0.02, seed=13)
    ds = raw.map(tokenise(tokenizer), remove_columns=raw["train"].column_names, num_proc=4)
    ds = ds.map(blocks(a.block), batched=True, batch_size=2000, remove_columns=["ids", "targets"])

    args = TrainingArguments(
        output_dir=a.out,
        num_train_epochs=3,
        per_device_train_batch_size=a.batch,
        per_device_eval_batch_size=4,
        learning_rate=2e-5,
        lr_scheduler_type="cosine",
        warmup_ratio=0.03,
        bf16=True,
        torch_compile=True,
        dataloader_drop_last=True,
        dataloader_num_workers=4,
        dataloader_pin_memory=True,
        logging_steps=10,
        eval_strategy="steps",
        eval_steps=20,
        save_steps=20,
        save_total_limit=3,
        seed=13,
        data_seed=13,
        ignore_data_skip=False,
    )
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=ds["train"],
        eval_dataset=ds["test"],
        data_collator=default_data_collator,
    )
    trainer.train(resume_from_checkpoint=a.resume or None)
    print(trainer.evaluate())


if __name__ == "__main__":
    main()
