"""Sampling with a KV cache; every row draws from its own generator."""
import torch


class ContextOverflow(ValueError):
    pass


class KVCache:
    def __init__(self, layers, batch, heads, length, head_dim, device, dtype):
        shape = (layers, batch, heads, length, head_dim)
        self.k = torch.empty(shape, device=device, dtype=dtype)
        self.v = torch.empty(shape, device=device, dtype=dtype)
        self.length = length
        self.used = 0

    def append(self, layer, k, v):
        end = self.used + k.size(2)
        if end > self.length:
            raise ContextOverflow(f"{end} positions in a cache of {self.length}")
        self.k[layer, :, :, self.used : end] = k
        self.v[layer, :, :, self.used : end] = v
        return self.k[layer, :, :, :end], self.v[layer, :, :, :end]

    def commit(self, n):
        self.used += n


def row_generators(seeds, device):
    return [torch.Generator(device=device).manual_seed(s) for s in seeds]


def sample_rows(probs, generators):
    draws = [torch.multinomial(p, 1, generator=g) for p, g in zip(probs, generators)]
    return torch.stack(draws)


@torch.inference_mode()
def generate(model, prompt, seeds, max_new, temperature=1.0, eos_id=None):
    """Continue one prompt once per seed. Returns (len(seeds), max_new) tokens."""
    cfg = model.config
    total = len(prompt) + max_new
    if total > cfg.max_len:
        raise ContextOverflow(f"{len(prompt)} + {max_new} tokens exceed {cfg.max_len}")
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    dtype = next(model.parameters()).dtype
    n = len(seeds)
    cache = KVCache(cfg.layers, n, cfg.kv_heads, total, cfg.head_dim, device, dtype)
    generators = row_generators(seeds, device)
    x = torch.tensor(prompt, device=device).repeat(n, 1)
    done = torch.zeros(n, 1, dtype=torch.bool, device=device)
    out = []
    try:
        for _ in range(max_new):
            logits = model(x, cache=cache)[:, -1]
            cache.commit(x.size(1))
            probs = torch.softmax(logits / temperature, dim=-1)
            x = sample_rows(probs, generators)
            if eos_id is not None:
                x = x.masked_fill(done, eos_id)
                done = done | (x == eos_id)
            out.append(x)
    finally:
        model.train(was_training)
    return torch.cat(out, dim=1)
