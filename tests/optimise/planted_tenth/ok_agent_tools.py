"""A question-answering agent with a calculator that parses instead of running what it is given."""
import ast
import json
import math
import operator
from typing import Callable, Dict

import torch
from transformers import pipeline

PROTOCOL = (
    'Reply with one JSON object: {"tool": "calc", "input": "..."} '
    'or {"tool": "final", "input": "..."}.'
)

BINARY = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Mod: operator.mod,
}
CALLS: Dict[str, Callable[[float], float]] = {"sqrt": math.sqrt, "log": math.log, "exp": math.exp}


def value(node: ast.AST) -> float:
    if isinstance(node, ast.Expression):
        return value(node.body)
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return float(node.value)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -value(node.operand)
    if isinstance(node, ast.BinOp) and type(node.op) in BINARY:
        return BINARY[type(node.op)](value(node.left), value(node.right))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CALLS:
        if len(node.args) == 1 and not node.keywords:
            return CALLS[node.func.id](value(node.args[0]))
    raise ValueError(f"{type(node).__name__} is not allowed")


def calc(expression: str) -> str:
    if len(expression) > 200:
        return "error: too long"
    try:
        return repr(value(ast.parse(expression, mode="eval")))
    except (SyntaxError, ValueError, ArithmeticError) as exc:
        return f"error: {exc}"


class Agent:
    def __init__(self, model: str, max_turns: int = 6):
        self.chat = pipeline("text-generation", model=model, device=0, torch_dtype=torch.bfloat16)
        self.max_turns = max_turns

    def ask(self, question: str) -> str:
        talk = [{"role": "system", "content": PROTOCOL}, {"role": "user", "content": question}]
        for _ in range(self.max_turns):
            reply = self.chat(talk, max_new_tokens=200, do_sample=False)[0]["generated_text"][-1]["content"]
            talk.append({"role": "assistant", "content": reply})
            try:
                call = json.loads(reply)
            except json.JSONDecodeError:
                call = None
            if not isinstance(call, dict):
                talk.append({"role": "user", "content": "That was not a JSON object. " + PROTOCOL})
                continue
            given = str(call.get("input", ""))
            if call.get("tool") == "final":
                return given
            seen = calc(given) if call.get("tool") == "calc" else "no such tool"
            talk.append({"role": "user", "content": f"Result: {seen}"})
        return "I could not find out."
