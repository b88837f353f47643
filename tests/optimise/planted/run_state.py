"""Save and restore a run that may be preempted at any time."""
import argparse
import random
from pathlib import Path

import torch


class Run:
    def __init__(self, model, opt, files, folder):
        self.model, self.opt = model, opt
        self.files = list(files)
        self.folder = Path(folder)
        self.step = 0

    @property
    def latest(self):
        return self.folder / "latest.pt"

    def dump(self):
        state = {"model": self.model.state_dict(), "opt": self.opt.state_dict(), "step": self.step}
        torch.save(state, self.latest)

    def restore(self):
        if self.latest.exists():
            state = torch.load(self.latest, map_location="cpu", weights_only=True)
            self.model.load_state_dict(state["model"])
            self.opt.load_state_dict(state["opt"])
            self.step = state["step"]

    def shards(self):
        while True:
            random.shuffle(self.files)
            for f in self.files:
                yield from torch.load(f, weights_only=True)

    def go(self, total, every=1000):
        self.restore()
        for batch in self.shards():
            loss = self.model(batch.cuda())
            loss.backward()
            self.opt.step()
            self.opt.zero_grad(set_to_none=True)
            self.step += 1
            if self.step % every == 0:
                self.dump()
            if self.step >= total:
                break


def options():
    cli = argparse.ArgumentParser()
    cli.add_argument("--folder", default="out")
    cli.add_argument("--resume", action="store_true")
    return cli.parse_args()
