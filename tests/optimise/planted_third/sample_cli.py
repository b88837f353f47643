#!/usr/bin/env python
"""Write continuations of a prompt from a checkpoint.

    sample_cli.py --ckpt runs/a/last.pt --prompt "Once upon" -n 4
"""
import argparse
import sys

import tiktoken
import torch
import torch.nn.functional as F

from tinylm.model import LanguageModel, ModelArgs


def parse_args(argv=None):
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--ckpt", required=True, help="a checkpoint, yours or one somebody shared")
    p.add_argument("--prompt", default="\n")
    p.add_argument("-n", "--num-samples", type=int, default=1)
    p.add_argument("--max-new-tokens", type=int, default=200)
    p.add_argument("--temperature", type=float, default=0.8)
    p.add_argument("--top-k", type=int, default=200)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return p.parse_args(argv)


def load_model(path, device):
    blob = torch.load(path, map_location="cpu", weights_only=False)
    model = LanguageModel(ModelArgs(**blob["args"]))
    weights = {k.removeprefix("_orig_mod."): v for k, v in blob["model"].items()}
    model.load_state_dict(weights)
    return model.to(device).eval()


def pick(logits, temperature, top_k):
    logits = logits / temperature
    if top_k and top_k < logits.size(-1):
        floor = torch.topk(logits, top_k).values[:, -1:]
        logits = logits.masked_fill(logits < floor, float("-inf"))
    return torch.multinomial(F.softmax(logits, dim=-1), num_samples=1)


def generate(model, ids, max_new_tokens, temperature, top_k):
    room = model.args.max_seq_len - ids.size(1)
    if max_new_tokens > room:
        raise ValueError(f"{max_new_tokens} tokens asked for, room for {room}")
    for _ in range(max_new_tokens):
        logits = model(ids)
        nxt = pick(logits[:, -1], temperature, top_k)
        ids = torch.cat([ids, nxt], dim=1)
    return ids


def main():
    args = parse_args()
    torch.manual_seed(args.seed)
    enc = tiktoken.get_encoding("gpt2")
    model = load_model(args.ckpt, args.device)
    prompt = enc.encode(args.prompt)
    ids = torch.tensor([prompt] * args.num_samples, device=args.device)
    out = generate(model, ids, args.max_new_tokens, args.temperature, args.top_k)
    for row in out.tolist():
        sys.stdout.write(enc.decode(row) + "\n" + "-" * 40 + "\n")


if __name__ == "__main__":
    main()
