"""Incremental decoding with a bounded cache, used by the chat server."""
import torch
import torch.nn.functional as F
from torch import nn


class CacheFull(RuntimeError):
    pass


class Attention(nn.Module):
    def __init__(self, dim, heads, rows, capacity):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        shape = (rows, heads, capacity, dim // heads)
        self.register_buffer("k", torch.zeros(shape), persistent=False)
        self.register_buffer("v", torch.zeros(shape), persistent=False)

    def forward(self, x, where, mask):
        b, t, d = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        self.k.index_copy_(2, where, k)
        self.v.index_copy_(2, where, v)
        y = F.scaled_dot_product_attention(q, self.k, self.v, attn_mask=mask)
        return self.out(y.transpose(1, 2).reshape(b, t, d))


class Decoder(nn.Module):
    def __init__(self, vocab, dim, heads, layers, rows, capacity):
        super().__init__()
        self.capacity = capacity
        self.embed = nn.Embedding(vocab, dim)
        self.place = nn.Embedding(capacity, dim)
        self.layers = nn.ModuleList(
            Attention(dim, heads, rows, capacity) for _ in range(layers)
        )
        self.norm = nn.RMSNorm(dim)
        self.head = nn.Linear(dim, vocab, bias=False)
        self.register_buffer("slots", torch.arange(capacity), persistent=False)

    def forward(self, ids, where):
        mask = self.slots <= where[:, None]
        x = self.embed(ids) + self.place(where)
        for layer in self.layers:
            x = x + layer(x, where, mask)
        return self.head(self.norm(x[:, -1])).argmax(-1, keepdim=True)


class Session:
    def __init__(self, path, device, **dims):
        net = Decoder(**dims)
        net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        self.net = net.to(device=device, dtype=torch.bfloat16).eval()
        self.step = torch.compile(self.net, mode="max-autotune-no-cudagraphs", dynamic=False)

    @torch.inference_mode()
    def greedy(self, ids, new_tokens):
        n = ids.size(1)
        if n + new_tokens > self.net.capacity:
            raise CacheFull(f"{n} + {new_tokens} tokens, room for {self.net.capacity}")
        where = torch.arange(n, device=ids.device)
        tok = self.net(ids, where)
        out, where = [tok], where[-1:] + 1
        for _ in range(new_tokens - 1):
            tok = self.step(tok, where)
            out.append(tok)
            where = where + 1
        return torch.cat(out, dim=1)
