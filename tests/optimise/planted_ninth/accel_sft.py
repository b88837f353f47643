#!/usr/bin/env python
"""Supervised fine-tuning of a chat model with accelerate."""
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration, set_seed
from datasets import load_dataset
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    default_data_collator,
    get_cosine_schedule_with_warmup,
)


@dataclass
class Config:
    base: str = "HuggingFaceTB/SmolLM2-360M"
    data: str = "HuggingFaceH4/ultrachat_200k"
    out: str = "runs/sft"
    ctx: int = 2048
    micro_batch: int = 32
    accum: int = 4
    epochs: int = 2
    lr: float = 2e-5
    warmup: int = 200
    seed: int = 3


def build_dataset(cfg, tok):
    raw = load_dataset(cfg.data, split="train_sft")

    def encode(row):
        text = tok.apply_chat_template(row["messages"], tokenize=False)
        enc = tok(text, truncation=True, max_length=cfg.ctx, padding="max_length")
        enc["labels"] = [
            t if m else -100 for t, m in zip(enc["input_ids"], enc["attention_mask"])
        ]
        return enc

    return raw.map(encode, remove_columns=raw.column_names, num_proc=16)


def main(cfg: Config):
    set_seed(cfg.seed, device_specific=True)
    acc = Accelerator(
        mixed_precision="bf16",
        gradient_accumulation_steps=cfg.accum,
        dynamo_backend="inductor",
        project_config=ProjectConfiguration(
            project_dir=cfg.out, automatic_checkpoint_naming=True, total_limit=3
        ),
    )
    tok = AutoTokenizer.from_pretrained(cfg.base)
    tok.pad_token = tok.pad_token or tok.eos_token
    with acc.main_process_first():
        ds = build_dataset(cfg, tok)

    loader = DataLoader(
        ds,
        batch_size=cfg.micro_batch,
        shuffle=True,
        generator=torch.Generator().manual_seed(cfg.seed),
        collate_fn=default_data_collator,
        num_workers=4,
        pin_memory=True,
        drop_last=True,
    )
    model = AutoModelForCausalLM.from_pretrained(cfg.base)
    opt = torch.optim.AdamW(model.parameters(), lr=cfg.lr, weight_decay=0.01)
    total = cfg.epochs * len(loader) // cfg.accum
    sched = get_cosine_schedule_with_warmup(opt, cfg.warmup, total)
    model, opt, loader, sched = acc.prepare(model, opt, loader, sched)

    step = 0
    for epoch in range(cfg.epochs):
        model.train()
        for batch in loader:
            with acc.accumulate(model):
                loss = model(**batch).loss
                acc.backward(loss / acc.gradient_accumulation_steps)
                if acc.sync_gradients:
                    acc.clip_grad_norm_(model.parameters(), 1.0)
                    step += 1
                opt.step()
                sched.step()
                opt.zero_grad()
            if acc.sync_gradients and step % 50 == 0:
                acc.print(f"epoch {epoch} step {step} loss {loss.item():.4f}")
        acc.save_state()

    acc.wait_for_everyone()
    final = acc.unwrap_model(model)
    final.save_pretrained(Path(cfg.out) / "final", is_main_process=acc.is_main_process)
    if acc.is_main_process:
        tok.save_pretrained(Path(cfg.out) / "final")


if __name__ == "__main__":
    main(Config())
