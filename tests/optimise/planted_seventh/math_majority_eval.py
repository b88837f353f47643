# maj@k on a GSM8K-style file.  Each problem is sampled k times and the most
# common numeric answer is compared with the reference.
import collections
import json
import re
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, set_seed

PROMPT = (
    "Solve the problem. Finish with a line of the form\n"
    "ANSWER: <arithmetic expression>\n\n"
    "Problem: {q}\nSolution:"
)
ANSWER_RE = re.compile(r"ANSWER:\s*(.+)")

SAMPLING = {
    "do_sample": True,
    "temperature": 0.7,
    "top_p": 0.95,
    "max_new_tokens": 400,
    "use_cache": False,
}


class Sampler:
    """k completions of one prompt."""

    def __init__(self, name, k):
        self.k = k
        self.tok = AutoTokenizer.from_pretrained(name)
        self.lm = AutoModelForCausalLM.from_pretrained(name, torch_dtype=torch.bfloat16, device_map="cuda").eval()
        self.lm.forward = torch.compile(self.lm.forward, dynamic=True)
        self.gen_cfg = GenerationConfig(
            **SAMPLING,
            num_return_sequences=k,
            pad_token_id=self.tok.eos_token_id,
            eos_token_id=self.tok.eos_token_id,
        )

    @torch.inference_mode()
    def __call__(self, question):
        ids = self.tok(PROMPT.format(q=question), return_tensors="pt").to("cuda")
        out = self.lm.generate(**ids, generation_config=self.gen_cfg)
        return self.tok.batch_decode(out[:, ids["input_ids"].shape[1]:], skip_special_tokens=True)


def numeric(completion):
    found = ANSWER_RE.findall(completion)
    if not found:
        return None
    expr = found[-1].replace(",", "").replace("$", "").strip().rstrip(".")
    try:
        return round(float(eval(expr)), 4)
    except Exception:
        return None


def majority(answers):
    votes = collections.Counter(a for a in answers if a is not None)
    return votes.most_common(1)[0][0] if votes else None


def main(model_name, path, k=16, seed=0):
    set_seed(seed)
    sampler = Sampler(model_name, k)
    right = total = 0
    any_right = 0
    with open(path) as f:
        problems = [json.loads(line) for line in f]
    for i, row in enumerate(problems):
        want = round(float(row["answer"].split("####")[-1].replace(",", "")), 4)
        answers = [numeric(c) for c in sampler(row["question"])]
        right += majority(answers) == want
        any_right += want in answers
        total += 1
        if (i + 1) % 20 == 0:
            print(f"{i + 1}/{len(problems)}  maj@{k} {right / total:.3f}  pass@{k} {any_right / total:.3f}", flush=True)
    print(json.dumps({"model": model_name, "n": total, f"maj@{k}": right / total, f"pass@{k}": any_right / total}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *(int(a) for a in sys.argv[3:5]))
