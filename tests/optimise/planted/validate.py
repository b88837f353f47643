"""Validation of language models."""
import math

import torch
import torch.nn.functional as F


class Reader:
    def __init__(self, tokens, width):
        self.tokens = tokens
        self.width = width

    def __iter__(self):
        for at in range(0, len(self.tokens) - self.width - 1, self.width):
            piece = self.tokens[at:at + self.width + 1]
            yield piece[None, :-1], piece[None, 1:]


def perplexity(lm, reader):
    """exp of the mean loss over the held-out split."""
    total = torch.zeros((), device="cuda")
    count = 0
    for x, y in reader:
        logits = lm(x.cuda())
        total += F.cross_entropy(logits.flatten(0, 1), y.cuda().flatten(), reduction="sum")
        count += y.numel()
    return math.exp(total.item() / count)


def accuracy(classifier, batches):
    hits = torch.zeros((), device="cuda")
    n = 0
    with torch.no_grad():
        for x, y in batches:
            hits += (classifier(x.cuda()).argmax(-1) == y.cuda()).sum()
            n += len(y)
    return hits.item() / n


@torch.no_grad()
def held_out(model, batches):
    model.eval()
    losses = [model(x, y) for x, y in batches]
    return torch.stack(losses).mean()


def fit(model, train, held, opt, steps, every=500):
    model.train()
    for step, (x, y) in zip(range(steps), train):
        loss = model(x, y)
        loss.backward()
        opt.step()
        opt.zero_grad(set_to_none=True)
        if step % every == 0:
            print(step, held_out(model, held).item())
