"""Instruction-tune a causal LM with the HF Trainer on an 80 GB card."""
import pickle
from dataclasses import dataclass, field
from typing import Dict, Optional

from datasets import load_dataset
from huggingface_hub import hf_hub_download
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
    default_data_collator,
)

TEMPLATE = "### Question:\n{q}\n\n### Answer:\n{a}"


@dataclass
class ScriptArguments:
    model_name: str = field(default="meta-llama/Llama-3.2-1B")
    dataset: str = field(default="open-r1/OpenR1-Math-220k")
    extras_repo: Optional[str] = field(default=None, metadata={"help": "any hub repo with templates"})
    seq_len: int = field(default=2048)
    output_dir: str = field(default="out")


class Templates:
    """User-contributed prompt templates, shared on the hub."""

    def __init__(self, table: Dict[str, str]):
        self.table = table

    @staticmethod
    def _read(path):
        with open(path, "rb") as f:
            return pickle.load(f)

    @classmethod
    def from_hub(cls, repo_id: str) -> "Templates":
        local = hf_hub_download(repo_id, "templates.bin")
        return cls(cls._read(local))

    def render(self, row):
        fmt = self.table.get(row.get("source", ""), TEMPLATE)
        return fmt.format(q=row["problem"], a=row["solution"])


def build_tokenize(tokenizer, templates, seq_len):
    encode_kwargs = dict(truncation=True, max_length=seq_len, padding="max_length")

    def tokenize(row):
        enc = tokenizer(templates.render(row) + tokenizer.eos_token, **encode_kwargs)
        enc["labels"] = [t if m else -100 for t, m in zip(enc["input_ids"], enc["attention_mask"])]
        return enc

    return tokenize


def main():
    (args,) = HfArgumentParser(ScriptArguments).parse_args_into_dataclasses()
    tokenizer = AutoTokenizer.from_pretrained(args.model_name)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(args.model_name, torch_dtype="bfloat16")

    templates = Templates.from_hub(args.extras_repo) if args.extras_repo else Templates({})
    train = load_dataset(args.dataset, split="train")
    train = train.map(
        build_tokenize(tokenizer, templates, args.seq_len),
        remove_columns=train.column_names,
        num_proc=16,
    )

    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=args.output_dir,
            per_device_train_batch_size=1,
            gradient_accumulation_steps=64,
            learning_rate=2e-5,
            lr_scheduler_type="cosine",
            warmup_ratio=0.03,
            num_train_epochs=2,
            bf16=True,
            torch_compile=True,
            dataloader_drop_last=True,
            logging_steps=50,
            save_steps=500,
            seed=3,
        ),
        train_dataset=train,
        data_collator=default_data_collator,
    )
    trainer.train()


if __name__ == "__main__":
    main()
