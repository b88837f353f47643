"""Rewards for program-writing rollouts: run what was written, compare, shape by length."""
import os
import re
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from subprocess import PIPE, Popen, TimeoutExpired

import torch

FENCE = re.compile(r"```(?:python)?\n(.*?)```", re.DOTALL)


def last_block(completion):
    found = FENCE.findall(completion)
    return found[-1] if found else None


def launch(source):
    fd, path = tempfile.mkstemp(suffix=".py")
    with os.fdopen(fd, "w") as f:
        f.write(source)
    return path, Popen([sys.executable, path], stdout=PIPE, stderr=PIPE, text=True)


def stdout_of(source, limit=5.0):
    path, proc = launch(source)
    try:
        out, _ = proc.communicate(timeout=limit)
        return out.strip() if proc.returncode == 0 else None
    except TimeoutExpired:
        proc.kill()
        proc.communicate()
        return None
    finally:
        os.unlink(path)


def correctness(completion, wanted):
    source = last_block(completion)
    if source is None:
        return 0.0
    got = stdout_of(source)
    if got is None:
        return 0.05
    return 1.0 if got == wanted.strip() else 0.1


class RewardModel:
    def __init__(self, tokenizer, soft_limit=384, slope=1e-3, workers=16):
        self.tokenizer = tokenizer
        self.soft_limit = soft_limit
        self.slope = slope
        self.pool = ThreadPoolExecutor(workers)

    def length_cost(self, mask):
        """mask: [rows, time] bool on the policy's device."""
        costs = []
        for row in mask:
            over = row.sum().item() - self.soft_limit
            costs.append(self.slope * max(over, 0))
        return torch.tensor(costs, device=mask.device)

    def __call__(self, tokens, mask, wanted):
        texts = self.tokenizer.batch_decode(tokens.cpu(), skip_special_tokens=True)
        scores = list(self.pool.map(correctness, texts, wanted))
        return torch.tensor(scores, device=mask.device) - self.length_cost(mask)


def pass_rate(scores, group):
    return (scores.view(-1, group) >= 1.0).float().mean(dim=1)
