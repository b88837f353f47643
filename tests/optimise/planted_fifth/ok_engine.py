"""Several completions of one prompt, decoded together on a static KV cache."""
import torch
import torch.nn.functional as F


class KVCache:
    def __init__(self, n_layers, batch, n_heads, max_len, head_dim, device, dtype):
        self.data = torch.zeros(n_layers, 2, batch, n_heads, max_len, head_dim, device=device, dtype=dtype)
        self.max_len = max_len
        self.pos = 0

    def insert(self, layer, k, v):
        end = self.pos + k.size(2)
        if end > self.max_len:
            raise RuntimeError(f"KV cache holds {self.max_len} positions, {end} are needed")
        self.data[layer, 0, :, :, self.pos : end] = k
        self.data[layer, 1, :, :, self.pos : end] = v
        if layer == self.data.size(0) - 1:
            self.pos = end
        return self.data[layer, 0, :, :, :end], self.data[layer, 1, :, :, :end]

    def load_prefix(self, other):
        self.data[..., : other.pos, :] = other.data[..., : other.pos, :]
        self.pos = other.pos


class RowSampler:
    """One stream of random numbers for each row of the batch."""

    def __init__(self, seeds, device, temperature, top_k):
        self.gens = [torch.Generator(device=device).manual_seed(s) for s in seeds]
        self.temperature = temperature
        self.top_k = top_k

    def __call__(self, logits):
        vals, idx = torch.topk(logits / self.temperature, self.top_k)
        probs = F.softmax(vals, dim=-1)
        picks = [torch.multinomial(probs[r], 1, generator=g) for r, g in enumerate(self.gens)]
        return idx.gather(1, torch.stack(picks))


class Engine:
    CHECK_EVERY = 32

    def __init__(self, model, tokenizer, max_len=2048):
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.max_len = max_len
        weight = next(model.parameters())
        self.device, self.dtype = weight.device, weight.dtype

    def _new_cache(self, batch):
        cfg = self.model.config
        return KVCache(cfg.n_layer, batch, cfg.n_kv_head, self.max_len,
                       cfg.n_embd // cfg.n_head, self.device, self.dtype)

    @torch.inference_mode()
    def generate(self, tokens, seeds, max_new_tokens=256, temperature=1.0, top_k=50):
        if len(tokens) + max_new_tokens > self.max_len:
            raise ValueError(f"{len(tokens)} + {max_new_tokens} tokens do not fit in {self.max_len}")
        n = len(seeds)
        stop = self.tokenizer.encode_special("<|assistant_end|>")
        sampler = RowSampler(seeds, self.device, temperature, top_k)

        prefill = self._new_cache(1)
        ids = torch.tensor([tokens], dtype=torch.long, device=self.device)
        logits = self.model(ids, kv_cache=prefill)[:, -1, :].expand(n, -1)
        cache = self._new_cache(n)
        cache.load_prefix(prefill)
        del prefill

        column = sampler(logits)
        columns = [column]
        done = column.squeeze(1) == stop
        for step in range(1, max_new_tokens):
            if step % self.CHECK_EVERY == 0 and bool(done.all()):
                break
            logits = self.model(column, kv_cache=cache)[:, -1, :]
            column = sampler(logits)
            done |= column.squeeze(1) == stop
            columns.append(column)

        rows = torch.cat(columns, dim=1).tolist()
        return [row[: row.index(stop)] if stop in row else row for row in rows]

    def chat(self, text, n=4, seed=0, **kw):
        prompt = self.tokenizer.render_for_completion(text)
        rows = self.generate(prompt, [seed * 1_000_003 + i for i in range(n)], **kw)
        return [self.tokenizer.decode(r) for r in rows]
