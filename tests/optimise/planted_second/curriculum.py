"""Sequence-length curriculum: short windows first, the full context later on."""
import random

import torch
import torch.nn.functional as F


class LengthSchedule:
    def __init__(self, low, high, total, seed=11):
        self.low, self.high, self.total = low, high, total
        self.rng = random.Random(seed)

    def __call__(self, step):
        ceiling = self.low + (self.high - self.low) * min(1.0, 2 * step / self.total)
        return self.rng.randint(self.low, int(ceiling))


def train_step(net, opt, x, y, clip=1.0):
    with torch.autocast("cuda", dtype=torch.bfloat16):
        logits = net(x)
        loss = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), y.reshape(-1))
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(net.parameters(), clip)
    opt.step()
    opt.zero_grad(set_to_none=True)
    return loss.detach(), norm


def run(net, opt, rows, steps=8000, batch=32, low=64, high=2048, writer=None):
    """rows: int64 cuda tensor (N, high + 1), already in training order."""
    schedule = LengthSchedule(low, high, steps)
    net = torch.compile(net.cuda().train(), dynamic=False)
    for step in range(steps):
        begin = step * batch % (rows.size(0) - batch)
        length = schedule(step)
        chunk = rows[begin : begin + batch, : length + 1]
        loss, norm = train_step(net, opt, chunk[:, :-1], chunk[:, 1:])
        metrics = {"loss": float(loss), "grad_norm": float(norm), "length": length}
        if writer is not None:
            writer.add_scalars("train", metrics, step)
    return net
