"""Greedy GSM8K accuracy; calculator calls go through a small arithmetic parser."""
import argparse
import ast
import json
import operator
import re

import tiktoken
import torch

from gpt import GPT, GPTConfig, KVCache

ANSWER = re.compile(r"####\s*(-?[0-9\.,]+)")
CALC = re.compile(r"<<(.+?)=[^>]*>>")
OPS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.USub: operator.neg,
}


def eval_node(node):
    if isinstance(node, ast.Expression):
        return eval_node(node.body)
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return node.value
    if isinstance(node, ast.BinOp) and type(node.op) in OPS:
        return OPS[type(node.op)](eval_node(node.left), eval_node(node.right))
    if isinstance(node, ast.UnaryOp) and type(node.op) in OPS:
        return OPS[type(node.op)](eval_node(node.operand))
    raise ValueError(f"not arithmetic: {type(node).__name__}")


def calculator(expr):
    if len(expr) > 200:
        raise ValueError("expression too long")
    return eval_node(ast.parse(expr.replace(",", "").replace("$", "").strip(), mode="eval"))


def run_calculator(text):
    def fix(m):
        try:
            value = calculator(m.group(1))
        except (ValueError, SyntaxError, ZeroDivisionError, OverflowError, RecursionError):
            return m.group(0)
        return f"<<{m.group(1)}={value:g}>>{value:g}"

    return CALC.sub(fix, text)


@torch.inference_mode()
def complete(model, enc, prompt, device, max_new=256, check_every=32):
    model.eval()
    stop = enc.encode("\n\n")[0]
    ids = torch.tensor([enc.encode(prompt)], device=device)
    need = ids.size(1) + max_new
    if need > model.cfg.block_size:
        raise ValueError(f"{need} tokens exceed {model.cfg.block_size}")
    cache = KVCache(model.cfg, batch=1, length=need, device=device)
    tok = model(ids, cache=cache)[:, -1].argmax(-1, keepdim=True)
    cols, done = [tok], tok == stop
    for i in range(1, max_new):
        if i % check_every == 0 and bool(done.all()):
            break
        tok = model(tok, cache=cache)[:, -1].argmax(-1, keepdim=True)
        done |= tok == stop
        cols.append(tok)
    out = torch.cat(cols, dim=1)[0].tolist()
    return enc.decode(out[: out.index(stop)] if stop in out else out)


def extract(text):
    m = ANSWER.search(text)
    return m.group(1).replace(",", "").rstrip(".") if m else None


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("ckpt")
    ap.add_argument("--test", default="data/gsm8k_test.jsonl")
    ap.add_argument("--limit", type=int, default=None)
    args = ap.parse_args()

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    state = torch.load(args.ckpt, map_location=device, weights_only=True)
    model = GPT(GPTConfig(**state["config"])).to(device)
    model.load_state_dict(state["model"])
    if device.type == "cuda":
        model.bfloat16()
    enc = tiktoken.get_encoding("gpt2")

    with open(args.test) as f:
        problems = [json.loads(line) for line in f][: args.limit]
    right = 0
    for p in problems:
        text = run_calculator(complete(model, enc, f"Q: {p['question']}\nA:", device))
        right += extract(text) == extract(p["answer"])
    print(f"accuracy {right / len(problems):.4f} on {len(problems)}")


if __name__ == "__main__":
    main()
