"""Scores a model on arithmetic during training and leaves the model as it was."""
import ast
import contextlib
import operator
import re
from fractions import Fraction

import torch
import torch.nn.functional as F

OPS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def safe_value(text):
    """Value of a plain arithmetic expression; no names, calls or powers."""

    def walk(node):
        if isinstance(node, ast.Expression):
            return walk(node.body)
        if isinstance(node, ast.Constant) and type(node.value) is int:
            return Fraction(node.value)
        if isinstance(node, ast.BinOp) and type(node.op) in OPS:
            return OPS[type(node.op)](walk(node.left), walk(node.right))
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return -walk(node.operand)
        raise ValueError("unsupported expression")

    return walk(ast.parse(text[:200], mode="eval"))


def last_answer(reply):
    found = re.findall(r"answer:\s*([-+*/() 0-9]+)", reply)
    if not found:
        return None
    try:
        return safe_value(found[-1].strip())
    except (ValueError, SyntaxError, ZeroDivisionError, RecursionError):
        return None


@contextlib.contextmanager
def evaluating(net):
    was = net.training
    net.eval()
    try:
        with torch.no_grad():
            yield net
    finally:
        net.train(was)


def perplexity(net, batches):
    """batches: pinned, of one shape; net may be a compiled module."""
    total = torch.zeros((), device="cuda")
    count = 0
    with evaluating(net):
        for row in batches:
            row = row.cuda(non_blocking=True)
            out = net(row[:, :-1])
            total += F.cross_entropy(out.flatten(0, 1), row[:, 1:].flatten(), reduction="sum")
            count += row[:, 1:].numel()
    return (total / count).exp().item()


def accuracy(net, sampler, problems):
    """sampler(net, texts) -> replies, one for each text."""
    with evaluating(net):
        replies = sampler(net, [p["question"] for p in problems])
    right = sum(last_answer(r) == Fraction(p["answer"]) for r, p in zip(replies, problems))
    return right / len(problems)
