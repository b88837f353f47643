import argparse
import json
import signal
from contextlib import contextmanager

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

STOPS = ("\nclass ", "\ndef ", "\n#", "\nif __name__", "\nprint(")


class Timeout(Exception):
    pass


@contextmanager
def limit(seconds):
    def handler(signum, frame):
        raise Timeout()

    signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def truncate(text):
    cut = min((text.find(s) for s in STOPS if s in text), default=len(text))
    return text[:cut]


def passes(problem, completion):
    program = "\n".join([problem["prompt"] + completion, problem["test"], f"check({problem['entry_point']})"])
    scope = {}
    try:
        with limit(5.0):
            exec(program, scope)
    except BaseException:
        return False
    return True


class Generator:
    def __init__(self, name, device="cuda"):
        self.tok = AutoTokenizer.from_pretrained(name)
        self.lm = AutoModelForCausalLM.from_pretrained(name, torch_dtype="auto").to(device).eval()
        self.kwargs = dict(
            do_sample=False,
            max_new_tokens=384,
            use_cache=False,
            pad_token_id=self.tok.eos_token_id,
        )

    @torch.inference_mode()
    def __call__(self, prompt):
        enc = self.tok(prompt, return_tensors="pt").to(self.lm.device)
        out = self.lm.generate(**enc, **self.kwargs)
        return truncate(self.tok.decode(out[0, enc.input_ids.size(1):], skip_special_tokens=True))


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("model")
    ap.add_argument("--problems", default="HumanEval.jsonl")
    args = ap.parse_args()
    with open(args.problems) as fh:
        problems = [json.loads(line) for line in fh]
    gen = Generator(args.model)
    solved = sum(passes(p, gen(p["prompt"])) for p in problems)
    print(f"pass@1 = {solved / len(problems):.3f}")


if __name__ == "__main__":
    main()
