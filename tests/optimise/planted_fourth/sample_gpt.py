"""Print a few continuations of a prompt from a trained checkpoint."""
import argparse

import tiktoken
import torch
import torch.nn.functional as F

from gpt.model import GPT, GPTConfig


def parse_args():
    p = argparse.ArgumentParser()
    p.add_argument("ckpt", help="path of the checkpoint file")
    p.add_argument("--prompt", default="Once upon a time")
    p.add_argument("--num-samples", type=int, default=4)
    p.add_argument("--max-new-tokens", type=int, default=200)
    p.add_argument("--temperature", type=float, default=0.8)
    p.add_argument("--top-k", type=int, default=100)
    p.add_argument("--seed", type=int, default=11)
    p.add_argument("--device", default="cuda")
    return p.parse_args()


def load(path, device):
    ckpt = torch.load(path, map_location="cpu", weights_only=False)
    model = GPT(GPTConfig(**ckpt["model_args"]))
    state = {k.removeprefix("_orig_mod."): v for k, v in ckpt["model"].items()}
    model.load_state_dict(state)
    model.to(device)
    model.eval()
    return model


@torch.no_grad()
def generate(model, idx, max_new_tokens, temperature=1.0, top_k=None):
    if idx.size(1) + max_new_tokens > model.config.block_size:
        raise ValueError("prompt plus continuation is longer than the context")
    for _ in range(max_new_tokens):
        logits = model(idx)
        logits = logits[:, -1, :] / temperature
        if top_k is not None:
            kth = torch.topk(logits, min(top_k, logits.size(-1))).values[:, -1:]
            logits = logits.masked_fill(logits < kth, float("-inf"))
        probs = F.softmax(logits, dim=-1)
        idx_next = torch.multinomial(probs[:1], num_samples=1)
        idx_next = idx_next.expand(idx.size(0), 1)
        idx = torch.cat((idx, idx_next), dim=1)
    return idx


def main():
    args = parse_args()
    torch.manual_seed(args.seed)
    model = load(args.ckpt, args.device)
    enc = tiktoken.get_encoding("gpt2")
    start = torch.tensor(enc.encode(args.prompt), dtype=torch.long, device=args.device)
    x = start.unsqueeze(0).repeat(args.num_samples, 1)
    y = generate(model, x, args.max_new_tokens, args.temperature, args.top_k)
    for row in y.tolist():
        print(enc.decode(row))
        print("-" * 60)


if __name__ == "__main__":
    main()
