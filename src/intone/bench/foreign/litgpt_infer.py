"""Generates with litgpt's own generate() on a random model of given dimensions, greedy, timed, block by block.

`PYTHON litgpt_infer.py --depth N --width N ...`: needs torch and litgpt. Its model has rotary positions over the whole
head, RMSNorm, GELU and no biases: the products of our classic preset, by other weights, so that texts are not compared.

One JSON object a line: first {"ready": true, ...}, then for each {"do": "block", "prompts": [[ids]], "new_tokens": N}
one answer {"seconds", "tokens", "ids" of the first text}, prompts one by one, until {"do": "quit"}.
"""

import argparse
import importlib
import importlib.metadata
import json
import os
import sys
import time

import torch

SCALE = 0.02  # standard deviation of the weights
NUMBERS = ("depth", "width", "num-heads", "head-width", "mlp-width", "vocab-size", "context")


def load(args):
    """litgpt's model with random weights, and its loop over tokens."""
    generate = importlib.import_module("litgpt.generate.base").generate
    config = importlib.import_module("litgpt.config").Config(
        name="random", block_size=args.context, vocab_size=args.vocab_size, padding_multiple=64, n_layer=args.depth,
        n_embd=args.width, n_head=args.num_heads, head_size=args.head_width, intermediate_size=args.mlp_width,
        rotary_percentage=1.0, norm_class_name="RMSNorm", parallel_residual=False, bias=False,
    )  # fmt: skip
    torch.manual_seed(0)
    model = importlib.import_module("litgpt.model").GPT(config).to(getattr(torch, args.dtype))
    model.eval().requires_grad_(False)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, SCALE)
    return model, generate


@torch.inference_mode()
def block(model, generate, prompts, new_tokens):
    """One prompt after the other, each with a cache of its length, as litgpt's command does."""
    texts = []
    begin = time.perf_counter()
    for prompt in prompts:
        length = len(prompt) + new_tokens
        model.max_seq_length = length
        model.set_kv_cache(batch_size=1, max_seq_length=length)
        found = generate(model, torch.tensor(prompt), length, temperature=0.0, top_p=0.0, include_prompt=False)
        model.clear_kv_cache()
        texts.append(found.tolist())
    return {"seconds": time.perf_counter() - begin, "tokens": sum(map(len, texts)), "ids": texts[0]}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--dtype", required=True)
    for name in NUMBERS:
        parser.add_argument(f"--{name}", type=int, required=True)
    args = parser.parse_args()
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever litgpt prints

    def answer(value):
        print(json.dumps(value), file=channel, flush=True)

    try:
        model, generate = load(args)
        first_s = block(model, generate, [[1, 2, 3]], 2)["seconds"]
    except (ImportError, ValueError, TypeError, AttributeError) as error:
        answer({"error": f"litgpt cannot generate: {error}", "outcome": "error", "fix": "pip install litgpt"})
        return 2
    products = sum(parameter.numel() for parameter in model.parameters() if parameter.dim() > 1)
    facts = {
        "version": importlib.metadata.version("litgpt"), "dtype": args.dtype, "threads": torch.get_num_threads(),
        "torch": torch.__version__, "matrix_parameters": products - model.transformer.wte.weight.numel(),
    }  # fmt: skip
    answer({"ready": True, "first_s": first_s, "warm_s": 0.0, "facts": facts})
    for line in sys.stdin:
        question = json.loads(line)
        if question["do"] == "quit":
            break
        answer(block(model, generate, question["prompts"], question["new_tokens"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
