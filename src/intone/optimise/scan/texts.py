"""Texts that a model may have written: the names that say so, and the parts that a text is made of."""

import ast
import re
from collections.abc import Sequence

from intone.optimise.scan.expressions import last_name

MODEL_TEXT = re.compile(
    r"(^|_)(decode|batch_decode|completion|completions|generate\w*|chat|complete|ask_llm|predict_text)($|_)"
)
MODEL_WORD = re.compile(
    r"(completion|generated|model_out|llm_|response|reply|answer|prediction|output_text|tool_(call|input|code|expr)|"
    r"assistant)",
    re.I,
)


TEXT_METHODS = (
    "strip", "replace", "split", "group", "groups", "lower", "upper", "rstrip", "lstrip", "join", "removeprefix",
    "removesuffix", "format", "partition", "rpartition", "rsplit", "splitlines", "title", "translate", "get", "pop",
)  # fmt: skip


def text_passes(node: ast.expr) -> Sequence[ast.expr]:
    """The parts of an expression that a text is made of."""
    if isinstance(node, ast.BinOp):
        return [node.left, node.right]
    if isinstance(node, ast.JoinedStr):
        return [part.value for part in node.values if isinstance(part, ast.FormattedValue)]
    if isinstance(node, (ast.Subscript, ast.Starred)):
        return [node.value]
    if isinstance(node, (ast.List, ast.Tuple, ast.Set)):
        return node.elts
    if isinstance(node, ast.Dict):
        return node.values
    if isinstance(node, (ast.ListComp, ast.GeneratorExp)):
        return [node.elt]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        if node.func.attr in TEXT_METHODS:
            return [node.func.value, *node.args]
        if node.func.attr in ("search", "match", "findall", "finditer", "sub", "fullmatch", "dedent", "compile"):
            return list(node.args[-2:])
        if node.func.attr in ("parse", "loads", "safe_load", "fromstring", "unescape"):  # of JSON, code or markup
            return list(node.args[:1])
    if (
        isinstance(node, ast.Call)
        and last_name(node.func) in ("str", "compile", "dedent", "max", "min", "next")
        and node.args
    ):
        return [node.args[0]]
    return []
