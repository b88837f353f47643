"""Continue pre-training a 160M code model with the Hugging Face Trainer.

Runs on a DGX node: `torchrun --nproc_per_node 8 hf_trainer_code_lm.py` (8 x H100).
"""
import os
import shutil
from dataclasses import dataclass, field

import torch
from datasets import load_dataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    HfArgumentParser,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
)


@dataclass
class ScriptArgs:
    model: str = field(default="EleutherAI/pythia-160m")
    data_files: str = field(default="data/functions/*.jsonl", metadata={"help": "one short function per line"})
    block: int = field(default=1024)
    out: str = field(default="out/code-160m")


@dataclass
class CodeCollator:
    """Turns a list of token lists into model inputs."""

    tokenizer: PreTrainedTokenizerBase
    block: int

    def __call__(self, features):
        pad = self.tokenizer.pad_token_id
        rows, labels = [], []
        for f in features:
            ids = f["input_ids"][: self.block]
            gap = self.block - len(ids)
            rows.append(ids + [pad] * gap)
            labels.append(ids + [-100] * gap)
        rows = torch.tensor(rows)
        return {"input_ids": rows, "attention_mask": (rows != pad).long(), "labels": torch.tensor(labels)}


def tokenized(args: ScriptArgs, tok):
    ds = load_dataset("json", data_files=args.data_files, split="train")

    def encode(batch):
        ids = tok(batch["code"])["input_ids"]
        return {"input_ids": [row + [tok.eos_token_id] for row in ids]}

    return ds.map(encode, batched=True, remove_columns=ds.column_names, num_proc=16)


def training_args(tmp_dir: str) -> TrainingArguments:
    return TrainingArguments(
        output_dir=tmp_dir,
        num_train_epochs=1,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=64,
        learning_rate=3e-4,
        lr_scheduler_type="cosine",
        warmup_steps=200,
        weight_decay=0.1,
        max_grad_norm=1.0,
        bf16=True,
        tf32=True,
        torch_compile=True,
        optim="adamw_torch_fused",
        logging_steps=20,
        save_strategy="no",
        dataloader_num_workers=8,
        dataloader_pin_memory=True,
        dataloader_drop_last=True,
        remove_unused_columns=False,
        seed=42,
        data_seed=42,
        report_to=[],
    )


def publish(trainer: Trainer, tok, out: str) -> None:
    """Write into a sibling folder and rename it, so `out` is either absent or complete."""
    staging = out + ".staging"
    if trainer.is_world_process_zero():
        shutil.rmtree(staging, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()
    trainer.save_model(staging)
    if trainer.is_world_process_zero():
        tok.save_pretrained(staging)
        os.replace(staging, out)


def main():
    (args,) = HfArgumentParser(ScriptArgs).parse_args_into_dataclasses()
    if os.path.exists(args.out):
        raise SystemExit(f"{args.out} exists already")
    tok = AutoTokenizer.from_pretrained(args.model)
    tok.add_special_tokens({"pad_token": "<|pad|>"})
    model = AutoModelForCausalLM.from_pretrained(args.model)
    model.resize_token_embeddings(len(tok), pad_to_multiple_of=64)

    trainer = Trainer(
        model=model,
        args=training_args(args.out + ".work"),
        train_dataset=tokenized(args, tok),
        data_collator=CodeCollator(tok, args.block),
    )
    trainer.train()
    publish(trainer, tok, args.out)


if __name__ == "__main__":
    main()
