"""Checkpoints: written beside the last good one, flushed, then renamed over it."""
import os
import random
from pathlib import Path

import torch


def fsync_dir(path):
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_atomic(obj, path):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(part, "wb") as f:
            torch.save(obj, f)
            f.flush()
            os.fsync(f.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    fsync_dir(path.parent)


class CheckpointStore:
    def __init__(self, root, keep=3):
        self.root = Path(root)
        self.keep = keep

    def _all(self):
        return sorted(self.root.glob("step_*.pt"))

    def save(self, step, model, optimizer, loader_state):
        py = random.getstate()
        state = {
            "step": step,
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "loader": loader_state,
            "rng": {
                "cpu": torch.get_rng_state(),
                "cuda": torch.cuda.get_rng_state_all(),
                "python": [py[0], list(py[1]), py[2]],
            },
        }
        write_atomic(state, self.root / f"step_{step:09d}.pt")
        for old in self._all()[:-self.keep]:
            old.unlink()

    def latest(self, device="cpu"):
        for path in reversed(self._all()):
            try:
                return torch.load(path, map_location=device, weights_only=True)
            except (RuntimeError, EOFError) as err:
                print(f"{path} cannot be read ({err}), trying the one before it")
        return None

    def restore(self, model, optimizer, loader):
        state = self.latest()
        if state is None:
            return 0
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        loader.load_state_dict(state["loader"])
        rng = state["rng"]
        torch.set_rng_state(rng["cpu"])
        torch.cuda.set_rng_state_all(rng["cuda"])
        version, words, gauss = rng["python"]
        random.setstate((version, tuple(words), gauss))
        return state["step"]
