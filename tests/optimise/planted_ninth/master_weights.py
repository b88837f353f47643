"""bf16 compute with separate fp32 master parameters, without autocast."""
from __future__ import annotations

from typing import Dict

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call


class RowFeeder:
    """Reads [rows, ctx] token blocks from disk and puts them on the GPU."""

    def __init__(self, path: str, rows: int, ctx: int, device: torch.device):
        self.source = np.load(path, mmap_mode="r")
        if self.source.shape[1] != ctx:
            raise ValueError(f"rows have {self.source.shape[1]} tokens, want {ctx}")
        self.rows, self.device = rows, device
        self.cursor = 0
        self.host = torch.empty(rows, ctx, dtype=torch.int32, pin_memory=True)

    def state_dict(self) -> Dict[str, int]:
        return {"cursor": self.cursor}

    def load_state_dict(self, state: Dict[str, int]) -> None:
        self.cursor = state["cursor"]

    def next(self) -> Tensor:
        if self.cursor + self.rows > len(self.source):
            self.cursor = 0
        block = self.source[self.cursor:self.cursor + self.rows]
        self.cursor += self.rows
        np.copyto(self.host.numpy(), block)
        return self.host.to(self.device, non_blocking=True)


class MasterTrainer:
    def __init__(self, net: nn.Module, feeder: RowFeeder, lr: float, clip: float = 1.0):
        self.net = net
        self.feeder = feeder
        self.clip = clip
        self.master = {
            n: p.detach().float().clone().requires_grad_() for n, p in net.named_parameters()
        }
        self.buffers = dict(net.named_buffers())
        self.opt = torch.optim.AdamW(self.master.values(), lr=lr, fused=True)
        self.forward = torch.compile(self._forward)
        self.step_no = 0

    def _forward(self, weights: Dict[str, Tensor], ids: Tensor) -> Tensor:
        logits = functional_call(self.net, (weights, self.buffers), (ids[:, :-1],))
        return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())

    def micro(self, ids: Tensor, scale: float) -> Tensor:
        low = {n: p.to(torch.bfloat16) for n, p in self.master.items()}
        loss = self.forward(low, ids.long())
        (loss * scale).backward()
        return loss.detach()

    def update(self) -> Tensor:
        self.net.train()
        block = self.feeder.next()
        total = torch.zeros((), device=block.device)
        for ids in torch.split(block, 1):
            total += self.micro(ids, 1.0 / len(block))
        torch.nn.utils.clip_grad_norm_(self.master.values(), self.clip)
        self.opt.step()
        self.opt.zero_grad(set_to_none=True)
        self.step_no += 1
        return total / len(block)

    def fit(self, updates: int, log_every: int = 100) -> None:
        acc = None
        for _ in range(updates):
            loss = self.update()
            acc = loss if acc is None else acc + loss
            if self.step_no % log_every == 0:
                print(f"{self.step_no:>7d}  {acc.item() / log_every:.4f}")
                acc = None
        self.sync_to_net()

    @torch.no_grad()
    def sync_to_net(self) -> None:
        for name, p in self.net.named_parameters():
            p.copy_(self.master[name])
