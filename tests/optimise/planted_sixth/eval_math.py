import argparse
import json
import re

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer

ANSWER = re.compile(r"\\boxed\{([^}]*)\}|Answer:\s*(.+)")


def extract(text):
    m = ANSWER.search(text)
    return (m.group(1) or m.group(2)).strip() if m else None


def is_correct(completion, gold):
    expr = extract(completion)
    if expr is None:
        return False
    try:
        return abs(eval(expr.replace("^", "**")) - float(gold)) < 1e-6
    except Exception:
        return False


class Runner:
    def __init__(self, name, device):
        self.tok = AutoTokenizer.from_pretrained(name, padding_side="left")
        self.tok.pad_token = self.tok.pad_token or self.tok.eos_token
        self.model = AutoModelForCausalLM.from_pretrained(name, torch_dtype=torch.bfloat16).to(device)
        self.model.eval()
        self.device = device

    def complete(self, prompts):
        enc = self.tok(prompts, return_tensors="pt", padding=True).to(self.device)
        out = self.model.generate(**enc, max_new_tokens=256, do_sample=False)
        return self.tok.batch_decode(out[:, enc.input_ids.shape[1]:], skip_special_tokens=True)

    def nll(self, prompts, golds):
        seqs = [torch.tensor(self.tok(p + " " + g).input_ids) for p, g in zip(prompts, golds)]
        x = pad_sequence(seqs, batch_first=True).to(self.device)
        labels = pad_sequence(seqs, batch_first=True, padding_value=-100).to(self.device)
        return self.model(input_ids=x, labels=labels).loss


def batches(rows, n):
    for i in range(0, len(rows), n):
        yield rows[i : i + n]


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--model", required=True)
    ap.add_argument("--data", default="gsm_test.jsonl")
    ap.add_argument("--batch-size", type=int, default=16)
    args = ap.parse_args()

    with open(args.data) as f:
        rows = [json.loads(line) for line in f]
    runner = Runner(args.model, torch.device("cuda"))
    right, losses = 0, []
    for chunk in batches(rows, args.batch_size):
        prompts = [f"Question: {r['question']}\nGive the result as Answer: <expression>\n" for r in chunk]
        golds = [r["answer"] for r in chunk]
        outs = runner.complete(prompts)
        right += sum(is_correct(o, g) for o, g in zip(outs, golds))
        losses.append(runner.nll(prompts, golds))
    print(json.dumps({"acc": right / len(rows), "nll": torch.stack(losses).mean().item()}))


if __name__ == "__main__":
    main()
