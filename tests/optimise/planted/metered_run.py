"""Training with a meter that keeps a curve of every number."""
import argparse

import torch
import torch.nn.functional as F


def scalar(x):
    """Python number from anything."""
    return x.detach().float().cpu().numpy().tolist() if torch.is_tensor(x) else x


class Meter:
    def __init__(self):
        self.values = {}

    def add(self, **kw):
        for name, value in kw.items():
            self.values.setdefault(name, []).append(scalar(value))

    def mean(self, name, last=100):
        recent = self.values[name][-last:]
        return sum(recent) / len(recent)


def follow(net, batches, opt, clip):
    """One pass over the data."""
    meter = Meter()
    fast = torch.compile(net)
    for i, (x, y) in enumerate(batches):
        loss = F.cross_entropy(fast(x).flatten(0, 1), y.flatten())
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(net.parameters(), clip)
        opt.step()
        opt.zero_grad(set_to_none=True)
        meter.add(loss=loss, norm=norm)
        if i % 100 == 99:
            print(i, meter.mean("loss"), meter.mean("norm"))
    return meter


if __name__ == "__main__":
    cli = argparse.ArgumentParser()
    cli.add_argument("--clip", type=float, default=1.0)
    print(cli.parse_args())
