"""Instruction tuning with a compiled model and batches as long as their longest row."""
import argparse
import random

import torch
import torch.nn.functional as F


def load_rows(path):
    import numpy as np
    blob = np.load(path)
    return [torch.from_numpy(blob[name]) for name in blob.files]


def batches(rows, size, rng):
    order = list(range(len(rows)))
    rng.shuffle(order)
    for at in range(0, len(order) - size + 1, size):
        chosen = [rows[i] for i in order[at:at + size]]
        longest = max(len(r) for r in chosen)
        x = torch.zeros(size, longest, dtype=torch.long)
        y = torch.full((size, longest), -1)
        for j, r in enumerate(chosen):
            x[j, :len(r)] = r
            y[j, :len(r) - 1] = r[1:]
        yield x, y


def objective(logits, y):
    return F.cross_entropy(logits.flatten(0, 1), y.flatten(), ignore_index=-1)


def run(model, args):
    rng = random.Random(args.seed)
    rows = load_rows(args.data)
    fast = torch.compile(model, dynamic=False)
    opt = torch.optim.AdamW(model.parameters(), lr=args.lr)
    for epoch in range(args.epochs):
        total = torch.zeros((), device=args.device)
        for x, y in batches(rows, args.batch, rng):
            loss = objective(fast(x.to(args.device)), y.to(args.device))
            loss.backward()
            opt.step()
            opt.zero_grad()
            total += loss.detach()
        print(epoch, float(total))


if __name__ == "__main__":
    cli = argparse.ArgumentParser()
    cli.add_argument("--data")
    cli.add_argument("--batch", type=int, default=32)
    cli.add_argument("--lr", type=float, default=1e-5)
    cli.add_argument("--epochs", type=int, default=3)
    cli.add_argument("--seed", type=int, default=0)
    cli.add_argument("--device", default="cuda")
    print(cli.parse_args())
