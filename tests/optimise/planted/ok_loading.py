"""Loading and parsing without running what was loaded."""
import ast
import io
import json
import operator
import re
import urllib.request

import numpy as np
import torch

OPS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def weights(url, model):
    with urllib.request.urlopen(url) as reply:
        blob = io.BytesIO(reply.read())
    model.load_state_dict(torch.load(blob, map_location="cpu", weights_only=True))
    model.eval()
    return model


def table(path):
    return torch.from_numpy(np.load(path, allow_pickle=False))


def work_out(node):
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        return node.value
    if isinstance(node, ast.BinOp) and type(node.op) in OPS:
        return OPS[type(node.op)](work_out(node.left), work_out(node.right))
    raise ValueError("not arithmetic")


def calculator(completion):
    """The first <calc> of a completion, by a parser of four operations."""
    found = re.search(r"<calc>(.*?)</calc>", completion)
    if not found:
        return None
    try:
        return work_out(ast.parse(found.group(1), mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError):
        return None


def arguments(completion):
    try:
        return json.loads(completion)
    except json.JSONDecodeError:
        return {}


def literal(completion):
    return ast.literal_eval(completion)
