"""A rule on sampling: one drawn token must not become the token of many rows."""

import ast
import re
from collections.abc import Iterator

from intone.optimise.scan.calls import classes_of
from intone.optimise.scan.expressions import called, code_of, is_true, keyword, last_name, names_in
from intone.optimise.scan.project import Project
from intone.optimise.scan.rulebook import Place, rule
from intone.optimise.scan.source import Module, Scope, target_name, walk
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
        for node in scope.of(ast.BinOp, ast.ListComp, ast.DictComp, ast.Call, ast.Assign):
            copied = _copied(node, scope) or _given_to_all(node, scope) or _spread(node, scope, project)
            if copied is None:
                continue
            value, how = copied
            if not _is_single(value, scope, project) or not _is_drawn(value, scope, project):
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
            if isinstance(one, ast.Call) and last_name(one.func) in ("ones", "ones_like", "new_ones"):
                return count, "ones * token"
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        for one, other in ((node.left, node.right), (node.right, node.left)):
            if isinstance(one, ast.Call) and last_name(one.func) in ("zeros", "zeros_like", "new_zeros"):
                return other, "zeros + token"
    if isinstance(node, ast.ListComp) and len(node.generators) == 1:
        loop = node.generators[0]
        names = {part.id for part in walk(loop.target) if isinstance(part, ast.Name)}
        used = {part.id for part in walk(node.elt) if isinstance(part, ast.Name)}
        if not names & used:
            return _original(node.elt), f"one element for each of {code_of(loop.iter, 20)}"
    if isinstance(node, ast.DictComp) and not names_in(node.value) & names_in(node.generators[0].target):
        return node.value, f"one entry for each of {code_of(node.generators[0].iter, 20)}"
    if isinstance(node, ast.Call):
        return _copied_by_call(node, scope)
    return None


def _copied_by_call(node: ast.Call, scope: Scope) -> tuple[ast.expr, str] | None:
    name = called(node, scope)
    last = name.rpartition(".")[2]
    if name in ("torch.full", "np.full", "numpy.full", "torch.full_like", "numpy.full_like"):
        filler = node.args[1] if len(node.args) > 1 else keyword(node, "fill_value")
        return (filler, last) if filler is not None else None
    if (
        name
        in ("itertools.repeat", "einops.repeat", "np.repeat", "numpy.repeat", "np.tile", "numpy.tile", "torch.tile")
        and node.args
    ):
        return node.args[0], last
    if isinstance(node.func, ast.Attribute) and last in ("expand", "expand_as", "repeat", "repeat_interleave", "tile"):
        if all(_is_one(arg) for arg in node.args):
            return None
        return node.func.value, f".{last}()"
    if isinstance(node.func, ast.Attribute) and last == "fill_" and node.args:
        return node.args[0], ".fill_()"
    if isinstance(node.func, ast.Attribute) and last == "new_full" and len(node.args) > 1:
        return node.args[1], ".new_full()"
    if last in ("broadcast_to", "fromkeys") and node.args:
        method = last == "broadcast_to" and not name.startswith(("torch.", "np.", "numpy."))
        if method and isinstance(node.func, ast.Attribute):
            return node.func.value, last
        return (node.args[-1] if last == "fromkeys" else node.args[0]), last
    return None


def _given_to_all(node: ast.AST, scope: Scope) -> tuple[ast.expr, str] | None:
    """for row in rows: row.append(token); tokens[:, 0] = token.item(): one number goes to every row."""
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Subscript):
        index = node.targets[0].slice
        first = index.elts[0] if isinstance(index, ast.Tuple) and len(index.elts) > 1 else None
        every = isinstance(first, ast.Slice) and first.lower is None and first.upper is None
        every = every or isinstance(index, ast.Slice) and index.lower is None and index.upper is None
        if every:
            return (node.value, "one number for a column") if _is_number(node.value, scope) else None
        return _in_each_turn(node, node.targets[0].value, index, node.value, scope)
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute):  # for row in rows: row.last = token
        holder = node.targets[0].value
        return _in_each_turn(node, holder, None, node.value, scope) if ROW.search(target_name(holder) or "") else None
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or not node.args:
        return None
    if node.func.attr not in ("append", "extend") and not ROW.search(target_name(node.func.value) or ""):
        return None
    return _in_each_turn(node, node.func.value, None, node.args[0], scope)


# names of one of several texts that are written side by side
ROW = re.compile(r"(^|[._])(row|seq|sequence|sample|branch|beam|state|slot|request|cand\w*|hyp\w*|completion|rollout)$")


def _original(node: ast.expr) -> ast.expr:
    """What deepcopy(state), state.clone() or replace(state, row=i) is a copy of; anything else itself."""
    if isinstance(node, ast.Call):
        if last_name(node.func) in ("deepcopy", "copy", "replace") and node.args:
            return node.args[0]
        if last_name(node.func) in ("clone", "copy", "fork") and isinstance(node.func, ast.Attribute):
            return node.func.value
    return node


def _in_each_turn(
    node: ast.AST, holder: ast.expr, index: ast.expr | None, value: ast.expr, scope: Scope
) -> tuple[ast.expr, str] | None:
    """for i in range(n): rows[i].append(token), out[i, t] = token: with a token that does not change in the loop."""
    loops = scope.module.loops_around(node)
    if not loops or not isinstance(loops[0], ast.For):
        return None
    loop = loops[0]
    turned = names_in(loop.target)
    row = index.elts[0] if isinstance(index, ast.Tuple) and index.elts else index
    to_row = bool({name.partition(".")[0] for name in names_in(holder)} & turned) or (
        row is not None and bool(names_in(row) & turned)
    )
    named = names_in(value)
    made_inside = any(
        any(above is loop for above in scope.module.up(binding.node)) or binding.node is loop
        for name in named for binding in scope.bindings.get(name, [])
    )  # fmt: skip
    if not to_row or named & turned or made_inside or not named:
        return None
    return value, f"the same for each of {code_of(loop.iter, 20)}"


def _spread(node: ast.AST, scope: Scope, project: Project) -> tuple[ast.expr, str] | None:
    """out[:, t] = draw(logits[:1]), where(done, pad, draw(probs[0])): one row's draw fills a column."""
    if isinstance(node, ast.Assign) and isinstance(target := node.targets[0], ast.Subscript):
        index = target.slice.elts[0] if isinstance(target.slice, ast.Tuple) and target.slice.elts else target.slice
        every = isinstance(index, ast.Slice) and index.lower is None and index.upper is None
        if not every or not _has_rows(target.value, scope):
            return None
        value: ast.expr = node.value
    elif isinstance(node, ast.Call) and last_name(node.func) == "where" and len(node.args) == 3:
        value = next((arg for arg in node.args[1:] if is_chosen(arg, scope, project)), node.args[1])
    else:
        return None
    row = _one_row(value, scope, 4)
    return (value, f"drawn from `{code_of(row, 30)}`, spread over all rows") if row is not None else None


def _has_rows(node: ast.expr, scope: Scope) -> bool:
    """Whether a tensor was made with a first size that is no 1: full((rows, length), pad), zeros(rows, length)."""
    for binding in scope.bindings.get(target_name(node) or "", []):
        made = binding.value
        if binding.how != "=" or not isinstance(made, ast.Call) or not made.args:
            continue
        if last_name(made.func) in ("full", "zeros", "ones", "empty", "new_full", "new_zeros", "new_empty", "new_ones"):
            size = made.args[0]
            first = size.elts[0] if isinstance(size, (ast.Tuple, ast.List)) and size.elts else size
            return isinstance(first, (ast.Name, ast.Attribute, ast.Call, ast.Subscript, ast.BinOp))
        if last_name(made.func) in ("repeat", "expand", "tile"):
            return not _is_one(made.args[0])
    return False


def _one_row(node: ast.expr, scope: Scope, depth: int) -> ast.expr | None:
    """The cut of one row, logits[:1] or probs[0], that a drawn token was drawn from; also behind names; else None."""
    if depth == 0:
        return None
    if isinstance(node, ast.Subscript):
        index = node.slice.elts[0] if isinstance(node.slice, ast.Tuple) and node.slice.elts else node.slice
        zero = isinstance(index, ast.Constant) and type(index.value) is int
        first = isinstance(index, ast.Slice) and index.lower is None and _is_one(index.upper or node)
        first = first and isinstance(index.upper, ast.Constant)  # type: ignore[attr-defined]
        named = isinstance(node.value, (ast.Name, ast.Attribute)) and SCORES.search(target_name(node.value) or "")
        return node if named and (zero or first) else _one_row(node.value, scope, depth - 1)
    if isinstance(node, ast.Call):
        parts = [*node.args[:2], *([node.func.value] if isinstance(node.func, ast.Attribute) else [])]
        return next((row for part in parts if (row := _one_row(part, scope, depth - 1)) is not None), None)
    if isinstance(node, ast.BinOp):
        return _one_row(node.left, scope, depth - 1)
    made = [b.value for b in scope.bindings.get(target_name(node) or "", []) if b.how == "="]
    return _one_row(made[0], scope, depth - 1) if len(made) == 1 else None


SCORES = re.compile(r"logit|prob|score|logp|(^|[._])(p|dist|weights)$")


def _is_number(value: ast.expr, scope: Scope) -> bool:
    """One number, not a column of them: token.item(), int(token), or a name for that."""
    if isinstance(value, ast.Call):
        one = last_name(value.func) == "choice" and keyword(value, "size") is None and len(value.args) < 2
        return one or last_name(value.func) in ("item", "int")
    if isinstance(value, ast.Subscript) and isinstance(value.value, ast.Call):  # random.choices(...)[0]
        return last_name(value.value.func) == "choices"
    if isinstance(value, ast.Name):
        made = [binding.value for binding in scope.bindings.get(value.id, []) if binding.how == "="]
        return bool(made) and all(isinstance(one, ast.Call) and _is_number(one, scope) for one in made)
    return False


def _is_drawn(value: ast.expr, scope: Scope, project: Project) -> bool:
    """A token that was drawn, or a whole text that was."""
    if isinstance(value, (ast.List, ast.Tuple)):  # [*prompt, token] for every row
        return any(is_chosen(part, scope, project) for part in value.elts if not isinstance(part, ast.Starred))
    if isinstance(value, ast.BinOp) and isinstance(value.op, ast.Add):  # prompt + [token]
        return _is_drawn(value.right, scope, project)
    if is_chosen(value, scope, project) or _holds_drawn(value, scope, project):
        return True
    return any(
        isinstance(origin.node, ast.Call) and last_name(origin.node.func) == "generate"
        and is_true(keyword(origin.node, "do_sample"))
        for origin in project.origins(value, scope, token_passes, depth=3)
    )  # fmt: skip


def _holds_drawn(value: ast.expr, scope: Scope, project: Project) -> bool:
    """Row(prompt, token), or a state with state.last = token: an object of the project with a drawn token in it."""
    made = [value]
    name = target_name(value)
    if isinstance(value, ast.Name):
        made = [binding.value for binding in scope.bindings.get(value.id, []) if binding.how == "="]
        set_later = [b for other, bs in scope.bindings.items() if other.startswith(f"{name}.") for b in bs]
        if any(b.how == "=" and is_chosen(b.value, scope, project) for b in set_later):
            return bool(classes_of(value, scope, project))
    for one in made:
        if isinstance(one, ast.Call) and last_name(one.func) in project.classes:
            parts = [*one.args, *(word.value for word in one.keywords)]
            return any(
                _is_drawn(part, scope, project) for part in parts if isinstance(part, (ast.Name, ast.BinOp, ast.List))
            )
    return False


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
