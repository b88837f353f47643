"""Evaluate a HF causal LM on generation tasks: exact match and code pass@1."""
import argparse
import json
import urllib.request
from abc import ABC, abstractmethod
from io import BytesIO

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


class Task(ABC):
    def __init__(self, docs):
        self.docs = docs

    @abstractmethod
    def prompt(self, doc): ...

    @abstractmethod
    def score(self, doc, completion) -> float: ...


class ExactMatch(Task):
    def prompt(self, doc):
        return f"Q: {doc['question']}\nA:"

    def score(self, doc, completion):
        return float(completion.strip().split("\n")[0] == doc["answer"])


def run_program(source, env):
    exec(compile(source, "<candidate>", "exec"), env)
    return env


class CodePass(Task):
    def prompt(self, doc):
        return doc["signature"]

    def score(self, doc, completion):
        body = completion.split("\ndef ")[0]
        try:
            env = run_program(doc["signature"] + body, {})
            fn = env[doc["entry_point"]]
            return float(all(fn(*args) == want for args, want in doc["cases"]))
        except Exception:
            return 0.0


def fetch_docs(url):
    """Community task files are npz archives with a ``docs`` array."""
    with urllib.request.urlopen(url) as r:
        blob = np.load(BytesIO(r.read()), allow_pickle=True)
    return list(blob["docs"])


class HFModel:
    def __init__(self, name):
        self.tok = AutoTokenizer.from_pretrained(name)
        self.net = AutoModelForCausalLM.from_pretrained(name, torch_dtype=torch.bfloat16).cuda().eval()

    @torch.inference_mode()
    def complete(self, text, max_new=192):
        enc = self.tok(text, return_tensors="pt").to("cuda")
        out = self.net.generate(
            **enc,
            max_new_tokens=max_new,
            do_sample=False,
            use_cache=False,
            pad_token_id=self.tok.eos_token_id,
        )
        return self.tok.decode(out[0, enc.input_ids.shape[1]:], skip_special_tokens=True)


TASKS = {"em": ExactMatch, "code": CodePass}


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("model")
    ap.add_argument("--task", choices=sorted(TASKS), default="em")
    ap.add_argument("--docs", required=True)
    ap.add_argument("--limit", type=int)
    ap.add_argument("--report", default="report.json")
    a = ap.parse_args()

    lm = HFModel(a.model)
    task = TASKS[a.task](fetch_docs(a.docs)[: a.limit])
    scores = [task.score(d, lm.complete(task.prompt(d))) for d in task.docs]
    result = {"model": a.model, "task": a.task, "n": len(scores), "score": float(np.mean(scores))}
    with open(a.report, "w") as fh:
        json.dump(result, fh, indent=1)
    print(result)


if __name__ == "__main__":
    main()
