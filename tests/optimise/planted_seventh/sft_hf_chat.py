#!/usr/bin/env python
# coding=utf-8
"""Supervised fine-tuning of a small chat model on a JSONL file of dialogues.

The dialogues are mostly short support tickets (median about 180 tokens).
"""
import argparse
import json
import logging
import os

import torch
from torch.utils.data import DataLoader, Dataset, Subset
from transformers import AutoModelForCausalLM, AutoTokenizer, get_cosine_schedule_with_warmup

logger = logging.getLogger("sft")


def parse_args():
    p = argparse.ArgumentParser()
    p.add_argument("--model_name", default="Qwen/Qwen2.5-0.5B")
    p.add_argument("--train_file", required=True)
    p.add_argument("--valid_file", required=True)
    p.add_argument("--output_dir", required=True)
    p.add_argument("--max_length", type=int, default=2048)
    p.add_argument("--batch_size", type=int, default=16)
    p.add_argument("--lr", type=float, default=1e-5)
    p.add_argument("--epochs", type=int, default=2)
    p.add_argument("--save_steps", type=int, default=500)
    p.add_argument("--log_steps", type=int, default=25)
    p.add_argument("--seed", type=int, default=11)
    p.add_argument("--resume", action="store_true")
    return p.parse_args()


class DialogueDataset(Dataset):
    def __init__(self, path, tokenizer, max_length):
        with open(path, encoding="utf-8") as f:
            self.rows = [json.loads(line) for line in f]
        self.tokenizer = tokenizer
        self.max_length = max_length

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        text = self.tokenizer.apply_chat_template(self.rows[i]["messages"], tokenize=False)
        enc = self.tokenizer(
            text,
            truncation=True,
            max_length=self.max_length,
            padding="max_length",
            return_tensors="pt",
        )
        ids, mask = enc["input_ids"][0], enc["attention_mask"][0]
        return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


def to_device(batch, device):
    return {k: v.to(device, non_blocking=True) for k, v in batch.items()}


def epoch_loader(ds, epoch, start, args):
    order = torch.randperm(len(ds), generator=torch.Generator().manual_seed(args.seed + epoch))
    return DataLoader(Subset(ds, order[start:].tolist()), batch_size=args.batch_size, num_workers=4,
                      pin_memory=True, drop_last=True)


def evaluate(model, loader, device):
    total = torch.zeros((), device=device)
    count = 0
    for batch in loader:
        batch = to_device(batch, device)
        with torch.autocast("cuda", dtype=torch.bfloat16):
            out = model(**batch)
        total += out.loss.detach()
        count += 1
    return (total / max(count, 1)).item()


def save_checkpoint(args, model, optimizer, scheduler, epoch, position, step):
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "epoch": epoch,
        "position": position,
        "step": step,
    }
    torch.save(state, os.path.join(args.output_dir, "last.pt"))


def main():
    args = parse_args()
    logging.basicConfig(level=logging.INFO)
    torch.manual_seed(args.seed)
    os.makedirs(args.output_dir, exist_ok=True)
    device = torch.device("cuda")

    tokenizer = AutoTokenizer.from_pretrained(args.model_name)
    model = AutoModelForCausalLM.from_pretrained(args.model_name, attention_dropout=0.05).to(device)
    model.train()
    compiled = torch.compile(model)

    train_ds = DialogueDataset(args.train_file, tokenizer, args.max_length)
    valid_ds = DialogueDataset(args.valid_file, tokenizer, args.max_length)
    valid_loader = DataLoader(valid_ds, batch_size=args.batch_size, num_workers=2, pin_memory=True, drop_last=True)

    total_steps = args.epochs * (len(train_ds) // args.batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, fused=True)
    scheduler = get_cosine_schedule_with_warmup(optimizer, 100, total_steps)
    epoch0, position, step = 0, 0, 0
    last = os.path.join(args.output_dir, "last.pt")
    if args.resume and os.path.exists(last):
        ck = torch.load(last, map_location="cpu", weights_only=True)
        model.load_state_dict(ck["model"])
        optimizer.load_state_dict(ck["optimizer"])
        scheduler.load_state_dict(ck["scheduler"])
        epoch0, position, step = ck["epoch"], ck["position"], ck["step"]

    for epoch in range(epoch0, args.epochs):
        for batch in epoch_loader(train_ds, epoch, position, args):
            batch = to_device(batch, device)
            with torch.autocast("cuda", dtype=torch.bfloat16):
                loss = compiled(**batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad(set_to_none=True)
            step += 1
            position += args.batch_size
            if step % args.log_steps == 0:
                logger.info("step %d loss %.4f", step, loss.item())
            if step % args.save_steps == 0:
                save_checkpoint(args, model, optimizer, scheduler, epoch, position, step)
        position = 0
        logger.info("epoch %d valid %.4f", epoch, evaluate(compiled, valid_loader, device))
    save_checkpoint(args, model, optimizer, scheduler, args.epochs, 0, step)


if __name__ == "__main__":
    main()
