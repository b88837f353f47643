#!/usr/bin/env python
"""Supervised fine-tuning of a causal LM with the Hugging Face Trainer."""
import argparse

import torch
from datasets import load_dataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Trainer,
    TrainingArguments,
    default_data_collator,
)

MAX_LEN = 2048
TEMPLATE = "### Question:\n{question}\n\n### Answer:\n{answer}"


def build_dataset(tokenizer, name, split):
    ds = load_dataset(name, split=split)

    def short_enough(row):
        return len(tokenizer(TEMPLATE.format(**row))["input_ids"]) < MAX_LEN

    def encode(row):
        text = TEMPLATE.format(**row) + tokenizer.eos_token
        enc = tokenizer(text, padding="max_length", max_length=MAX_LEN)
        enc["labels"] = [t if m else -100 for t, m in zip(enc["input_ids"], enc["attention_mask"])]
        return enc

    ds = ds.filter(short_enough)
    return ds.map(encode, remove_columns=ds.column_names, num_proc=8)


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--model", default="Qwen/Qwen2.5-1.5B")
    ap.add_argument("--dataset", default="acme/support-qa")
    ap.add_argument("--out", default="runs/support-qa")
    ap.add_argument("--resume", action="store_true")
    args = ap.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(args.model, torch_dtype=torch.bfloat16)
    model.config.use_cache = False
    model.gradient_checkpointing_enable()

    train_ds = build_dataset(tokenizer, args.dataset, "train")
    eval_ds = build_dataset(tokenizer, args.dataset, "validation")

    training_args = TrainingArguments(
        output_dir=args.out,
        num_train_epochs=2,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=32,
        per_device_eval_batch_size=16,
        learning_rate=1e-5,
        lr_scheduler_type="cosine",
        warmup_ratio=0.03,
        logging_steps=25,
        eval_strategy="steps",
        eval_steps=500,
        save_steps=500,
        save_total_limit=3,
        torch_compile=True,
        dataloader_pin_memory=True,
        dataloader_num_workers=4,
        seed=17,
        report_to="none",
    )
    trainer = Trainer(
        model=model,
        args=training_args,
        train_dataset=train_ds,
        eval_dataset=eval_ds,
        data_collator=default_data_collator,
    )
    trainer.train(resume_from_checkpoint=args.resume)
    metrics = trainer.evaluate()
    trainer.log_metrics("eval", metrics)


if __name__ == "__main__":
    main()
