"""Perplexity and multiple-choice evaluation."""
import contextlib
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass
class Choice:
    context: list
    options: list
    answer: int


@contextlib.contextmanager
def evaluating(model):
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield model
    finally:
        model.train(was_training)


def perplexity(model, loader, device):
    total = torch.zeros((), device=device, dtype=torch.float64)
    count = torch.zeros((), device=device, dtype=torch.int64)
    with evaluating(model):
        for x, y in loader:
            x, y = x.to(device), y.to(device)
            logits = model(x)
            total += F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="sum")
            count += y.numel()
    return math.exp(total.item() / count.item())


def option_score(model, context, option, device, limit):
    ids = context + option
    if len(ids) > limit:
        raise ValueError(f"{len(ids)} tokens do not fit in {limit}")
    x = torch.tensor([ids], device=device)
    logits = model(x[:, :-1])[0, len(context) - 1 :]
    logp = torch.log_softmax(logits, dim=-1)
    return logp.gather(1, x[0, len(context) :, None]).sum() / len(option)


def multiple_choice(model, items, device, limit):
    right = torch.zeros((), device=device, dtype=torch.int64)
    with evaluating(model):
        for item in items:
            scores = torch.stack([option_score(model, item.context, o, device, limit) for o in item.options])
            right += scores.argmax() == item.answer
    return right.item() / len(items)


def bootstrap_interval(hits, rounds=2000, seed=0):
    """95% interval of a mean of 0/1 outcomes."""
    gen = torch.Generator().manual_seed(seed)
    hits = torch.as_tensor(hits, dtype=torch.float32)
    idx = torch.randint(len(hits), (rounds, len(hits)), generator=gen)
    means = hits[idx].mean(dim=1)
    low, high = torch.quantile(means, torch.tensor([0.025, 0.975])).tolist()
    return low, high


def evaluate(model, loader, items, device, limit):
    report = {"perplexity": perplexity(model, loader, device)}
    report["accuracy"] = multiple_choice(model, items, device, limit)
    return report
