"""Single-GPU training loop with sparse logging."""
import logging
from typing import Iterator

import torch
import torch.nn.functional as F

logger = logging.getLogger(__name__)


class Loop:
    def __init__(self, net, opt, device: torch.device, log_every: int = 100):
        self.net = torch.compile(net.to(device))
        self.opt = opt
        self.device = device
        self.log_every = log_every
        self.window = torch.zeros((), device=device)

    def step(self, ids: torch.Tensor) -> torch.Tensor:
        with torch.autocast(self.device.type, dtype=torch.bfloat16):
            logits = self.net(ids[:, :-1])
            loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.opt.step()
        self.opt.zero_grad(set_to_none=True)
        return loss.detach()

    def run(self, rows: Iterator[torch.Tensor], steps: int) -> None:
        self.net.train()
        for number in range(1, steps + 1):
            ids = next(rows).to(self.device)
            self.window += self.step(ids)
            if number % self.log_every == 0:
                mean = self.window.item() / self.log_every
                self.window.zero_()
                logger.info("step %d: loss %.4f", number, mean)
