"""Sampler with a seed so that demos can be repeated."""
import torch


class StableSampler:
    """Temperature and top-k sampling; `seed` makes a run repeatable."""

    def __init__(self, seed=0, temperature=1.0, top_k=50):
        self.seed = seed
        self.temperature = temperature
        self.top_k = top_k

    def _noise_source(self, device):
        source = torch.Generator(device=device)
        source.manual_seed(self.seed)
        return source

    def __call__(self, logits):
        if self.temperature == 0:
            return logits.argmax(-1, keepdim=True)
        best, where = logits.topk(self.top_k, dim=-1)
        p = torch.softmax(best / self.temperature, dim=-1)
        pick = torch.multinomial(p, 1, generator=self._noise_source(logits.device))
        return where.gather(-1, pick)


@torch.inference_mode()
def write(model, ids, sampler, n_new):
    logits, past = model(ids, past=None)
    for _ in range(n_new):
        token = sampler(logits[:, -1])
        ids = torch.cat([ids, token], dim=1)
        logits, past = model(token, past=past)
    return ids


def noise_schedule(batch, steps, seed):
    """Latents for each step of a diffusion decoder."""
    levels = []
    for step in range(steps):
        torch.manual_seed(seed)
        levels.append(torch.randn(batch, 16) * (1 - step / steps))
    return levels
