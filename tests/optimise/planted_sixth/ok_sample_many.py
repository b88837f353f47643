import argparse

import torch

from model import GPT, GPTConfig
from tokenizer import Tokenizer


@torch.inference_mode()
def continuations(model, prompt, n, max_new, temperature, eos, gen):
    ids = torch.tensor([prompt], device=gen.device)
    logits, cache = model(ids, cache=None)
    cache = [(k.expand(n, -1, -1, -1), v.expand(n, -1, -1, -1)) for k, v in cache]
    probs = torch.softmax(logits[:, -1] / temperature, dim=-1).expand(n, -1)
    tok = torch.multinomial(probs, 1, generator=gen)
    out, done = [tok], tok == eos
    for _ in range(max_new - 1):
        logits, cache = model(tok, cache=cache)
        probs = torch.softmax(logits[:, -1] / temperature, dim=-1)
        tok = torch.multinomial(probs, 1, generator=gen).masked_fill(done, eos)
        done = done | (tok == eos)
        out.append(tok)
    return torch.cat(out, dim=1)


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("checkpoint")
    ap.add_argument("--prompt", default="Once upon a time")
    ap.add_argument("-n", type=int, default=8)
    ap.add_argument("--max-new", type=int, default=200)
    ap.add_argument("--seed", type=int, default=0)
    a = ap.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    ckpt = torch.load(a.checkpoint, map_location=device, weights_only=True)
    model = GPT(GPTConfig(**ckpt["config"]))
    model.load_state_dict(ckpt["model"])
    model.to(device).eval()
    tok = Tokenizer("tok.model")
    prompt = tok.encode(a.prompt, bos=True)
    if len(prompt) + a.max_new > model.config.block_size:
        ap.error("prompt and --max-new do not fit the context")
    gen = torch.Generator(device=device).manual_seed(a.seed)
    rows = continuations(model, prompt, a.n, a.max_new, 0.9, tok.eos_id, gen)
    for row in rows.tolist():
        print(a.prompt + tok.decode(row[: row.index(tok.eos_id)] if tok.eos_id in row else row))


if __name__ == "__main__":
    main()
