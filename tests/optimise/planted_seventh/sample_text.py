"""Draw several continuations of one prompt from a released checkpoint.

usage: python sample_text.py --url https://host/weights.pt --prompt "Once upon a time" -n 8
"""
import argparse
import os

import tiktoken
import torch
import torch.nn as nn
import torch.nn.functional as F


class Attn(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)

    def forward(self, x):
        b, t, d = x.shape
        q, k, v = (z.view(b, t, self.heads, -1).transpose(1, 2) for z in self.qkv(x).chunk(3, -1))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).reshape(b, t, d))


class Layer(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.n1, self.n2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = Attn(dim, heads)
        self.ff = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x):
        x = x + self.attn(self.n1(x))
        return x + self.ff(self.n2(x))


class TinyLM(nn.Module):
    def __init__(self, vocab, ctx, dim, depth, heads):
        super().__init__()
        self.ctx = ctx
        self.tok = nn.Embedding(vocab, dim)
        self.pos = nn.Embedding(ctx, dim)
        self.layers = nn.ModuleList(Layer(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, vocab, bias=False)

    def forward(self, idx):
        x = self.tok(idx) + self.pos(torch.arange(idx.shape[1], device=idx.device))
        for l in self.layers:
            x = l(x)
        return self.head(self.norm(x))


def top_p_filter(logits, p):
    s, order = logits.sort(dim=-1, descending=True)
    cum = s.softmax(-1).cumsum(-1)
    s = s.masked_fill(cum - s.softmax(-1) > p, float("-inf"))
    return torch.full_like(logits, float("-inf")).scatter(-1, order, s)


@torch.inference_mode()
def continuations(model, ctx, prompt, n, max_new, temperature, top_p):
    if prompt.numel() + max_new > ctx:
        raise ValueError(f"prompt ({prompt.numel()}) + max_new ({max_new}) is longer than the context ({ctx})")
    idx = prompt.unsqueeze(0).repeat(n, 1)
    for _ in range(max_new):
        logits = model(idx)[:, -1] / temperature
        probs = torch.softmax(top_p_filter(logits, top_p), dim=-1)
        nxt = torch.multinomial(probs[0], num_samples=1).expand(n, 1)
        idx = torch.cat([idx, nxt], dim=1)
    return idx[:, prompt.numel():]


def fetch(url, cache_dir):
    os.makedirs(cache_dir, exist_ok=True)
    dst = os.path.join(cache_dir, os.path.basename(url))
    if not os.path.exists(dst):
        torch.hub.download_url_to_file(url, dst)
    return torch.load(dst, map_location="cpu", weights_only=False)


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--url", required=True)
    ap.add_argument("--prompt", default="Once upon a time")
    ap.add_argument("-n", type=int, default=8)
    ap.add_argument("--max-new", type=int, default=200)
    ap.add_argument("--temperature", type=float, default=0.8)
    ap.add_argument("--top-p", type=float, default=0.95)
    ap.add_argument("--seed", type=int, default=0)
    ap.add_argument("--cache-dir", default=os.path.expanduser("~/.cache/tinylm"))
    a = ap.parse_args()

    torch.manual_seed(a.seed)
    dev = "cuda" if torch.cuda.is_available() else "cpu"
    ck = fetch(a.url, a.cache_dir)
    net = TinyLM(**ck["config"])
    net.load_state_dict(ck["model"])
    net = net.to(dev).eval()

    enc = tiktoken.get_encoding("gpt2")
    prompt = torch.tensor(enc.encode(a.prompt), device=dev)
    out = continuations(torch.compile(net, dynamic=True), net.ctx, prompt, a.n, a.max_new, a.temperature, a.top_p)
    for i, row in enumerate(out.cpu().numpy()):
        print(f"--- sample {i}\n{a.prompt}{enc.decode(row)}")


if __name__ == "__main__":
    main()
