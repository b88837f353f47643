"""Batched decoding with a static cache."""
from typing import List

import numpy as np
import torch


class StaticCache:
    def __init__(self, n_layers: int, batch: int, heads: int, size: int, head_dim: int):
        self.size = size
        self.k = torch.zeros(n_layers, batch, heads, size, head_dim, device="cuda", dtype=torch.float16)
        self.v = torch.zeros_like(self.k)

    def write(self, layer: int, positions: torch.Tensor, k: torch.Tensor, v: torch.Tensor):
        slots = positions.clamp(max=self.size - 1)
        self.k[layer].index_copy_(2, slots, k)
        self.v[layer].index_copy_(2, slots, v)
        return self.k[layer], self.v[layer]


class BatchedDecoder:
    def __init__(self, model, cache: StaticCache, eos_id: int):
        self.model = model.eval()
        self.cache = cache
        self.eos_id = eos_id

    @torch.inference_mode()
    def decode(self, prompts: torch.Tensor, limit: int) -> torch.Tensor:
        pos = torch.arange(prompts.size(1), device=prompts.device)
        logits = self.model(prompts, pos, self.cache)
        ids = logits[:, -1].argmax(-1, keepdim=True)
        finished = torch.zeros_like(ids, dtype=torch.bool)
        produced: List[torch.Tensor] = []
        pos = pos[-1:] + 1
        for _ in range(limit):
            produced.append(ids)
            finished |= ids == self.eos_id
            if finished.all().item():
                break
            logits = self.model(ids, pos, self.cache)
            ids = logits[:, -1].argmax(-1, keepdim=True)
            ids.masked_fill_(finished, self.eos_id)
            pos += 1
        return torch.cat(produced, dim=1)

    def decode_many(self, queue: List[torch.Tensor], limit: int) -> List[np.ndarray]:
        results = []
        for prompts in queue:
            tokens = self.decode(prompts.cuda(), limit)
            host = torch.empty(tokens.shape, dtype=tokens.dtype, pin_memory=True)
            host.copy_(tokens, non_blocking=True)
            results.append(host.numpy().copy())
        return results
