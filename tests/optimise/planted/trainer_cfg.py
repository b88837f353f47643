"""Trainer with a config object."""
import contextlib
from dataclasses import dataclass

import torch


@dataclass
class Recipe:
    lr: float = 3e-4
    device_batch: int = 1
    updates: int = 2000
    micro_steps: int = 128
    seq: int = 1024
    clip: float = 1.0


class Trainer:
    def __init__(self, net, stream, recipe=None):
        self.recipe = recipe or Recipe()
        self.net = torch.compile(net.cuda())
        self.stream = stream
        self.opt = torch.optim.AdamW(net.parameters(), lr=self.recipe.lr, fused=True)

    def _autocast(self):
        return torch.autocast("cuda", dtype=torch.bfloat16) if torch.cuda.is_bf16_supported() \
            else contextlib.nullcontext()

    def update(self):
        r = self.recipe
        for _ in range(r.micro_steps):
            x, y = self.stream.take(r.device_batch, r.seq)
            with self._autocast():
                loss = self.net(x, y)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), r.clip)
        self.opt.step()
        self.opt.zero_grad(set_to_none=True)
        return loss.detach()

    def fit(self):
        seen = []
        for n in range(self.recipe.updates):
            loss = self.update()
            seen.append(loss.item())
            if n % 50 == 0:
                print(n, sum(seen[-50:]) / len(seen[-50:]))
        return seen
