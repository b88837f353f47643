"""Speculative sampling, batch of one.

``draft`` and ``target`` are causal LMs with the call signature
``model(tokens, caches, start) -> logits`` that write into FixedKV caches.
"""
from typing import List

import torch
from torch import Tensor


class FixedKV:
    def __init__(self, heads: int, max_len: int, dim: int, device, dtype=torch.bfloat16):
        self.max_len = max_len
        self.k = torch.zeros(1, heads, max_len, dim, device=device, dtype=dtype)
        self.v = torch.zeros_like(self.k)

    def write(self, k: Tensor, v: Tensor, start: int) -> None:
        stop = min(start + k.size(2), self.max_len)
        n = max(stop - start, 0)
        self.k[:, :, start:stop] = k[:, :, :n]
        self.v[:, :, start:stop] = v[:, :, :n]


def to_probs(logits: Tensor, temperature: float) -> Tensor:
    return torch.softmax(logits / temperature, dim=-1)


class SpeculativeSampler:
    def __init__(self, draft, target, gamma: int = 4, temperature: float = 1.0, max_len: int = 4096):
        self.draft, self.target = draft.eval(), target.eval()
        self.gamma = gamma
        self.temperature = temperature
        self.max_len = max_len
        self.draft_step = torch.compile(self.draft.__call__, dynamic=True)
        self.target_step = torch.compile(self.target.__call__, dynamic=True)

    def _caches(self, model, device) -> List[FixedKV]:
        c = model.config
        return [FixedKV(c.kv_heads, self.max_len, c.head_dim, device) for _ in range(c.layers)]

    def _prefill(self, prompt: Tensor, tc, dc) -> Tensor:
        self.draft(prompt, dc, 0)
        scores = self.target(prompt, tc, 0).to(torch.float32)
        probs = to_probs(scores[:, -1], self.temperature)
        return torch.multinomial(probs, 1)

    def _propose(self, last: Tensor, dc, start: int):
        toks, dists = [last], []
        for i in range(self.gamma):
            q = to_probs(self.draft_step(toks[-1], dc, start + i)[:, -1].float(), self.temperature)
            dists.append(q)
            toks.append(torch.multinomial(q, 1))
        self.draft_step(toks[-1], dc, start + self.gamma)
        return torch.cat(toks, 1), torch.stack(dists, 1)

    def _verify(self, toks: Tensor, q: Tensor, tc, start: int):
        p = to_probs(self.target_step(toks, tc, start).float(), self.temperature)
        proposed = toks[:, 1:]
        p_tok = p[:, :-1].gather(-1, proposed.unsqueeze(-1)).squeeze(-1)
        q_tok = q.gather(-1, proposed.unsqueeze(-1)).squeeze(-1)
        u = torch.rand_like(p_tok)
        n = 0
        while n < self.gamma:
            if u[0, n].item() * q_tok[0, n].item() > p_tok[0, n].item():
                break
            n += 1
        if n == self.gamma:
            tail = p[:, -1]
        else:
            tail = (p[:, n] - q[:, n]).clamp_min(0)
            tail = tail / tail.sum(-1, keepdim=True)
        return n, torch.multinomial(tail, 1)

    @torch.inference_mode()
    def generate(self, prompt: Tensor, max_new_tokens: int) -> Tensor:
        tc = self._caches(self.target, prompt.device)
        dc = self._caches(self.draft, prompt.device)
        last = self._prefill(prompt, tc, dc)
        out, made, start = [last], 1, prompt.size(1)
        while made < max_new_tokens:
            toks, q = self._propose(last, dc, start)
            n, last = self._verify(toks, q, tc, start)
            out.extend([toks[:, 1:1 + n], last])
            made += n + 1
            start += n + 1
        return torch.cat(out, dim=1)[:, :max_new_tokens]
