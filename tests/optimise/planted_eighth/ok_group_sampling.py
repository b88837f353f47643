"""Sampling several answers per request, with a static cache and per-request generators."""
from dataclasses import dataclass, field
from typing import List

import torch


@dataclass
class Request:
    prompt: torch.Tensor          # (L,)
    seed: int                     # chosen by the client, or drawn by the front end
    max_new: int = 128
    generator: torch.Generator = field(init=False, repr=False)

    def attach(self, device):
        # one generator per request, seeded once when it arrives
        self.generator = torch.Generator(device=device)
        self.generator.manual_seed(self.seed)


def on_gpu(t: torch.Tensor) -> bool:
    return t.device.type == "cuda"


class GroupSampler:
    def __init__(self, net, n: int, capacity: int, temperature: float = 1.0):
        self.net = net.eval()
        self.n = n
        self.capacity = capacity
        self.temperature = temperature
        self.device = next(net.parameters()).device
        self.one_step = torch.compile(net.decode_one)

    def _draw(self, logits, gen):
        """logits (n, V) -> (n, 1); each row gets its own draw."""
        p = torch.softmax(logits / self.temperature, -1)
        return torch.multinomial(p, 1, generator=gen)

    @torch.inference_mode()
    def __call__(self, req: Request) -> List[List[int]]:
        length = req.prompt.numel()
        if length + req.max_new > self.capacity:
            raise ValueError(f"request needs {length + req.max_new} slots, cache has {self.capacity}")
        req.attach(self.device)
        cache = self.net.new_cache(self.n, self.capacity)
        prompt = req.prompt.to(self.device)
        # the prompt is the same for all samples; only its last logits are expanded
        last = self.net.prefill(prompt[None].expand(self.n, -1), cache)
        made = torch.empty(self.n, req.max_new, dtype=torch.long, device=self.device)
        pos = torch.full((1,), length, device=self.device)
        for i in range(req.max_new):
            tok = self._draw(last, req.generator)
            made[:, i] = tok[:, 0]
            last = self.one_step(tok, pos, cache)
            pos += 1
        return self._cut(made)

    def _cut(self, made):
        rows = made.tolist()  # once, after the loop
        eos = self.net.eos
        return [r[: r.index(eos)] if eos in r else r for r in rows]
