import torch
from torch import Tensor, nn


class LayerCache(nn.Module):
    """Keys and values of one attention layer, written in place."""

    def __init__(self, batch: int, heads: int, length: int, dim: int, dtype=torch.bfloat16):
        super().__init__()
        shape = (batch, heads, length, dim)
        self.length = length
        self.register_buffer("k", torch.zeros(shape, dtype=dtype), persistent=False)
        self.register_buffer("v", torch.zeros(shape, dtype=dtype), persistent=False)
        self.used = 0

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        begin = self.used
        end = min(begin + k.size(2), self.length)
        self.k[:, :, begin:end] = k[:, :, : end - begin]
        self.v[:, :, begin:end] = v[:, :, : end - begin]
        self.used = end
        return self.k[:, :, :end], self.v[:, :, :end]

    def spread(self, n: int) -> None:
        self.k = self.k.expand(n, -1, -1, -1).contiguous()
        self.v = self.v.expand(n, -1, -1, -1).contiguous()


def top_p_filter(logits: Tensor, p: float) -> Tensor:
    ordered, where = logits.sort(descending=True, dim=-1)
    mass = ordered.softmax(-1).cumsum(-1)
    ordered = ordered.masked_fill(mass - ordered.softmax(-1) > p, float("-inf"))
    return torch.empty_like(logits).scatter_(-1, where, ordered)


def pick(logits: Tensor, temperature: float, p: float) -> Tensor:
    probs = top_p_filter(logits / temperature, p).softmax(-1)
    return torch.multinomial(probs, num_samples=1)


@torch.inference_mode()
def continuations(model, prompt: Tensor, n: int, steps: int, temperature: float = 1.0, p: float = 0.95) -> Tensor:
    """n continuations of one prompt of shape (1, T)."""
    caches = model.make_caches(batch=1)
    logits = model(prompt, caches)[:, -1]
    token = pick(logits, temperature, p)
    for cache in caches:
        cache.spread(n)
    token = token.repeat(n, 1)
    produced = [token]
    for _ in range(steps - 1):
        logits = model(token, caches)[:, -1]
        token = pick(logits, temperature, p)
        produced.append(token)
    return torch.cat(produced, dim=1)
