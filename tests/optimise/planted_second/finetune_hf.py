import sys
from dataclasses import dataclass, field

from datasets import load_dataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
    default_data_collator,
)


@dataclass
class ScriptArguments:
    base: str = field(default="HuggingFaceTB/SmolLM2-360M")
    train_file: str = field(default="data/articles.jsonl")
    out: str = field(default="runs/articles")
    block: int = field(default=2048)


def tokenise(tok, block):
    def apply(batch):
        enc = tok(
            [t + tok.eos_token for t in batch["text"]],
            truncation=True,
            max_length=block,
            padding="max_length",
        )
        enc["labels"] = [
            [t if m else -100 for t, m in zip(ids, mask)]
            for ids, mask in zip(enc["input_ids"], enc["attention_mask"])
        ]
        return enc

    return apply


def main(argv):
    (args,) = HfArgumentParser(ScriptArguments).parse_args_into_dataclasses(argv)
    tok = AutoTokenizer.from_pretrained(args.base)
    if tok.pad_token is None:
        tok.pad_token = tok.eos_token
    model = AutoModelForCausalLM.from_pretrained(args.base, attn_implementation="sdpa")

    raw = load_dataset("json", data_files=args.train_file, split="train")
    rows = raw.map(tokenise(tok, args.block), batched=True, remove_columns=raw.column_names)

    training = TrainingArguments(
        output_dir=args.out,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=64,
        learning_rate=2e-5,
        num_train_epochs=1,
        bf16=True,
        torch_compile=True,
        logging_steps=50,
        save_strategy="no",
        seed=17,
        data_seed=17,
    )
    trainer = Trainer(model=model, args=training, train_dataset=rows, data_collator=default_data_collator)
    trainer.train()


if __name__ == "__main__":
    main(sys.argv[1:])
