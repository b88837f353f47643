"""A rule on joining lists or tensors pair by pair: each step copies all that was joined before."""

import ast
import re
from collections.abc import Iterator

from intone.optimise.scan.expressions import code_of, keyword, last_name, text_of
from intone.optimise.scan.project import Project
from intone.optimise.scan.purpose import is_of_a_batch
from intone.optimise.scan.rulebook import Place, rule
from intone.optimise.scan.source import Module

OF_DATA = re.compile(
    r"doc|text|token|encode|shard|corpus|example|rows|ids|piece|chunk|batch|sample|line|file|record", re.I
)
JOINS = re.compile(r"\b(cat|concat|concatenate|hstack|append)\b")


@rule(
    "S71",
    "pieces joined pair by pair",
    kind="packing",
    severity="medium",
    why="Each addition makes a new list or tensor of everything so far: twice the texts, four times the work.",
    fix="Join once: itertools.chain.from_iterable for lists, torch.cat or numpy.concatenate of the list of all pieces.",
    source="Python reference of sum; nanochat-facts.md 4.2.13",
)
def joined_in_pairs(module: Module, project: Project) -> Iterator[Place]:
    """sum(rows, []), functools.reduce(lambda a, b: torch.cat([a, b]), pieces), reduce(operator.add, rows)."""
    for scope in module.scopes:
        for call in scope.calls:
            walked = _summed(call) or _reduced(call)
            if walked is not None and OF_DATA.search(text_of(walked)) and not is_of_a_batch(scope):
                told = (f"all of what was joined is copied for each of `{code_of(walked, 50)}`",)
                yield Place(call, f"`{code_of(call, 50)}` joins the pieces pair by pair", told)


def _summed(call: ast.Call) -> ast.expr | None:
    """What sum(x, []) or sum(x, start=()) goes over."""
    if not (isinstance(call.func, ast.Name) and call.func.id == "sum" and call.args):
        return None
    start = call.args[1] if len(call.args) > 1 else keyword(call, "start")
    return call.args[0] if isinstance(start, (ast.List, ast.Tuple)) and not start.elts else None


def _reduced(call: ast.Call) -> ast.expr | None:
    """What functools.reduce goes over where its function joins two pieces."""
    if last_name(call.func) != "reduce" or len(call.args) < 2:
        return None
    how, walked = call.args[:2]
    lists = len(call.args) > 2 and isinstance(call.args[2], (ast.List, ast.Tuple))
    if isinstance(how, ast.Lambda):
        plain = isinstance(how.body, ast.BinOp) and isinstance(how.body.op, ast.Add)
        joins = isinstance(how.body, ast.Call) and bool(JOINS.search(text_of(how.body.func)))
        return walked if joins or plain and lists else None
    return walked if lists and last_name(how) in ("add", "concat") else None
