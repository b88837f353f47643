"""Attention block of the decoder with rotary positions and a KV cache."""
import torch
import torch.nn as nn
import torch.nn.functional as F


class CastLinear(nn.Linear):
    """Linear layer with fp32 parameters that follows the activation dtype."""

    def forward(self, x):
        weight = self.weight.to(x.dtype)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, weight, bias)


def rotary_table(head_dim, max_len, base=10000.0, dtype=torch.bfloat16):
    inv = base ** (-torch.arange(0, head_dim, 2).float() / head_dim)
    angle = torch.outer(torch.arange(max_len).float(), inv)
    return torch.stack((angle.cos(), angle.sin())).to(dtype)


def rotate(x, table):
    cos, sin = table
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)


class Attention(nn.Module):
    def __init__(self, dim, heads, max_len):
        super().__init__()
        self.heads, self.head_dim, self.max_len = heads, dim // heads, max_len
        self.wq = CastLinear(dim, dim, bias=False)
        self.wk = CastLinear(dim, dim, bias=False)
        self.wv = CastLinear(dim, dim, bias=False)
        self.wo = CastLinear(dim, dim, bias=False)
        self.k_cache = self.v_cache = None
        self.register_buffer("rope", rotary_table(self.head_dim, 4 * max_len), persistent=False)

    def start(self, batch, device, dtype):
        shape = (batch, self.heads, self.max_len, self.head_dim)
        self.k_cache = torch.zeros(shape, device=device, dtype=dtype)
        self.v_cache = torch.zeros(shape, device=device, dtype=dtype)

    def stop(self):
        self.k_cache = self.v_cache = None

    def _heads(self, t):
        B, T, _ = t.shape
        return t.view(B, T, self.heads, self.head_dim).transpose(1, 2)

    def forward(self, x, pos=0):
        B, T, C = x.shape
        table = self.rope[:, pos : pos + T]
        q = rotate(self._heads(self.wq(x)), table)
        k = rotate(self._heads(self.wk(x)), table)
        v = self._heads(self.wv(x))
        if self.k_cache is None:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            slots = torch.arange(pos, pos + T, device=x.device) % self.max_len
            self.k_cache.index_copy_(2, slots, k)
            self.v_cache.index_copy_(2, slots, v)
            end = min(pos + T, self.max_len)
            keys, values = self.k_cache[:, :, :end], self.v_cache[:, :, :end]
            y = F.scaled_dot_product_attention(q, keys, values, is_causal=T > 1)
        return self.wo(y.transpose(1, 2).reshape(B, T, C))


class DecoderBlock(nn.Module):
    def __init__(self, dim, heads, max_len, hidden):
        super().__init__()
        self.attn_norm = nn.RMSNorm(dim)
        self.ffn_norm = nn.RMSNorm(dim)
        self.attn = Attention(dim, heads, max_len)
        self.up = CastLinear(dim, hidden, bias=False)
        self.down = CastLinear(hidden, dim, bias=False)

    def forward(self, x, pos=0):
        x = x + self.attn(self.attn_norm(x), pos)
        return x + self.down(F.silu(self.up(self.ffn_norm(x))))
