"""Batch sizes come from the command line; small ones belong to evaluation."""
import argparse

import torch

EVAL_BATCH = 4


def options():
    cli = argparse.ArgumentParser()
    cli.add_argument("--device-batch", type=int, default=64)
    cli.add_argument("--tokens-per-step", type=int, default=524288)
    cli.add_argument("--seq", type=int, default=1024)
    cli.add_argument("--steps", type=int, default=1000)
    return cli.parse_args()


def accumulation(args, world):
    per = args.device_batch * args.seq * world
    assert args.tokens_per_step % per == 0
    return args.tokens_per_step // per


def train(model, opt, stream, args, world=1):
    """Same shape every step, compiled once."""
    n = accumulation(args, world)
    fast = torch.compile(model, dynamic=False)
    fast.train()
    for step in range(args.steps):
        total = torch.zeros((), device="cuda")
        for _ in range(n):
            x, y = stream.take(args.device_batch, args.seq)
            loss = fast(x, y) / n
            loss.backward()
            total += loss.detach()
        opt.step()
        opt.zero_grad(set_to_none=True)
        if step % 50 == 49:
            print(step, total.item())


@torch.inference_mode()
def held_out(model, stream, seq, rounds=20):
    model.eval()
    losses = [model(*stream.take(EVAL_BATCH, seq)) for _ in range(rounds)]
    model.train()
    return torch.stack(losses).mean().item()
