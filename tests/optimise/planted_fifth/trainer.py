"""Generic trainer used by the pretraining and the finetuning entry points."""
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn as nn


@dataclass
class TrainerConfig:
    run_dir: str = "runs/default"
    total_steps: int = 100_000
    eval_every: int = 1000
    save_every: int = 1000
    lr: float = 3e-4
    min_lr: float = 3e-5
    warmup: int = 1000
    weight_decay: float = 0.1
    clip: float = 1.0
    device: str = "cuda"
    compile: bool = True

    @property
    def ckpt_path(self):
        return Path(self.run_dir) / "latest.pt"


class MetricLog:
    def __init__(self, path):
        self.file = open(path, "a", buffering=1)
        self.t0 = time.time()

    def write(self, step, **metrics):
        row = {k: float(v) for k, v in metrics.items()}
        self.file.write(json.dumps({"step": step, "t": time.time() - self.t0, **row}) + "\n")


class Trainer:
    def __init__(self, model: nn.Module, train_batches, val_batches, cfg: TrainerConfig):
        self.cfg = cfg
        self.model = model.to(cfg.device)
        self.train_batches = iter(train_batches)
        self.val_batches = val_batches
        decay = [p for p in self.model.parameters() if p.ndim >= 2]
        rest = [p for p in self.model.parameters() if p.ndim < 2]
        self.opt = torch.optim.AdamW(
            [{"params": decay, "weight_decay": cfg.weight_decay}, {"params": rest, "weight_decay": 0.0}],
            lr=cfg.lr, betas=(0.9, 0.95), fused=True,
        )
        Path(cfg.run_dir).mkdir(parents=True, exist_ok=True)
        self.log = MetricLog(Path(cfg.run_dir) / "metrics.jsonl")
        self.step = 0
        self._prepare()

    def _prepare(self):
        self.compiled = None
        if self.cfg.compile:
            self.compiled = torch.compile(self.model)

    def _forward(self, x, y):
        with torch.autocast("cuda", dtype=torch.bfloat16):
            return self.model(x, y)

    def _lr(self):
        c = self.cfg
        if self.step < c.warmup:
            return c.lr * (self.step + 1) / c.warmup
        frac = (self.step - c.warmup) / max(1, c.total_steps - c.warmup)
        return c.lr + (c.min_lr - c.lr) * frac

    def train_step(self):
        lr = self._lr()
        for g in self.opt.param_groups:
            g["lr"] = lr
        x, y = (t.to(self.cfg.device) for t in next(self.train_batches))
        loss = self._forward(x, y)
        loss.backward()
        gnorm = nn.utils.clip_grad_norm_(self.model.parameters(), self.cfg.clip)
        self.opt.step()
        self.opt.zero_grad(set_to_none=True)
        return loss.detach(), gnorm, lr

    @torch.no_grad()
    def evaluate(self):
        self.model.eval()
        losses = [self._forward(x.to(self.cfg.device), y.to(self.cfg.device)) for x, y in self.val_batches]
        self.model.train()
        return torch.stack(losses).mean().item()

    def save(self):
        state = {
            "model": self.model.state_dict(),
            "opt": self.opt.state_dict(),
            "step": self.step,
            "cfg": asdict(self.cfg),
        }
        torch.save(state, self.cfg.ckpt_path)

    def fit(self):
        self.model.train()
        while self.step < self.cfg.total_steps:
            loss, gnorm, lr = self.train_step()
            self.log.write(self.step, loss=loss, grad_norm=gnorm, lr=lr)
            self.step += 1
            if self.step % self.cfg.eval_every == 0:
                print(f"step {self.step}: val loss {self.evaluate():.4f}")
            if self.step % self.cfg.save_every == 0:
                self.save()
