"""Draw several continuations of one prompt from a trained checkpoint."""
import argparse

import torch
import torch.nn.functional as F

from model import GPT, GPTConfig
from tokenizer import Tokenizer


def load(path, device):
    ckpt = torch.load(path, map_location=device, weights_only=False)
    model = GPT(GPTConfig(**ckpt["config"]))
    model.load_state_dict(ckpt["model"])
    return model.to(device)


def continuations(model, prompt, n, max_new, temperature, eos):
    # one prefill, cache repeated over samples
    ids = torch.tensor([prompt], device=next(model.parameters()).device)
    logits, cache = model(ids, cache=None)
    cache = [(k.expand(n, -1, -1, -1), v.expand(n, -1, -1, -1)) for k, v in cache]
    probs = F.softmax(logits[:, -1] / temperature, dim=-1)
    tok = torch.multinomial(probs, num_samples=1).expand(n, 1)
    out = [tok]
    done = tok == eos
    for _ in range(max_new - 1):
        logits, cache = model(tok, cache=cache)
        probs = F.softmax(logits[:, -1] / temperature, dim=-1)
        tok = torch.multinomial(probs, num_samples=1)
        tok = tok.masked_fill(done, eos)
        done = done | (tok == eos)
        out.append(tok)
    return torch.cat(out, dim=1)


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("checkpoint", help="path to a .pt file (yours or one from the model zoo)")
    ap.add_argument("--prompt", default="Once upon a time")
    ap.add_argument("-n", type=int, default=8)
    ap.add_argument("--max-new", type=int, default=200)
    ap.add_argument("--temperature", type=float, default=0.9)
    ap.add_argument("--seed", type=int, default=None)
    a = ap.parse_args()

    if a.seed is not None:
        torch.manual_seed(a.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tok = Tokenizer("tok.model")
    model = load(a.checkpoint, device)
    prompt = tok.encode(a.prompt, bos=True)
    if len(prompt) + a.max_new > model.config.block_size:
        ap.error("prompt and --max-new do not fit the context")
    rows = continuations(model, prompt, a.n, a.max_new, a.temperature, tok.eos_id)
    for i, row in enumerate(rows.tolist()):
        if tok.eos_id in row:
            row = row[: row.index(tok.eos_id)]
        print(f"--- {i}\n{a.prompt}{tok.decode(row)}")


if __name__ == "__main__":
    main()
