"""Draw several answers to one prompt and keep the one with the highest score."""
import argparse

import torch
import torch.nn.functional as F


def warp(logits, temperature, top_p):
    logits = logits / temperature
    ordered, where = logits.sort(dim=-1, descending=True)
    mass = ordered.softmax(-1).cumsum(-1)
    ordered[mass - ordered.softmax(-1) > top_p] = -torch.inf
    return torch.empty_like(logits).scatter_(-1, where, ordered)


class BestOfN:
    def __init__(self, lm, tokenizer, judge, n=8, temperature=0.8, top_p=0.95):
        self.lm = lm
        self.tokenizer = tokenizer
        self.judge = judge
        self.n = n
        self.temperature = temperature
        self.top_p = top_p

    def _sample(self, logits):
        probs = F.softmax(warp(logits, self.temperature, self.top_p), dim=-1)
        return torch.multinomial(probs, num_samples=1)

    @torch.inference_mode()
    def answers(self, prompt, max_new=128):
        ids = torch.tensor([self.tokenizer.encode(prompt)], device=self.lm.device)
        logits, cache = self.lm.prefill(ids)
        # the prompt is read once; its cache is widened to n rows
        cache = cache.widen(self.n)
        start = self._sample(logits[:, -1])
        cur = start.expand(self.n, 1)
        out = [cur]
        for _ in range(max_new - 1):
            logits, cache = self.lm.decode(cur, cache)
            cur = self._sample(logits[:, -1])
            out.append(cur)
        rows = torch.cat(out, dim=1).tolist()
        return [self.tokenizer.decode(row) for row in rows]

    def best(self, prompt):
        texts = self.answers(prompt)
        return max(texts, key=lambda text: self.judge(prompt, text))


def parse():
    cli = argparse.ArgumentParser()
    cli.add_argument("--n", type=int, default=8)
    cli.add_argument("--temperature", type=float, default=0.8)
    return cli.parse_args()
