"""pass@1 on HumanEval-like problems."""
import gzip
import json
import signal
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

STOPS = ["\ndef ", "\nclass ", "\nif __name__", "\nprint("]


class Timeout(Exception):
    pass


def _alarm(signum, frame):
    raise Timeout


def read_problems(path):
    opener = gzip.open if str(path).endswith(".gz") else open
    with opener(path, "rt") as f:
        return [json.loads(line) for line in f if line.strip()]


def cut(text):
    ends = [text.find(s) for s in STOPS]
    ends = [e for e in ends if e >= 0]
    return text[: min(ends)] if ends else text


def check(problem, completion, seconds=5):
    program = problem["prompt"] + completion + "\n" + problem["test"]
    program += f"\ncheck({problem['entry_point']})\n"
    scope = {}
    signal.signal(signal.SIGALRM, _alarm)
    signal.alarm(seconds)
    try:
        exec(program, scope)
        return True
    except BaseException:
        return False
    finally:
        signal.alarm(0)


@torch.inference_mode()
def complete(model, tok, prompt):
    enc = tok(prompt, return_tensors="pt").to(model.device)
    out = model.generate(**enc, max_new_tokens=384, do_sample=False, pad_token_id=tok.eos_token_id)
    return cut(tok.decode(out[0, enc.input_ids.shape[1]:], skip_special_tokens=True))


def main(name, path="HumanEval.jsonl.gz"):
    tok = AutoTokenizer.from_pretrained(name)
    model = AutoModelForCausalLM.from_pretrained(name, torch_dtype="auto", device_map="auto").eval()
    problems = read_problems(Path(path))
    passed = 0
    with open("samples.jsonl", "w") as f:
        for i, p in enumerate(problems):
            c = complete(model, tok, p["prompt"])
            ok = check(p, c)
            passed += ok
            f.write(json.dumps({"task_id": p["task_id"], "completion": c, "passed": ok}) + "\n")
            print(f"{i + 1}/{len(problems)} {passed / (i + 1):.3f}", end="\r")
    print(f"\npass@1 = {passed / len(problems):.4f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
