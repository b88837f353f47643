"""Distributed trainer shared by the language-model projects."""
import contextlib
import logging
import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel as DDP

log = logging.getLogger(__name__)


def pick_device():
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device("cpu")


def on_gpu(device):
    return device == "cuda"


class Trainer:
    def __init__(self, model, optimizer_fn, loader, cfg):
        self.cfg = cfg
        self.rank = dist.get_rank()
        self.device = pick_device()
        self.fast = on_gpu(self.device)
        model = torch.compile(model.to(self.device))
        self.optimizer = optimizer_fn(model.parameters())
        self.model = DDP(model, device_ids=[self.device.index] if self.device.index is not None else None)
        self.loader = loader  # torchdata StatefulDataLoader with pin_memory and drop_last
        self.step = 0
        self.running = torch.zeros((), device=self.device)

    def _autocast(self):
        if self.fast:
            return torch.autocast("cuda", dtype=torch.bfloat16)
        return contextlib.nullcontext()

    def _batches(self):
        while True:
            yield from self.loader

    def _micro_step(self, batch):
        x = batch["x"].to(self.device, non_blocking=True)
        y = batch["y"].to(self.device, non_blocking=True)
        with self._autocast():
            loss = self.model(x, y)
        loss = loss / self.cfg.accumulate
        loss.backward()
        self.running += loss.detach()

    def _optimizer_step(self):
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.cfg.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def fit(self):
        self.model.train()
        batches = self._batches()
        while self.step < self.cfg.max_steps:
            for _ in range(self.cfg.accumulate):
                self._micro_step(next(batches))
            self._optimizer_step()
            self.step += 1
            if self.step % self.cfg.log_every == 0:
                self._report()
            if self.step % self.cfg.save_every == 0:
                self.save()

    def _report(self):
        mean = self.running / self.cfg.log_every
        dist.all_reduce(mean, op=dist.ReduceOp.AVG)
        self.running.zero_()
        if self.rank == 0:
            log.info("step %d loss %.4f", self.step, mean.item())

    def state(self):
        return {
            "model": self.model.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "loader": self.loader.state_dict(),
            "step": self.step,
        }

    def save(self):
        path = Path(self.cfg.run_dir) / f"rank{self.rank}_last.pt"
        self._write(self.state(), path)

    @staticmethod
    def _write(obj, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(obj, path)

    def resume(self, path):
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.model.module.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.loader.load_state_dict(state["loader"])
        self.step = state["step"]
