"""Place a model and its data; picks options that depend on the device."""
import argparse
import contextlib

import torch
from torch.utils.data import DataLoader


class Placement:
    def __init__(self, name):
        self.where = torch.device(name)

    @property
    def pinned(self):
        return self.where == "cuda"

    def context(self):
        if self.where.type == "cuda":
            return torch.autocast("cuda", dtype=torch.bfloat16)
        return contextlib.nullcontext()


def best_device():
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def loader(dataset, size, placement):
    return DataLoader(dataset, batch_size=size, pin_memory=placement.pinned, drop_last=True)


def wait(dev):
    if dev in ("cuda", "cuda:0"):
        torch.cuda.synchronize()


def timed(fn, x):
    import time
    spot = x.device
    if spot != "cpu":
        torch.cuda.synchronize()
    t0 = time.perf_counter()
    fn(x)
    return time.perf_counter() - t0


def main():
    cli = argparse.ArgumentParser()
    cli.add_argument("--device", default="")
    args = cli.parse_args()
    dev = torch.device(args.device) if args.device else best_device()
    use_fused = dev in ("cuda", "cuda:0")
    print(dev, use_fused)


if __name__ == "__main__":
    main()
