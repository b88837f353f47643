"""Batched sampling with a preallocated KV cache and one generator per row."""
import torch


class ContextFull(RuntimeError):
    pass


class RowSampler:
    def __init__(self, model, context, temperature=0.8, eos_id=2):
        self.model = model.eval()
        self.context = context
        self.temperature = temperature
        self.eos_id = eos_id
        self.device = next(model.parameters()).device

    def _streams(self, base, rows):
        return [torch.Generator(device=self.device).manual_seed((base << 16) + r) for r in range(rows)]

    def _draw(self, logits, streams):
        probs = torch.softmax(logits / self.temperature, dim=-1)
        picks = [torch.multinomial(p, 1, generator=g) for p, g in zip(probs, streams)]
        return torch.stack(picks)

    @torch.inference_mode()
    def sample(self, prompt, n, steps, seed):
        """n independent continuations of one prompt, [n, steps]."""
        need = prompt.numel() + steps
        if need > self.context:
            raise ContextFull(f"{need} positions needed, {self.context} there")
        streams = self._streams(seed, n)
        cache = self.model.new_cache(rows=1, length=need)
        logits = self.model(prompt[None], cache=cache)[:, -1]
        cache.expand_rows(n)
        logits = logits.expand(n, -1)

        out = torch.full((n, steps), self.eos_id, device=self.device)
        done = torch.zeros(n, 1, dtype=torch.bool, device=self.device)
        for t in range(steps):
            tok = self._draw(logits, streams).masked_fill(done, self.eos_id)
            out[:, t:t + 1] = tok
            done |= tok == self.eos_id
            if t + 1 < steps:
                logits = self.model(tok, cache=cache)[:, -1]
        return out


def continuations(sampler, tokenizer, text, seed, n=4, steps=100):
    ids = torch.tensor(tokenizer.encode(text), device=sampler.device)
    rows = sampler.sample(ids, n, steps, seed).cpu()
    return [tokenizer.decode(r) for r in rows.tolist()]
