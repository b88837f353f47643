"""Generates with transformers' generate() on a folder that AutoModelForCausalLM loads, greedy, timed, block by block.

`PYTHON transformers_infer.py --folder PATH --dtype float32`: needs torch and transformers. One JSON object a line:
first {"ready": true, ...}, then for each {"do": "block", "prompts": [[ids]], "new_tokens": N} one answer {"seconds",
"tokens", "ids" of the first text}, prompts one by one, until {"do": "quit"}.
"""

import argparse
import json
import os
import sys
import time

import torch


@torch.inference_mode()
def block(model, prompts, new_tokens):
    texts = []
    begin = time.perf_counter()
    for prompt in prompts:
        ids = torch.tensor([prompt])
        found = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            do_sample=False,
        )
        texts.append(found[0, len(prompt) :].tolist())
    return {"seconds": time.perf_counter() - begin, "tokens": sum(map(len, texts)), "ids": texts[0]}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", required=True)
    parser.add_argument("--dtype", required=True)
    args = parser.parse_args()
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(value):
        print(json.dumps(value), file=channel, flush=True)

    try:
        import transformers

        model = transformers.AutoModelForCausalLM.from_pretrained(args.folder, dtype=getattr(torch, args.dtype)).eval()
        first_s = block(model, [[1, 2, 3]], 2)["seconds"]
    except (ImportError, ValueError, OSError) as error:
        answer(
            {"error": f"transformers cannot generate: {error}", "outcome": "error", "fix": "pip install transformers"}
        )
        return 2
    facts = {
        "architecture": type(model).__name__, "version": transformers.__version__, "dtype": str(model.dtype),
        "threads": torch.get_num_threads(), "torch": torch.__version__,
    }  # fmt: skip
    answer({"ready": True, "first_s": first_s, "warm_s": 0.0, "facts": facts})
    for line in sys.stdin:
        question = json.loads(line)
        if question["do"] == "quit":
            break
        answer(block(model, question["prompts"], question["new_tokens"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
