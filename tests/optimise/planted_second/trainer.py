from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Iterable, Iterator

import torch
from torch import nn

log = logging.getLogger(__name__)


@dataclass
class TrainerOptions:
    max_steps: int = 10_000
    eval_every: int = 1_000
    eval_batches: int = 50
    clip: float = 1.0


class Trainer:
    """Drives one model over a stream of (inputs, targets) rows of fixed length."""

    def __init__(self, model: nn.Module, opt: torch.optim.Optimizer, opts: TrainerOptions, device: str = "cuda") -> None:
        self.device = torch.device(device)
        self.raw = model.to(self.device)
        self.model = torch.compile(self.raw)
        self.opt = opt
        self.opts = opts
        self.amp_dtype = torch.float32
        if self.device == "cuda":
            self.amp_dtype = torch.bfloat16
        self.history: list[float] = []

    def _loss(self, batch) -> torch.Tensor:
        inputs, targets = batch
        with torch.autocast(self.device.type, dtype=self.amp_dtype, enabled=self.amp_dtype is torch.bfloat16):
            logits = self.model(inputs)
        return nn.functional.cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1))

    def fit(self, train: Iterator, val: Iterable) -> None:
        self.model.train()
        average = 0.0
        for step, batch in enumerate(train, start=1):
            loss = self._loss(batch)
            self.opt.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(self.raw.parameters(), self.opts.clip)
            self.opt.step()
            average = 0.98 * average + 0.02 * loss.item()
            if step % 50 == 0:
                log.info("step %d  loss %.4f", step, average)
            if step % self.opts.eval_every == 0:
                self.history.append(self.validate(val))
                log.info("step %d  val %.4f", step, self.history[-1])
            if step >= self.opts.max_steps:
                break

    @torch.no_grad()
    def validate(self, val: Iterable) -> float:
        self.model.eval()
        total = torch.zeros((), device=self.device)
        seen = 0
        for batch in val:
            total += self._loss(batch)
            seen += 1
            if seen == self.opts.eval_batches:
                break
        return (total / max(seen, 1)).item()
