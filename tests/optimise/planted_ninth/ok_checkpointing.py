"""Atomic, complete training checkpoints."""
import os
import re
from pathlib import Path

import numpy as np
import torch

NAME = re.compile(r"step-(\d{8})\.pt$")


class Checkpointer:
    def __init__(self, folder, keep=3):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.keep = keep

    def _all(self):
        return sorted(p for p in self.folder.iterdir() if NAME.search(p.name))

    def save(self, step, model, opt, sched, stream):
        state = {
            "step": step,
            "model": model.state_dict(),
            "opt": opt.state_dict(),
            "sched": sched.state_dict(),
            "stream": stream.state_dict(),
            "cpu_rng": torch.get_rng_state(),
            "gpu_rng": torch.cuda.get_rng_state_all(),
        }
        final = self.folder / f"step-{step:08d}.pt"
        tmp = final.with_suffix(".tmp")
        with tmp.open("wb") as fh:
            torch.save(state, fh)
            fh.flush()
            os.fsync(fh.fileno())
        os.replace(tmp, final)
        for old in self._all()[:-self.keep]:
            old.unlink()

    def load(self, model, opt, sched, stream):
        found = self._all()
        if not found:
            return 0
        state = torch.load(found[-1], map_location="cpu", weights_only=True)
        model.load_state_dict(state["model"])
        opt.load_state_dict(state["opt"])
        sched.load_state_dict(state["sched"])
        stream.load_state_dict(state["stream"])
        torch.set_rng_state(state["cpu_rng"])
        torch.cuda.set_rng_state_all(state["gpu_rng"])
        return state["step"]


class RowStream:
    """Seeded permutation of packed rows, one per epoch, with a saved place."""

    def __init__(self, path, batch, seed):
        self.rows = np.load(path, mmap_mode="r", allow_pickle=False)
        self.batch, self.seed = batch, seed
        self.epoch, self.at = 0, 0
        self._shuffle()

    def _shuffle(self):
        self.order = np.random.default_rng([self.seed, self.epoch]).permutation(len(self.rows))

    def next(self):
        if self.at + self.batch > len(self.order):
            self.epoch, self.at = self.epoch + 1, 0
            self._shuffle()
        pick = np.sort(self.order[self.at:self.at + self.batch])
        self.at += self.batch
        return torch.from_numpy(self.rows[pick].astype(np.int64))

    def state_dict(self):
        return {"epoch": self.epoch, "at": self.at, "seed": self.seed}

    def load_state_dict(self, state):
        self.seed, self.epoch, self.at = state["seed"], state["epoch"], state["at"]
        self._shuffle()
