"""Generates with nanochat's Engine as it is shipped: prompts one by one, greedy, timed, block by block as it is told.

`PYTHON nanochat_infer.py --nanochat CHECKOUT --depth N ...`: needs torch and the checkout. Model, cache and loop are
nanochat's (92d63d4); weights are random in its own layout, none of them zero. Its tokenizer is not needed to generate
ids: a stand-in names special tokens that no text contains, so that nothing ends early.

One JSON object a line: first {"ready": true, ...}, then for each {"do": "block", "prompts": [[ids]], "new_tokens": N}
one answer {"seconds", "tokens", "ids" of the first text}, until {"do": "quit"}. NANOCHAT_DTYPE and OMP_NUM_THREADS
are read by nanochat and torch.
"""

import argparse
import importlib
import json
import os
import sys
import time
import types

import torch

SCALE = 0.02  # standard deviation of the weights


class StandIn:
    """nanochat's tokenizer as far as its Engine asks: no id of a special token is ever drawn."""

    def encode_special(self, text):
        return -1

    def get_bos_token_id(self):
        return -1


def load(args):
    """nanochat's Engine around a random model."""
    sys.path.insert(0, args.nanochat)
    try:
        importlib.import_module("rustbpe")
    except ImportError:  # of its tokenizer, which nothing here calls
        sys.modules["rustbpe"] = types.ModuleType("rustbpe")
    gpt = importlib.import_module("nanochat.gpt")
    engine = importlib.import_module("nanochat.engine")
    width = args.depth * args.aspect_ratio
    heads = width // args.head_width
    config = gpt.GPTConfig(
        sequence_len=args.context, vocab_size=args.vocab_size, n_layer=args.depth, n_head=heads, n_kv_head=heads,
        n_embd=width, window_pattern=args.window_pattern,
    )  # fmt: skip
    device = torch.device(args.device)
    with torch.device("meta"):
        model = gpt.GPT(config)
    model.to_empty(device=device)
    model.init_weights()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, SCALE)
    return engine.Engine(model.eval(), StandIn()), device


def block(engine, device, prompts, new_tokens):
    """One prompt after the other, as nanochat's evaluations do."""
    texts = []
    wait(device)
    begin = time.perf_counter()
    for prompt in prompts:
        columns = engine.generate(prompt, num_samples=1, max_tokens=new_tokens, temperature=0.0)
        texts.append([column[0] for column, _ in columns])
    wait(device)
    seconds = time.perf_counter() - begin
    return {"seconds": seconds, "tokens": sum(map(len, texts)), "ids": texts[0]}


def wait(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--nanochat", required=True)
    parser.add_argument("--window-pattern", required=True)
    parser.add_argument("--device", default="cpu")
    for name in ("depth", "context", "vocab-size", "aspect-ratio", "head-width"):
        parser.add_argument(f"--{name}", type=int, required=True)
    args = parser.parse_args()
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever nanochat prints

    def answer(value):
        print(json.dumps(value), file=channel, flush=True)

    try:
        engine, device = load(args)
        first_s = block(engine, device, [[1, 2, 3]], 2)["seconds"]
    except (ImportError, AttributeError, TypeError, OSError) as error:
        answer({"error": f"this checkout cannot generate: {error}", "outcome": "error", "fix": None})
        return 2
    dtype = str(sys.modules["nanochat.common"].COMPUTE_DTYPE)
    facts = {"dtype": dtype, "threads": torch.get_num_threads(), "torch": torch.__version__}
    answer({"ready": True, "first_s": first_s, "warm_s": 0.0, "facts": facts})
    for line in sys.stdin:
        question = json.loads(line)
        if question["do"] == "quit":
            break
        answer(block(engine, device, question["prompts"], question["new_tokens"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
