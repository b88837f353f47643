import argparse
import json
import re
from fractions import Fraction

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

NUMBER = re.compile(r"Answer:\s*(-?\d+(?:\.\d+)?(?:/\d+)?)")


def is_correct(text, gold):
    m = NUMBER.search(text)
    if m is None:
        return False
    try:
        return Fraction(m.group(1)) == Fraction(gold)
    except (ValueError, ZeroDivisionError):
        return False


@torch.inference_mode()
def complete(model, tok, prompts):
    enc = tok(prompts, return_tensors="pt", padding=True).to(model.device)
    out = model.generate(**enc, max_new_tokens=256, do_sample=False)
    return tok.batch_decode(out[:, enc.input_ids.shape[1]:], skip_special_tokens=True)


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--model", required=True)
    ap.add_argument("--data", default="gsm_test.jsonl")
    ap.add_argument("--batch-size", type=int, default=32)
    a = ap.parse_args()
    tok = AutoTokenizer.from_pretrained(a.model, padding_side="left")
    tok.pad_token = tok.pad_token or tok.eos_token
    model = AutoModelForCausalLM.from_pretrained(a.model, torch_dtype="auto", device_map="auto")
    model.eval()
    with open(a.data) as f:
        rows = [json.loads(line) for line in f]
    right = 0
    for i in range(0, len(rows), a.batch_size):
        chunk = rows[i : i + a.batch_size]
        outs = complete(model, tok, [f"{r['question']}\nEnd with 'Answer: <number>'.\n" for r in chunk])
        right += sum(is_correct(o, r["answer"]) for o, r in zip(outs, chunk))
    print(json.dumps({"acc": right / len(rows)}))


if __name__ == "__main__":
    main()
