"""Accumulation under DDP: one reduction and one step per update."""
import argparse
import contextlib

import torch
from torch.nn.parallel import DistributedDataParallel


def wrap(net, local):
    return DistributedDataParallel(torch.compile(net), device_ids=[local])


def update(model, opt, stream, accum, clip=1.0):
    """One optimizer step over `accum` micro-batches."""
    total = torch.zeros((), device="cuda")
    for i in range(accum):
        last = i == accum - 1
        with contextlib.nullcontext() if last else model.no_sync():
            x, y = stream.next()
            loss = model(x, y) / accum
            loss.backward()
        total += loss.detach()
    torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    opt.step()
    opt.zero_grad(set_to_none=True)
    return total


def fit(model, opt, stream, args):
    model.train()
    for step in range(args.steps):
        loss = update(model, opt, stream, args.accum)
        if step % args.log_every == 0:
            print(f"{step} {loss.item():.4f}")


def options():
    cli = argparse.ArgumentParser()
    cli.add_argument("--steps", type=int, default=1000)
    cli.add_argument("--accum", type=int, default=8)
    cli.add_argument("--log-every", type=int, default=100)
    return cli.parse_args()
