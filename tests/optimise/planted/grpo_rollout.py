"""Rollouts for group-relative policy gradients: a group of completions per question."""
from dataclasses import dataclass, field

import torch


@dataclass
class Rollout:
    prompt: list
    tokens: list = field(default_factory=list)
    done: bool = False


def choose(row_logits, temp):
    """One token id for one row of logits."""
    if temp <= 0:
        return int(row_logits.argmax())
    return int(torch.multinomial((row_logits / temp).softmax(-1), 1))


def prefill_and_choose(engine, prompt, temp):
    state, row = engine.read(prompt)
    return state, choose(row, temp)


@torch.no_grad()
def collect(engine, prompt, group, temp=1.0, limit=256, stop=2):
    state, tok = prefill_and_choose(engine, prompt, temp)
    state = engine.fork(state, group)
    rollouts = [Rollout(prompt) for _ in range(group)]
    heads = [tok] * group
    for _ in range(limit):
        for r, h in zip(rollouts, heads):
            if not r.done:
                r.tokens.append(h)
                r.done = h == stop
        if all(r.done for r in rollouts):
            break
        logits = engine.advance(state, heads)
        heads = [choose(row, temp) for row in logits]
    return rollouts


def advantages(rewards):
    mean = sum(rewards) / len(rewards)
    var = sum((r - mean) ** 2 for r in rewards) / len(rewards)
    return [(r - mean) / (var ** 0.5 + 1e-4) for r in rewards]
