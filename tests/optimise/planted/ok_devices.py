"""Device names and device objects, each compared with its own kind."""
import argparse

import torch


def choose(name):
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    # still a string here
    if name == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
    return torch.device(name)


class Place:
    def __init__(self, name):
        self.name = name
        self.device = choose(name)

    @property
    def fused(self):
        return self.device.type == "cuda"

    @property
    def quiet(self):
        return self.name == "cpu"

    def same(self, tensor):
        return tensor.device == self.device

    def label(self):
        return str(self.device) == "cuda:0"


def ready(place):
    if place.device.type in ("cuda", "xpu"):
        torch.cuda.synchronize(place.device)


def is_first(tensor):
    return tensor.device == torch.device("cuda", 0)


def main():
    cli = argparse.ArgumentParser()
    cli.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    args = cli.parse_args()
    place = Place(args.device)
    print(place.label(), args.device == "cpu", place.fused)


if __name__ == "__main__":
    main()
