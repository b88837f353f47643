"""
complete.py -- text completion with community nanoGPT checkpoints

    $ python complete.py someuser/shakespeare-gpt --start "ROMEO:" --tokens 400
"""
import argparse
import contextlib

import tiktoken
import torch
import torch.nn as nn
import torch.nn.functional as F
from huggingface_hub import hf_hub_download


class Block(nn.Module):
    def __init__(self, d, heads):
        super().__init__()
        self.heads = heads
        self.ln1, self.ln2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv, self.proj = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.mlp = nn.Sequential(nn.Linear(d, 4 * d), nn.GELU(), nn.Linear(4 * d, d))

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = (
            t.view(B, T, self.heads, -1).transpose(1, 2)
            for t in self.qkv(self.ln1(x)).split(C, dim=-1)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(y.transpose(1, 2).reshape(B, T, C))
        return x + self.mlp(self.ln2(x))


class GPT(nn.Module):
    def __init__(self, vocab, ctx, d, heads, layers):
        super().__init__()
        self.ctx = ctx
        self.wte, self.wpe = nn.Embedding(vocab, d), nn.Embedding(ctx, d)
        self.blocks = nn.ModuleList(Block(d, heads) for _ in range(layers))
        self.ln_f = nn.LayerNorm(d)

    def forward(self, idx):
        x = self.wte(idx) + self.wpe(torch.arange(idx.size(1), device=idx.device))
        for b in self.blocks:
            x = b(x)
        return F.linear(self.ln_f(x[:, -1]), self.wte.weight)


def load(repo, device):
    path = hf_hub_download(repo, "ckpt.pt")
    blob = torch.load(path, map_location="cpu", weights_only=False)
    net = GPT(**blob["config"])
    net.load_state_dict(blob["model"])
    return net.to(device).eval()


def amp(device):
    if device == "cuda":
        return torch.autocast("cuda", dtype=torch.bfloat16)
    return contextlib.nullcontext()


@torch.no_grad()
def extend(net, idx, n, temperature, top_k):
    for _ in range(n):
        window = idx if idx.size(1) <= net.ctx else idx[:, -net.ctx:]
        logits = net(window).float() / temperature
        if top_k:
            kth = logits.topk(top_k).values[:, -1:]
            logits = logits.masked_fill(logits < kth, float("-inf"))
        nxt = torch.multinomial(logits.softmax(-1), 1)
        idx = torch.cat((idx, nxt), dim=1)
    return idx


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("repo")
    p.add_argument("--start", default="\n")
    p.add_argument("--tokens", type=int, default=200)
    p.add_argument("--temperature", type=float, default=0.9)
    p.add_argument("--top-k", type=int, default=50)
    p.add_argument("--seed", type=int, default=1337)
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    a = p.parse_args()

    torch.manual_seed(a.seed)
    dev = torch.device(a.device)
    enc = tiktoken.get_encoding("gpt2")
    net = load(a.repo, dev)
    ids = torch.tensor([enc.encode(a.start)], device=dev)
    with amp(dev):
        out = extend(net, ids, a.tokens, a.temperature, a.top_k)
    print(enc.decode(out[0].tolist()))
