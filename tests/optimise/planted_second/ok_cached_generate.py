import torch
from torch import nn


class KVCache:
    def __init__(self, layers, batch, heads, size, dim, device, dtype):
        self.size = size
        self.k = torch.zeros(layers, batch, heads, size, dim, device=device, dtype=dtype)
        self.v = torch.zeros_like(self.k)
        self.filled = 0

    def update(self, layer, k, v):
        stop = self.filled + k.size(2)
        if stop > self.size:
            raise RuntimeError(f"KV cache holds {self.size} tokens, {stop} are needed")
        self.k[layer, :, :, self.filled : stop] = k
        self.v[layer, :, :, self.filled : stop] = v
        return self.k[layer, :, :, :stop], self.v[layer, :, :, :stop]

    def advance(self, n):
        self.filled += n


@torch.inference_mode()
def generate(net: nn.Module, ids, new_tokens, cache: KVCache, eos, generator=None, temperature=1.0):
    """net(ids, cache) returns logits of the positions in ids only."""
    if ids.size(1) + new_tokens > cache.size:
        raise ValueError("prompt and answer do not fit into the cache")
    logits = net(ids, cache)[:, -1]
    cache.advance(ids.size(1))
    done = torch.zeros(ids.size(0), 1, dtype=torch.bool, device=ids.device)
    out = [ids]
    for i in range(new_tokens):
        probs = torch.softmax(logits.float() / temperature, dim=-1)
        nxt = torch.multinomial(probs, 1, generator=generator)
        nxt = torch.where(done, eos, nxt)
        done |= nxt == eos
        out.append(nxt)
        if i % 32 == 31 and bool(done.all()):
            break
        logits = net(nxt, cache)[:, -1]
        cache.advance(1)
    return torch.cat(out, dim=1)
