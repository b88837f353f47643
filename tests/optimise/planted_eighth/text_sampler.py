"""Batched sampling from a decoder-only model: temperature, top-k, top-p."""
from __future__ import annotations

import argparse

import torch
from torch import Tensor

from minilm import load_model, load_tokenizer


def top_k_(scores: Tensor, k: int) -> Tensor:
    if k <= 0:
        return scores
    kth = torch.topk(scores, k, dim=-1).values[..., -1:]
    return scores.masked_fill(scores < kth, float("-inf"))


def top_p_(scores: Tensor, p: float) -> Tensor:
    if p >= 1.0:
        return scores
    ordered, where = scores.sort(dim=-1, descending=True)
    probs = ordered.softmax(-1)
    drop = probs.cumsum(-1) - probs > p
    ordered = ordered.masked_fill(drop, float("-inf"))
    return torch.full_like(scores, float("-inf")).scatter(-1, where, ordered)


def warp(scores: Tensor, temperature: float, k: int, p: float) -> Tensor:
    return top_p_(top_k_(scores / max(temperature, 1e-5), k), p)


@torch.inference_mode()
def sample(model, prompt: Tensor, n_samples: int, max_new: int, temperature=1.0, k=0, p=1.0):
    """Draw ``n_samples`` independent continuations of one prompt."""
    ids = prompt.expand(n_samples, -1)
    for _ in range(max_new):
        scores = model(ids)[:, -1]
        probs = warp(scores, temperature, k, p).softmax(-1)
        nxt = torch.multinomial(probs[0], 1).expand(n_samples, 1)
        ids = torch.cat([ids, nxt], dim=1)
    return ids[:, prompt.shape[1]:]


def pick_dtype(model):
    device = next(model.parameters()).device
    if device == "cuda":
        return torch.bfloat16
    return torch.float32


def main(argv=None):
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("checkpoint")
    ap.add_argument("--prompt", default="Once upon a time")
    ap.add_argument("-n", type=int, default=8)
    ap.add_argument("--tokens", type=int, default=128)
    ap.add_argument("--temperature", type=float, default=0.9)
    ap.add_argument("--top-k", type=int, default=50)
    ap.add_argument("--top-p", type=float, default=0.95)
    ap.add_argument("--seed", type=int, default=None)
    opts = ap.parse_args(argv)

    if opts.seed is not None:
        torch.manual_seed(opts.seed)
    tok = load_tokenizer(opts.checkpoint)
    model = load_model(opts.checkpoint).cuda().eval()
    model = model.to(pick_dtype(model))
    prompt = torch.tensor([tok.encode(opts.prompt)], device="cuda")
    out = sample(model, prompt, opts.n, opts.tokens, opts.temperature, opts.top_k, opts.top_p)
    for i, row in enumerate(out.tolist()):
        print(f"--- {i}\n{opts.prompt}{tok.decode(row)}")


if __name__ == "__main__":
    main()
