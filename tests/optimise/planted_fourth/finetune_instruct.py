"""Instruction tuning job for the internal assistant."""
import json
import logging
import os
from dataclasses import dataclass

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

log = logging.getLogger("instruct")


@dataclass
class Settings:
    model: str = "acme/base-3b"
    data: str = "/data/instruct/train.jsonl"
    ckpt: str = "/runs/instruct/latest.pt"
    micro_batch: int = 16
    accumulate: int = 4
    steps: int = 3000
    save_every: int = 250
    lr: float = 1e-5
    use_compile: bool = False
    pad_mode: str = "longest"


class Collator:
    def __init__(self, tokenizer, **pad_args):
        self.tokenizer = tokenizer
        self.pad_args = pad_args

    def __call__(self, examples):
        batch = self.tokenizer.pad([{"input_ids": e} for e in examples], return_tensors="pt", **self.pad_args)
        batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        return batch


class Job:
    def __init__(self, cfg):
        self.cfg = cfg
        self.device = torch.device("cuda")
        self.tokenizer = AutoTokenizer.from_pretrained(cfg.model)
        self.model = AutoModelForCausalLM.from_pretrained(cfg.model, torch_dtype=torch.bfloat16).to(self.device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=cfg.lr)
        self.collate = Collator(self.tokenizer, padding=cfg.pad_mode)
        self.step = 0
        with open(cfg.data, encoding="utf-8") as f:
            self.examples = [self.tokenizer(json.loads(line)["text"])["input_ids"] for line in f]

    def resume(self):
        if os.path.exists(self.cfg.ckpt):
            state = torch.load(self.cfg.ckpt, map_location=self.device, weights_only=True)
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step = state["step"]

    def batches(self):
        rng = np.random.default_rng()
        while True:
            order = rng.permutation(len(self.examples))
            for a in range(0, len(order) - self.cfg.micro_batch + 1, self.cfg.micro_batch):
                yield self.collate([self.examples[i] for i in order[a : a + self.cfg.micro_batch]])

    def save(self):
        if os.path.exists(self.cfg.ckpt):
            os.remove(self.cfg.ckpt)
        with open(self.cfg.ckpt, "wb") as f:
            torch.save({"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(),
                        "step": self.step}, f)

    def run(self):
        self.resume()
        model = torch.compile(self.model) if self.cfg.use_compile else self.model
        model.train()
        batches = self.batches()
        running = torch.zeros((), device=self.device)
        while self.step < self.cfg.steps:
            for _ in range(self.cfg.accumulate):
                loss = model(**next(batches).to(self.device)).loss / self.cfg.accumulate
                loss.backward()
                running += loss.detach()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.step += 1
            if self.step % 20 == 0:
                log.info("step %d loss %.4f", self.step, running.item() / 20)
                running.zero_()
            if self.step % self.cfg.save_every == 0:
                self.save()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    Job(Settings()).run()
