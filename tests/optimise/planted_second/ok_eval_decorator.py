import functools
import math

import torch
import torch.nn.functional as F


def evaluation(fn):
    """Run fn(net, ...) in eval mode and put the former mode back afterwards."""

    @functools.wraps(fn)
    def wrapper(net, *args, **kwargs):
        before = net.training
        net.eval()
        try:
            with torch.inference_mode():
                return fn(net, *args, **kwargs)
        finally:
            net.train(before)

    return wrapper


def amp(device: torch.device):
    on = device.type == "cuda"
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=on)


@evaluation
def perplexity(net, batches):
    device = next(net.parameters()).device
    nll = torch.zeros((), device=device)
    count = 0
    for ids in batches:
        ids = ids.to(device)
        with amp(device):
            logits = net(ids[:, :-1])
        nll += F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")
        count += ids[:, 1:].numel()
    return math.exp(nll.item() / count)


@evaluation
def top1(net, batches):
    device = next(net.parameters()).device
    right = torch.zeros((), device=device)
    count = 0
    for ids in batches:
        ids = ids.to(device)
        with amp(device):
            guess = net(ids[:, :-1]).argmax(-1)
        right += (guess == ids[:, 1:]).sum()
        count += guess.numel()
    return (right / count).item()
