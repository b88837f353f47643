"""Checkpoints that survive a crash and know where the data was."""
import os
import tempfile
from pathlib import Path

import torch


def save(state, path):
    path = Path(path)
    fd, tmp = tempfile.mkstemp(dir=path.parent, suffix=".part")
    with os.fdopen(fd, "wb") as f:
        torch.save(state, f)
        f.flush()
        os.fsync(f.fileno())
    os.replace(tmp, path)


class Order:
    """Shuffled order of an epoch, made from seed and epoch; position is saved."""

    def __init__(self, n, seed):
        self.n, self.seed = n, seed
        self.epoch = 0
        self.at = 0

    def __iter__(self):
        while True:
            g = torch.Generator().manual_seed(self.seed + self.epoch)
            order = torch.randperm(self.n, generator=g).tolist()
            while self.at < self.n:
                self.at += 1
                yield order[self.at - 1]
            self.epoch += 1
            self.at = 0

    def state_dict(self):
        return {"epoch": self.epoch, "at": self.at}

    def load_state_dict(self, state):
        self.epoch, self.at = state["epoch"], state["at"]


def resume(path, model, opt, order):
    state = torch.load(path, map_location="cpu", weights_only=True)
    model.load_state_dict(state["model"])
    opt.load_state_dict(state["opt"])
    order.load_state_dict(state["order"])
    return state["step"]


def snapshot(path, model, opt, order, step):
    save({"model": model.state_dict(), "opt": opt.state_dict(), "order": order.state_dict(), "step": step}, path)
