"""Rollouts and verifiable rewards for GRPO on small coding tasks."""
import re
from dataclasses import dataclass, field

import torch

FENCE = re.compile(r"```(?:python)?\n(.*?)```", re.DOTALL)


@dataclass
class Task:
    prompt: str
    entry_point: str
    cases: list = field(default_factory=list)


@dataclass
class Rollout:
    tokens: torch.Tensor
    rewards: torch.Tensor
    advantages: torch.Tensor


@torch.no_grad()
def sample_group(policy, prompt_ids, group_size, max_new_tokens, temperature=1.0):
    """Sample group_size answers to one prompt; returns (group_size, max_new_tokens)."""
    was_training = policy.training
    policy.eval()
    total = prompt_ids.numel() + max_new_tokens
    if total > policy.config.max_positions:
        raise ValueError(f"{total} tokens do not fit in {policy.config.max_positions}")

    # prefill a single row, then fan the cache out to the whole group
    prefill = policy.make_cache(1, total)
    logits = policy(prompt_ids.view(1, -1), cache=prefill)[:, -1]
    cache = prefill.repeat_rows(group_size)

    probs = torch.softmax(logits / temperature, dim=-1)
    first = torch.multinomial(probs, num_samples=1)
    token = first.repeat(group_size, 1)
    tokens = [token]
    for _ in range(max_new_tokens - 1):
        logits = policy(token, cache=cache)[:, -1]
        probs = torch.softmax(logits / temperature, dim=-1)
        token = torch.multinomial(probs, num_samples=1)
        tokens.append(token)
    policy.train(was_training)
    return torch.cat(tokens, dim=1)


def extract_code(answer):
    found = FENCE.findall(answer)
    return found[-1] if found else ""


def score(answer, task):
    code = extract_code(answer)
    if not code:
        return 0.0
    scope = {}
    try:
        exec(code, scope)
        fn = scope[task.entry_point]
        passed = sum(fn(*args) == want for args, want in task.cases)
    except Exception:
        return 0.1
    return 0.2 + 0.8 * passed / max(len(task.cases), 1)


def group_advantages(rewards, eps=1e-4):
    return (rewards - rewards.mean()) / (rewards.std(unbiased=False) + eps)


def collect(policy, tokenizer, tasks, group_size=8, max_new_tokens=256):
    device = next(policy.parameters()).device
    rollouts = []
    for task in tasks:
        ids = torch.tensor(tokenizer.encode(task.prompt), device=device)
        tokens = sample_group(policy, ids, group_size, max_new_tokens)
        answers = [tokenizer.decode(row) for row in tokens.tolist()]
        rewards = torch.tensor([score(a, task) for a in answers], device=device)
        rollouts.append(Rollout(tokens, rewards, group_advantages(rewards)))
    return rollouts
