"""Which small numbers of rows are no fault: chosen for each model, for an evaluation, or of many tokens each."""

import ast
import re
from collections.abc import Iterable

from intone.optimise.scan.expressions import text_of
from intone.optimise.scan.rulebook import Place
from intone.optimise.scan.source import Module

MANY_TOKENS = 8192  # in a pass: the products fill a device whatever the number of rows; guess
CONTEXT = re.compile(
    r"^(block_size|(max_)?(seq|sequence)_?(len|length)|context(_length|_len|_size)?|max_length|n_ctx|T)$", re.I
)
EVALUATES = re.compile(r"(^|_)(val|valid|validation|eval|test|dev)(_|$)")


def is_choice(node: ast.AST, module: Module) -> bool:
    """{"1B": 2, "150M": 32}.get(model, 4): chosen for each model, and what is named is the choice for none of them."""
    parts: list[ast.AST] = [node, *([node.value] if isinstance(node, ast.Assign) else [])]
    if node in module.parents:
        parts += [above for above in module.up(node) if isinstance(above, ast.Call)]
    return any(
        isinstance(one, ast.Call) and isinstance(one.func, ast.Attribute) and one.func.attr == "get"
        and isinstance(one.func.value, ast.Dict) and len(one.func.value.keys) > 1
        for one in parts
    )  # fmt: skip


def is_for_evaluation(node: ast.AST, module: Module) -> bool:
    """val_loader = DataLoader(val_rows, batch_size=4): nothing is accumulated there."""
    for above in [node, *module.up(node)] if node in module.parents else ():
        if isinstance(above, ast.Assign):
            return any(EVALUATES.search(text_of(target)) is not None for target in above.targets)
        if isinstance(above, ast.stmt):
            break
    return False


def tokens_at_once(place: Place, named: Iterable[tuple[str, int]]) -> str | None:
    """How many tokens go through the model at once, in words, where a file says so and they fill a device.

    named: the numbers that stand in the file under a name.
    """
    rows = re.search(r"is fixed at (\d+) row", place.message)
    for name, tokens in named if rows is not None else ():
        if rows is not None and CONTEXT.match(name) and (many := int(rows[1]) * tokens) >= MANY_TOKENS:
            return f"{rows[1]} rows of {tokens:,} tokens (`{name}`) are {many:,} tokens at once"
    return None
