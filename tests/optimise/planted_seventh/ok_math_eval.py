"""pass@1 on a maths file; answers are parsed with a small checked grammar, never executed."""
import argparse
import ast
import json
import operator
import re
from fractions import Fraction

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

ANSWER = re.compile(r"ANSWER:\s*(.{1,80})")
OPS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def value(node):
    """Numbers, + - * / and unary minus; everything else is refused."""
    if isinstance(node, ast.Expression):
        return value(node.body)
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return Fraction(str(node.value))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -value(node.operand)
    if isinstance(node, ast.BinOp) and type(node.op) in OPS:
        return OPS[type(node.op)](value(node.left), value(node.right))
    raise ValueError(f"not allowed in an answer: {type(node).__name__}")


def parse_answer(text):
    found = ANSWER.findall(text)
    if not found:
        return None
    s = found[-1].replace(",", "").replace("$", "").strip().rstrip(".")
    try:
        return value(ast.parse(s, mode="eval"))
    except (ValueError, SyntaxError, ZeroDivisionError, RecursionError):
        return None


def parse_list(text):
    """For problems that ask for a set of integers, such as [2, 3, 5]."""
    try:
        got = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None
    if not isinstance(got, (list, tuple)) or not all(type(v) is int for v in got):
        return None
    return sorted(got)


class Solver:
    def __init__(self, name, max_new):
        self.tok = AutoTokenizer.from_pretrained(name)
        self.lm = AutoModelForCausalLM.from_pretrained(name, torch_dtype=torch.bfloat16).to("cuda").eval()
        self.lm.forward = torch.compile(self.lm.forward, dynamic=True)
        self.max_new = max_new

    @torch.inference_mode()
    def __call__(self, problem):
        ids = self.tok.apply_chat_template(
            [{"role": "user", "content": problem + "\nFinish with a line 'ANSWER: <expression>'."}],
            add_generation_prompt=True, return_tensors="pt").to("cuda")
        out = self.lm.generate(ids, do_sample=False, max_new_tokens=self.max_new, use_cache=True,
                               pad_token_id=self.tok.eos_token_id)
        return self.tok.decode(out[0, ids.size(1):], skip_special_tokens=True)


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("model")
    ap.add_argument("problems")
    ap.add_argument("--max-new", type=int, default=512)
    a = ap.parse_args()
    solve = Solver(a.model, a.max_new)
    right = n = 0
    with open(a.problems) as f:
        for line in f:
            row = json.loads(line)
            reply = solve(row["problem"])
            if row.get("kind") == "list":
                m = ANSWER.findall(reply)
                right += bool(m) and parse_list(m[-1]) == sorted(row["answer"])
            else:
                got = parse_answer(reply)
                right += got is not None and got == Fraction(str(row["answer"]))
            n += 1
            if n % 25 == 0:
                print(f"{n}: {right / n:.3f}", flush=True)
    print(json.dumps({"n": n, "pass@1": right / max(n, 1)}))


if __name__ == "__main__":
    main()
