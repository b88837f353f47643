"""Batched chat sampling on top of a GPT that keeps a static KV cache."""
import torch
import torch.nn.functional as F


class KVCache:
    def __init__(self, n_layers, batch, n_heads, max_len, head_dim, device, dtype):
        shape = (n_layers, 2, batch, n_heads, max_len, head_dim)
        self.data = torch.zeros(shape, device=device, dtype=dtype)
        self.max_len = max_len
        self.pos = 0

    def insert(self, layer, k, v):
        t = k.size(2)
        slots = torch.arange(self.pos, self.pos + t, device=k.device) % self.max_len
        self.data[layer, 0].index_copy_(2, slots, k)
        self.data[layer, 1].index_copy_(2, slots, v)
        end = min(self.pos + t, self.max_len)
        if layer == self.data.size(0) - 1:
            self.pos += t
        return self.data[layer, 0, :, :, :end], self.data[layer, 1, :, :, :end]

    def load_prefix(self, other):
        self.data[..., : other.pos, :] = other.data[..., : other.pos, :]
        self.pos = other.pos


def sample(logits, temperature, top_k):
    if temperature == 0.0:
        return logits.argmax(dim=-1, keepdim=True)
    logits = logits / temperature
    if top_k is not None:
        vals, idx = torch.topk(logits, min(top_k, logits.size(-1)))
        choice = torch.multinomial(F.softmax(vals, dim=-1), 1)
        return idx.gather(1, choice)
    return torch.multinomial(F.softmax(logits, dim=-1), 1)


class Engine:
    def __init__(self, model, tokenizer, max_len=2048):
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.max_len = max_len
        self.device = next(model.parameters()).device
        self.dtype = next(model.parameters()).dtype

    def _new_cache(self, batch):
        cfg = self.model.config
        return KVCache(
            cfg.n_layer, batch, cfg.n_kv_head, self.max_len,
            cfg.n_embd // cfg.n_head, self.device, self.dtype,
        )

    @torch.inference_mode()
    def generate(self, tokens, num_samples=1, max_new_tokens=256, temperature=1.0, top_k=50):
        ids = torch.tensor([tokens], dtype=torch.long, device=self.device)
        prefill = self._new_cache(1)
        logits = self.model(ids, kv_cache=prefill)[:, -1, :]

        cache = self._new_cache(num_samples)
        cache.load_prefix(prefill)
        del prefill

        first = sample(logits, temperature, top_k)[0, 0].item()
        next_ids = [first] * num_samples
        column = torch.tensor(next_ids, dtype=torch.long, device=self.device).unsqueeze(1)

        columns = [column]
        for _ in range(max_new_tokens - 1):
            logits = self.model(column, kv_cache=cache)[:, -1, :]
            column = sample(logits, temperature, top_k)
            columns.append(column)
        rows = torch.cat(columns, dim=1).tolist()
        return [self._trim(row) for row in rows]

    def _trim(self, row):
        stop = self.tokenizer.encode_special("<|assistant_end|>")
        return row[: row.index(stop)] if stop in row else row

    def chat(self, text, **kw):
        prompt = self.tokenizer.render_for_completion(text)
        return [self.tokenizer.decode(r) for r in self.generate(prompt, **kw)]
