"""A rule on sampling: one drawn token must not become the token of many rows."""

import ast
from collections.abc import Iterator

from intone.optimise.scan.expressions import called, code_of, keyword, last_name
from intone.optimise.scan.project import Project
from intone.optimise.scan.rulebook import Place, rule
from intone.optimise.scan.source import Module, Scope
from intone.optimise.scan.values import chooses_token, is_chosen, token_passes


@rule(
    "S01",
    "sampled token copied over rows",
    kind="copied-token",
    severity="high",
    why="Every row begins with the same drawn token, so the samples of a prompt are not independent: pass@k, votes and "
    "RL advantages are computed over copies.",
    fix="Expand the logits of the prompt to (rows, vocabulary) before sampling, and draw once per row; at "
    "temperature 0 "
    "the rows stay equal, above it they differ.",
    source="optimiser.md D22; nanochat 8f979a8 repairs the same fault",
)
def copied_token(module: Module, project: Project) -> Iterator[Place]:
    """A value drawn from probabilities, then repeated: [t] * n, expand, repeat, full, [t for _ in range(n)]."""
    for scope in module.scopes:
        for node in scope.body:
            copied = _copied(node, scope)
            if copied is None:
                continue
            value, how = copied
            if not _is_single(value, scope, project) or not is_chosen(value, scope, project):
                continue
            if isinstance(module.parents.get(node), ast.Subscript):
                continue
            yield Place(
                node,
                f"`{code_of(value, 40)}` was drawn once and is repeated for every row ({how})",
                (f"copied by {how} at line {node.lineno}", *_drawn_at(value, scope, project)),  # type: ignore[attr-defined]
            )


def _copied(node: ast.AST, scope: Scope) -> tuple[ast.expr, str] | None:
    """(the value that is copied, how) where an expression makes copies of a value."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        for one, count in ((node.left, node.right), (node.right, node.left)):
            if isinstance(one, ast.List) and len(one.elts) == 1 and not _is_one(count):
                return one.elts[0], "list * n"
    if isinstance(node, ast.ListComp) and len(node.generators) == 1:
        loop = node.generators[0]
        names = {part.id for part in ast.walk(loop.target) if isinstance(part, ast.Name)}
        used = {part.id for part in ast.walk(node.elt) if isinstance(part, ast.Name)}
        if last_name(getattr(loop.iter, "func", loop.iter)) == "range" and not names & used:
            return node.elt, "one element for each of range(n)"
    if isinstance(node, ast.Call):
        return _copied_by_call(node, scope)
    return None


def _copied_by_call(node: ast.Call, scope: Scope) -> tuple[ast.expr, str] | None:
    name = called(node, scope)
    last = name.rpartition(".")[2]
    if name in ("torch.full", "np.full", "numpy.full", "torch.full_like", "numpy.full_like"):
        filler = node.args[1] if len(node.args) > 1 else keyword(node, "fill_value")
        return (filler, last) if filler is not None else None
    if name in ("itertools.repeat", "np.repeat", "numpy.repeat", "np.tile", "numpy.tile", "torch.tile") and node.args:
        return node.args[0], last
    if isinstance(node.func, ast.Attribute) and last in ("expand", "expand_as", "repeat", "repeat_interleave", "tile"):
        if all(_is_one(arg) for arg in node.args):
            return None
        return node.func.value, f".{last}()"
    if isinstance(node.func, ast.Attribute) and last == "fill_" and node.args:
        return node.args[0], ".fill_()"
    return None


def _is_one(node: ast.expr) -> bool:
    """1, -1 or something that is no count at all."""
    if isinstance(node, ast.UnaryOp):
        return isinstance(node.operand, ast.Constant)
    return isinstance(node, ast.Constant) and node.value == 1


def _is_single(value: ast.expr, scope: Scope, project: Project) -> bool:
    """Whether the copied value can be one token: not the column of all rows' tokens with a new last axis."""
    parts = [value, *token_passes(value)]
    # logits.expand(n, -1) before sampling is the repair, not the fault: what is copied there is no chosen token
    return not any(isinstance(part, ast.Constant) for part in parts[:1])


def _drawn_at(value: ast.expr, scope: Scope, project: Project) -> tuple[str, ...]:
    for origin in project.origins(value, scope, token_passes):
        if isinstance(origin.node, ast.Call) and chooses_token(origin.node, origin.scope):
            return (f"drawn by {code_of(origin.node, 50)} at {origin.scope.module.path}:{origin.node.lineno}",)
    return ()
