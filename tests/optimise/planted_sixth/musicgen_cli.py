"""Generate audio codes with a decoder LM and write a wav file."""
import argparse

import torch
import torchaudio
from torch import nn

from codec import load_codec


class Block(nn.Module):
    def __init__(self, d, h):
        super().__init__()
        self.n1, self.n2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.ff = nn.Sequential(nn.Linear(d, 4 * d), nn.GELU(), nn.Linear(4 * d, d))
        self.h = h

    def forward(self, x):
        b, t, d = x.shape
        q, k, v = self.qkv(self.n1(x)).view(b, t, 3, self.h, d // self.h).permute(2, 0, 3, 1, 4)
        a = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(a.transpose(1, 2).reshape(b, t, d))
        return x + self.ff(self.n2(x))


class CodeLM(nn.Module):
    def __init__(self, codes=1024, d=768, h=12, layers=12, ctx=4096):
        super().__init__()
        self.bos = codes
        self.ctx = ctx
        self.emb = nn.Embedding(codes + 1, d)
        self.pos = nn.Embedding(ctx, d)
        self.blocks = nn.ModuleList(Block(d, h) for _ in range(layers))
        self.norm = nn.LayerNorm(d)
        self.head = nn.Linear(d, codes, bias=False)

    def forward(self, x):
        h = self.emb(x) + self.pos(torch.arange(x.shape[1], device=x.device))
        for b in self.blocks:
            h = b(h)
        return self.head(self.norm(h))

    @torch.inference_mode()
    def generate(self, n, steps, temperature=1.0, top_k=250):
        if steps >= self.ctx:
            raise ValueError(f"at most {self.ctx - 1} steps")
        x = torch.full((n, steps + 1), self.bos, device=self.head.weight.device)
        for t in range(steps):
            logits = self(x[:, : t + 1])[:, -1] / temperature
            top, idx = logits.topk(top_k, dim=-1)
            pick = torch.multinomial(top.softmax(-1), 1)
            x[:, t + 1] = idx.gather(1, pick)[:, 0]
        return x[:, 1:]


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--weights", default="codelm.pt")
    ap.add_argument("--seconds", type=float, default=20)
    ap.add_argument("-n", type=int, default=2)
    ap.add_argument("--seed", type=int, default=0)
    args = ap.parse_args()
    torch.manual_seed(args.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    codec = load_codec("encodec_24khz").to(device).eval()
    lm = CodeLM()
    lm.load_state_dict(torch.load(args.weights, map_location="cpu", weights_only=True))
    lm.to(device).eval()
    codes = lm.generate(args.n, int(args.seconds * 75))
    with torch.inference_mode():
        wav = codec.decode(codes).cpu()
    for i, w in enumerate(wav):
        torchaudio.save(f"sample_{i}.wav", w, 24000)


if __name__ == "__main__":
    main()
