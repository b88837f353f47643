"""Plain pretraining loop with live logs."""
import math
import time

import torch


class Clock:
    """Seconds of each step, and their mean."""

    def __init__(self):
        self.seconds = []
        self.since = time.perf_counter()

    def lap(self):
        now = time.perf_counter()
        self.seconds.append(now - self.since)
        self.since = now
        return self.seconds[-1]


def schedule(step, peak, warm, total):
    if step < warm:
        return peak * (step + 1) / warm
    return 0.5 * peak * (1 + math.cos(math.pi * (step - warm) / (total - warm)))


def pretrain(model, loader, steps, peak=6e-4, warm=200):
    """No logging window: each step is shown."""
    opt = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.95))
    clock = Clock()
    data = iter(loader)
    model = model.cuda().train()
    for step in range(steps):
        x, y = next(data)
        for group in opt.param_groups:
            group["lr"] = schedule(step, peak, warm, steps)
        logits = model(x.cuda())
        loss = torch.nn.functional.cross_entropy(logits.float().view(-1, logits.size(-1)), y.cuda().view(-1))
        opt.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        print(f"step {step} loss {loss} dt {clock.lap():.3f}")
    return clock.seconds
