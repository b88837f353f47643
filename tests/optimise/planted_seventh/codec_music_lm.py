"""Autoregressive music model over one stream of codec tokens (50 tokens per second).

Continues a clip in several variants and ranks the variants by their mean log-probability.
"""
import math
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F
import torchaudio

from codec import load_codec  # codec.encode(wav) -> (T,), codec.decode(tokens) -> wav


@dataclass
class MusicConfig:
    n_codes: int = 2048
    width: int = 1024
    depth: int = 16
    heads: int = 16
    horizon: int = 3000  # the model attends to everything since the start of the clip


class Memory:
    def __init__(self, cfg, rows, device, dtype):
        size = (cfg.depth, rows, cfg.heads, cfg.horizon, cfg.width // cfg.heads)
        self.k = torch.zeros(size, device=device, dtype=dtype)
        self.v = torch.zeros(size, device=device, dtype=dtype)
        self.size = cfg.horizon

    def cell(self, at):
        return at % self.size

    def put(self, layer, at, k, v):
        self.k[layer].index_copy_(2, self.cell(at), k)
        self.v[layer].index_copy_(2, self.cell(at), v)
        return self.k[layer], self.v[layer]


class Layer(nn.Module):
    def __init__(self, cfg, i):
        super().__init__()
        self.i, self.heads = i, cfg.heads
        self.n1, self.n2 = nn.LayerNorm(cfg.width), nn.LayerNorm(cfg.width)
        self.qkv = nn.Linear(cfg.width, 3 * cfg.width)
        self.o = nn.Linear(cfg.width, cfg.width)
        self.ff = nn.Sequential(nn.Linear(cfg.width, 4 * cfg.width), nn.GELU(), nn.Linear(4 * cfg.width, cfg.width))

    def forward(self, x, at, mem, mask):
        b, t, d = x.shape
        q, k, v = self.qkv(self.n1(x)).view(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        k, v = mem.put(self.i, at, k, v)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.o(y.transpose(1, 2).reshape(b, t, d))
        return x + self.ff(self.n2(x))


class MusicLM(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        self.emb = nn.Embedding(cfg.n_codes, cfg.width)
        self.layers = nn.ModuleList(Layer(cfg, i) for i in range(cfg.depth))
        self.norm = nn.LayerNorm(cfg.width)
        self.head = nn.Linear(cfg.width, cfg.n_codes, bias=False)
        freq = torch.exp(-math.log(1e4) * torch.arange(0, cfg.width, 2) / cfg.width)
        self.register_buffer("freq", freq, persistent=False)

    def forward(self, tok, at, mem):
        ang = at[:, None] * self.freq
        x = self.emb(tok) + torch.cat([ang.sin(), ang.cos()], -1)
        mask = torch.arange(mem.size, device=tok.device) <= at[:, None]
        for l in self.layers:
            x = l(x, at, mem, mask)
        return self.head(self.norm(x[:, -1]))


class Improviser:
    def __init__(self, net, rows, seed):
        self.net = net.eval()
        self.dev = next(net.parameters()).device
        self.rows = rows
        self.gen = torch.Generator(self.dev).manual_seed(seed)
        self.tick = torch.compile(net, mode="max-autotune-no-cudagraphs")

    def choose(self, logits):
        cdf = torch.softmax(logits, -1, dtype=torch.float32).cumsum(-1)
        u = torch.rand(1, 1, generator=self.gen, device=self.dev)
        return torch.searchsorted(cdf, u.expand(self.rows, 1) * cdf[:, -1:]).clamp_(max=cdf.size(-1) - 1)

    @torch.inference_mode()
    def continue_clip(self, prompt, seconds, stop_below=-6.0):
        mem = Memory(self.net.cfg, self.rows, self.dev, self.net.head.weight.dtype)
        prompt = prompt.to(self.dev).expand(self.rows, -1)
        at = torch.arange(prompt.size(1), device=self.dev)
        logits = self.net(prompt, at, mem)
        at = at[-1:]
        kept, picked = [], []
        dead = torch.zeros(self.rows, dtype=torch.bool, device=self.dev)
        for _ in range(int(seconds * 50)):
            tok = self.choose(logits)
            kept.append(logits)
            picked.append(tok)
            lp = F.log_softmax(torch.stack(kept, 1).float(), -1)
            score = lp.gather(-1, torch.stack(picked, 1)).mean((1, 2))
            dead |= score < stop_below
            at = at + 1
            logits = self.tick(tok, at, mem)
        return torch.cat(picked, 1), score.masked_fill(dead, -math.inf)


def main(clip="in.wav", weights="music.pt", seconds=20, variants=12, seed=31):
    dev = torch.device("cuda")
    codec = load_codec(dev)
    net = MusicLM(MusicConfig())
    net.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    net = net.to(dev, torch.bfloat16)
    wav, rate = torchaudio.load(clip)
    with torch.inference_mode():
        prompt = codec.encode(torchaudio.functional.resample(wav, rate, codec.rate).mean(0))
    toks, score = Improviser(net, variants, seed).continue_clip(prompt, seconds)
    for place, i in enumerate(score.argsort(descending=True).cpu().numpy()):
        with torch.inference_mode():
            torchaudio.save(f"out_{place:02d}.wav", codec.decode(toks[int(i)]).cpu(), codec.rate)


if __name__ == "__main__":
    main()
