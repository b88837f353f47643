"""Entry point: python train_chars.py --file book.txt"""
import argparse
import random

import torch

from common import number, pick_device, read_any, store
from nn_model import CharModel
from steps import learn, measure

ACCUM = 16


class Slices:
    def __init__(self, ids, width, size, dev):
        self.ids, self.width, self.size, self.dev = ids, width, size, dev

    def next(self):
        starts = [random.randrange(len(self.ids) - self.width - 1) for _ in range(self.size)]
        x = torch.stack([self.ids[s:s + self.width] for s in starts])
        y = torch.stack([self.ids[s + 1:s + self.width + 1] for s in starts])
        if self.dev == "cuda":
            x, y = x.pin_memory(), y.pin_memory()
        return x.to(self.dev), y.to(self.dev)


def main():
    cli = argparse.ArgumentParser()
    cli.add_argument("--file", default="book.txt")
    cli.add_argument("--steps", type=int, default=5000)
    cli.add_argument("--continue-from", default="")
    args = cli.parse_args()
    dev = pick_device()
    with open(args.file) as f:
        text = f.read()
    table = {c: i for i, c in enumerate(sorted(set(text)))}
    ids = torch.tensor([table[c] for c in text])
    model = CharModel(len(table)).to(dev)
    fused = dev == "cuda"
    opt = torch.optim.AdamW(model.parameters(), lr=3e-4, fused=fused)
    first = 0
    if args.continue_from:
        old = read_any(args.continue_from)
        model.load_state_dict(old["model"])
        opt.load_state_dict(old["opt"])
        first = old["step"]
    slices = Slices(ids, 256, 4, dev)
    history = []
    for step in range(first, args.steps):
        for _ in range(ACCUM):
            loss = learn(model, opt, slices.next(), 1 / ACCUM)
            history.append(number(loss))
        if step % 250 == 0:
            print(step, measure(model, [slices.next() for _ in range(8)]).item())
            store("chars.ckpt", {"model": model.state_dict(), "opt": opt.state_dict(), "step": step})


if __name__ == "__main__":
    main()
