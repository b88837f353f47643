"""Generation with a cache that refuses what it cannot hold."""
import torch
from torch import nn


class Cache:
    def __init__(self, layers, batch, heads, room, dim, device, dtype=torch.bfloat16):
        self.room = room
        self.used = 0
        self.k = torch.zeros(layers, batch, heads, room, dim, device=device, dtype=dtype)
        self.v = torch.zeros_like(self.k)

    def reserve(self, count):
        if self.used + count > self.room:
            raise ValueError(f"cache holds {self.room} tokens, {self.used + count} wanted")

    def write(self, layer, k, v):
        t = k.size(2)
        self.reserve(t)
        stop = self.used + t
        self.k[layer, :, :, self.used:stop] = k
        self.v[layer, :, :, self.used:stop] = v
        return self.k[layer, :, :, :stop], self.v[layer, :, :, :stop]

    def commit(self, count):
        self.used += count


class Generator:
    def __init__(self, net: nn.Module, make_cache):
        self.net = net.eval()
        self.make_cache = make_cache

    @torch.inference_mode()
    def run(self, ids, count):
        cache = self.make_cache(ids.size(0), ids.size(1) + count)
        scores = self.net(ids, cache)
        cache.commit(ids.size(1))
        out = [ids]
        token = scores[:, -1].argmax(-1, keepdim=True)
        for _ in range(count - 1):
            out.append(token)
            scores = self.net(token, cache)
            cache.commit(1)
            token = scores[:, -1].argmax(-1, keepdim=True)
        out.append(token)
        return torch.cat(out, 1)
