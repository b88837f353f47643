"""One random number, or one row of noise, that is copied over all rows before each row's token is chosen with it."""

import ast
import re
from collections.abc import Iterator

from intone.optimise.scan.copying import copied
from intone.optimise.scan.expressions import code_of, last_name
from intone.optimise.scan.noise import drawn_once, parts_of
from intone.optimise.scan.project import Project
from intone.optimise.scan.rulebook import Place
from intone.optimise.scan.rules.shared_noise import shared_noise
from intone.optimise.scan.source import Module
from intone.optimise.scan.values import spelled

# what makes tokens of numbers and scores -> what is in its making
INVERTS = {
    "searchsorted": "cum", "bucketize": "cum", "digitize": "cum", "sum": "cum",
    "argmax": r"cum|log\(|exponential|gumbel",
}  # fmt: skip


def numbers_for_all(module: Module, project: Project) -> Iterator[Place]:
    """searchsorted(cdf, torch.rand(1).expand(rows, 1)), (logits + gumbel(1, vocab).expand(rows, -1)).argmax(-1)"""
    if "rand" not in module.text and "uniform_" not in module.text and "exponential_" not in module.text:
        return
    for scope in module.scopes:
        told: set[ast.AST] = set()
        for call in scope.calls:
            making = INVERTS.get(last_name(call.func) or "")
            if making is None or not re.search(making, spelled(call, scope, 3)):
                continue
            for part, at in parts_of(call, scope, project):
                made = copied(part, at) if part not in told and _covers_rows(part) else None
                number = drawn_once(made[0], at, project, 12) if made is not None else None
                if made is None or number is None or any(number[0] is p.node for p in shared_noise(module, project)):
                    continue
                told.add(part)
                yield Place(
                    part,
                    f"`{code_of(number[0], 40)}` is drawn once and copied for every row ({made[1]})",
                    (
                        f"each row's token is chosen with it by {code_of(call, 50)} at line {call.lineno}",
                        "rows with the same scores get the same token, so samples of one prompt are copies",
                    ),
                    scope=at,
                )


def _covers_rows(node: ast.AST) -> bool:
    """Whether a copy has more than one row, by what is written of its size: not expand(1, n), full((1, n), u)."""
    if not isinstance(node, ast.Call):
        return isinstance(node, (ast.BinOp, ast.ListComp))
    counts = node.args[:1]
    if last_name(node.func) in ("broadcast_to", "repeat", "tile", "expand") and len(node.args) == 2 and (
        isinstance(node.args[1], (ast.Tuple, ast.List))
    ):  # fmt: skip
        counts = node.args[1:]
    first = counts[0] if counts else None
    if isinstance(first, (ast.Tuple, ast.List)):
        first = first.elts[0] if first.elts else None
    if isinstance(first, ast.UnaryOp):
        return False
    return first is not None and not (isinstance(first, ast.Constant) and first.value == 1)
