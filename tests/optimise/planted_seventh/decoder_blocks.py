"""Inference-only decoder with a preallocated key/value cache.

Public entry point: :class:`CachedDecoder`.
"""
from dataclasses import dataclass
from typing import Optional

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["DecoderConfig", "CachedDecoder"]


@dataclass(frozen=True)
class DecoderConfig:
    vocab_size: int = 32000
    dim: int = 1024
    n_layers: int = 16
    n_heads: int = 16
    max_seq_len: int = 2048
    eps: float = 1e-5


class KVCache(nn.Module):
    def __init__(self, batch: int, cfg: DecoderConfig, dtype: torch.dtype):
        super().__init__()
        shape = (batch, cfg.n_heads, cfg.max_seq_len, cfg.dim // cfg.n_heads)
        self.register_buffer("k", torch.zeros(shape, dtype=dtype), persistent=False)
        self.register_buffer("v", torch.zeros(shape, dtype=dtype), persistent=False)

    def update(self, input_pos: Tensor, k: Tensor, v: Tensor):
        slot = input_pos.clamp(max=self.k.size(2) - 1)
        self.k.index_copy_(2, slot, k)
        self.v.index_copy_(2, slot, v)
        return self.k, self.v


def rope(x: Tensor, input_pos: Tensor) -> Tensor:
    half = x.size(-1) // 2
    freq = 10000.0 ** (-torch.arange(half, device=x.device) / half)
    ang = input_pos[:, None] * freq
    cos, sin = ang.cos().to(x.dtype), ang.sin().to(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


class DecoderLayer(nn.Module):
    def __init__(self, cfg: DecoderConfig):
        super().__init__()
        self.n_heads = cfg.n_heads
        self.norm_a = nn.RMSNorm(cfg.dim, eps=cfg.eps)
        self.norm_m = nn.RMSNorm(cfg.dim, eps=cfg.eps)
        self.wqkv = nn.Linear(cfg.dim, 3 * cfg.dim, bias=False)
        self.wo = nn.Linear(cfg.dim, cfg.dim, bias=False)
        self.w_in = nn.Linear(cfg.dim, 4 * cfg.dim, bias=False)
        self.w_out = nn.Linear(4 * cfg.dim, cfg.dim, bias=False)
        self.cache: Optional[KVCache] = None

    def forward(self, x: Tensor, input_pos: Tensor, mask: Tensor) -> Tensor:
        b, t, d = x.shape
        qkv = self.wqkv(self.norm_a(x)).view(b, t, 3, self.n_heads, -1)
        q, k, v = (z.transpose(1, 2) for z in qkv.unbind(2))
        q, k = rope(q, input_pos), rope(k, input_pos)
        k, v = self.cache.update(input_pos, k, v)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.wo(y.transpose(1, 2).reshape(b, t, d))
        return x + self.w_out(F.silu(self.w_in(self.norm_m(x))))


class CachedDecoder(nn.Module):
    def __init__(self, cfg: DecoderConfig, device=None, dtype: torch.dtype = torch.bfloat16):
        super().__init__()
        self.cfg = cfg
        self.embed = nn.Embedding(cfg.vocab_size, cfg.dim)
        self.layers = nn.ModuleList([DecoderLayer(cfg) for _ in range(cfg.n_layers)])
        self.norm = nn.RMSNorm(cfg.dim, eps=cfg.eps)
        self.head = nn.Linear(cfg.dim, cfg.vocab_size, bias=False)
        self.to(device=device, dtype=dtype)
        self.home = self.embed.weight.device
        self.requires_grad_(False)
        self.eval()
        if self.home == "cuda":
            self._step = torch.compile(self._forward, mode="reduce-overhead")
        else:
            self._step = self._forward

    def setup_caches(self, batch: int) -> None:
        dtype = self.embed.weight.dtype
        for layer in self.layers:
            layer.cache = KVCache(batch, self.cfg, dtype).to(self.home)

    def _forward(self, tokens: Tensor, input_pos: Tensor) -> Tensor:
        x = self.embed(tokens)
        mask = torch.arange(self.cfg.max_seq_len, device=tokens.device) <= input_pos[:, None]
        for layer in self.layers:
            x = layer(x, input_pos, mask)
        h = self.norm(x[:, -1:])
        return F.linear(h.float(), self.head.weight.float())

    @torch.inference_mode()
    def generate(self, prompt: Tensor, max_new_tokens: int, temperature: float = 1.0,
                 generator: Optional[torch.Generator] = None) -> Tensor:
        b, t = prompt.shape
        self.setup_caches(b)
        pos = torch.arange(t, device=self.home)
        logits = self._forward(prompt, pos)
        pieces = [prompt]
        pos = pos[-1:]
        for _ in range(max_new_tokens):
            probs = torch.softmax(logits[:, -1] / temperature, dim=-1)
            tok = torch.multinomial(probs, 1, generator=generator)
            pieces.append(tok)
            pos = pos + 1
            logits = self._step(tok, pos)
        return torch.cat(pieces, dim=1)
