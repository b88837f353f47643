"""GSM8K accuracy with calculator annotations, greedy decoding."""
import argparse
import json
import re

import tiktoken
import torch

from gpt import GPT, GPTConfig

ANSWER = re.compile(r"####\s*(-?[0-9\.,]+)")
CALC = re.compile(r"<<(.+?)=[^>]*>>")

FEWSHOT = open("prompts/gsm8k_4shot.txt").read()


class GreedyDecoder:
    def __init__(self, model, enc, device):
        self.model = model
        self.enc = enc
        self.device = device
        self.newline = enc.encode("\n\n")[0]

    def _advance(self, ids):
        logits = self.model(ids)[0]
        return torch.cat([ids, logits[:, -1].argmax(-1, keepdim=True)], dim=1)

    @torch.inference_mode()
    def complete(self, prompt, max_new=256):
        ids = torch.tensor([self.enc.encode(prompt)], device=self.device)
        start = ids.size(1)
        if start + max_new > self.model.cfg.block_size:
            raise ValueError(f"{start} prompt tokens leave no room for {max_new}")
        for _ in range(max_new):
            ids = self._advance(ids)
        out = ids[0, start:].tolist()
        if self.newline in out:
            out = out[: out.index(self.newline)]
        return self.enc.decode(out)


def run_calculator(completion):
    """Re-evaluates <<a*b=c>> annotations and puts the result in the text."""

    def fix(m):
        expr = m.group(1).replace(",", "").replace("$", "")
        try:
            value = eval(expr)
        except Exception:
            return m.group(0)
        return f"<<{m.group(1)}={value:g}>>{value:g}"

    return CALC.sub(fix, completion)


def extract(text):
    m = ANSWER.search(text)
    return m.group(1).replace(",", "").rstrip(".") if m else None


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("ckpt")
    ap.add_argument("--test", default="data/gsm8k_test.jsonl")
    ap.add_argument("--limit", type=int, default=None)
    ap.add_argument("--dump", default="gsm8k_preds.jsonl")
    args = ap.parse_args()

    device = "cuda" if torch.cuda.is_available() else "cpu"
    state = torch.load(args.ckpt, map_location=device, weights_only=True)
    model = GPT(GPTConfig(**state["config"]))
    model.load_state_dict(state["model"])
    model.to(device).eval()
    decoder = GreedyDecoder(model, tiktoken.get_encoding("gpt2"), device)

    with open(args.test) as f:
        problems = [json.loads(line) for line in f][: args.limit]

    right = 0
    with open(args.dump, "w") as dump:
        for i, p in enumerate(problems):
            text = decoder.complete(f"{FEWSHOT}\n\nQ: {p['question']}\nA:")
            text = run_calculator(text)
            ok = extract(text) == extract(p["answer"])
            right += ok
            dump.write(json.dumps({"id": i, "text": text, "ok": ok}) + "\n")
    print(f"accuracy {right / len(problems):.4f} on {len(problems)}")


if __name__ == "__main__":
    main()
