"""Rewards for arithmetic and JSON tasks; model text is parsed, never run."""
import ast
import json
import operator
import re

import torch

BINARY = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
UNARY = {ast.UAdd: operator.pos, ast.USub: operator.neg}
FINAL = re.compile(r"####\s*([^\n]+)")
MAX_CHARS = 200


def value_of(node):
    if isinstance(node, ast.Expression):
        return value_of(node.body)
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return node.value
    if isinstance(node, ast.BinOp) and type(node.op) in BINARY:
        return BINARY[type(node.op)](value_of(node.left), value_of(node.right))
    if isinstance(node, ast.UnaryOp) and type(node.op) in UNARY:
        return UNARY[type(node.op)](value_of(node.operand))
    raise ValueError(f"{type(node).__name__} is not arithmetic")


def arithmetic(text):
    text = text.strip().replace(",", "")
    if len(text) > MAX_CHARS:
        raise ValueError("expression too long")
    return value_of(ast.parse(text, mode="eval"))


def arithmetic_reward(completion, expected, tol=1e-6):
    found = FINAL.findall(completion)
    if not found:
        return 0.0
    try:
        got = arithmetic(found[-1])
    except (ValueError, SyntaxError, ZeroDivisionError, OverflowError, RecursionError):
        return 0.0
    return 1.0 if abs(got - expected) <= tol * max(1.0, abs(expected)) else 0.0


def json_reward(completion, required):
    try:
        value = json.loads(completion)
    except json.JSONDecodeError:
        return 0.0
    if not isinstance(value, dict):
        return 0.1
    return sum(key in value for key in required) / len(required)


def list_reward(completion, expected):
    try:
        value = ast.literal_eval(completion.strip()[:MAX_CHARS])
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return 0.0
    return float(value == expected)


def group_rewards(completions, expected, device):
    """Rewards and group-normalised advantages of the answers to one question."""
    rewards = torch.tensor([arithmetic_reward(c, expected) for c in completions])
    advantages = (rewards - rewards.mean()) / (rewards.std(unbiased=False) + 1e-6)
    return rewards.to(device), advantages.to(device)
