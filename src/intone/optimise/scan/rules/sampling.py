"""A rule on sampling: one drawn token must not become the token of many rows."""

import ast
import re
from collections.abc import Iterator, Sequence

from intone.optimise.scan.calls import classes_of
from intone.optimise.scan.copying import copied, first_part, is_number, is_one
from intone.optimise.scan.expressions import code_of, last_name, names_in, text_of
from intone.optimise.scan.options import is_told
from intone.optimise.scan.project import Project
from intone.optimise.scan.reach import reached, turns_around
from intone.optimise.scan.rulebook import Place, rule
from intone.optimise.scan.rules.numbers import numbers_for_all
from intone.optimise.scan.source import Module, Scope, target_name, walk
from intone.optimise.scan.values import chooses_token, is_chosen, is_model_call, spelled, token_passes


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
        for node in scope.of(
            ast.BinOp, ast.ListComp, ast.DictComp, ast.Call, ast.Assign, ast.AugAssign, ast.Subscript, ast.Yield
        ):
            made = copied(node, scope) or _given_to_all(node, scope, project) or _spread(node, scope, project)
            made = made or _put_behind_each(node, scope)
            if made is None:
                continue
            value, how = made
            if how.startswith(("one e", "the same for")) and _draws_anew(value, scope, project):
                continue
            if not _is_single(value, scope, project) or not _is_drawn(value, scope, project):
                continue
            if _is_in_index(node, module):
                continue
            at, place, said = scope, node, value
            if (handed := _handed(value, scope, project)) is not None:  # a helper that repeats whatever it is given
                place, at, said = handed
            yield Place(
                place,
                f"`{code_of(said, 40)}` was drawn once and is repeated for every row ({how})",
                (
                    f"copied by {how} at {module.path}:{node.lineno}",  # type: ignore[attr-defined]
                    *_drawn_at(value, scope, project),
                ),
                scope=at,
                also=((node, scope),) if at is not scope else (),
            )
    yield from numbers_for_all(module, project)


def _is_in_index(node: ast.AST, module: Module) -> bool:
    """logits[token.repeat(n)], [token][0]: what is copied is an index, or only one of the copies is used.

    Not token.repeat(n)[:, None], which keeps all of them.
    """
    above = module.parents.get(node)
    if not isinstance(above, ast.Subscript) or isinstance(node, ast.Subscript):
        return False
    parts = above.slice.elts if isinstance(above.slice, ast.Tuple) else [above.slice]
    return above.value is not node or not all(text_of(part) in ("None", ":", "...", "::1") for part in parts)


def _handed(value: ast.expr, scope: Scope, project: Project) -> tuple[ast.AST, Scope, ast.expr] | None:
    """(call, its function, what it hands over) where a plain function repeats a parameter that gets a drawn token."""
    name = target_name(value)
    if name is None or name not in scope.parameters or name in scope.bindings or scope.owner is not None:
        return None
    for site in project.callers(scope)[:8]:
        given = project.argument(site, scope, name)
        if given is not None and is_chosen(given, site.scope, project):
            return site.call, site.scope, given
    return None


def _draws_anew(value: ast.expr, scope: Scope, project: Project) -> bool:
    """Whether an expression draws whenever it is computed: [sample(model, prompt) for _ in range(n)] are n draws."""
    calls = [part for part in walk(value) if isinstance(part, ast.Call)]
    return any(
        last_name(call.func) == "generate" or chooses_token(call, scope) or any(
            isinstance(item.node, ast.Call) and chooses_token(item.node, item.scope)
            for function in project.callees(call, scope)[:2] for item in reached(function.node, function, project, 2)
        )
        for call in calls
    )  # fmt: skip


def _given_to_all(node: ast.AST, scope: Scope, project: Project) -> tuple[ast.expr, str] | None:
    """for row in rows: row.append(token); tokens[:, 0] = token.item(): one number goes to every row."""
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Subscript):
        index = node.targets[0].slice
        first = index.elts[0] if isinstance(index, ast.Tuple) and len(index.elts) > 1 else None
        every = isinstance(first, ast.Slice) and first.lower is None and first.upper is None
        every = every or isinstance(index, ast.Slice) and index.lower is None and index.upper is None
        if every:
            one = is_number(node.value, scope) or _is_of_one_row(node.value, scope)
            return (node.value, "one number for a column") if one else None
        return _in_each_turn(node, node.targets[0].value, index, node.value, scope)
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute):  # for row in rows: row.last = token
        holder = node.targets[0].value
        loops = turns_around(node, scope)
        walked = text_of(loops[0].iter) if loops and isinstance(loops[0], ast.For) else ""
        of_row = ROW.search(target_name(holder) or "") or SAMPLES.search(walked) and not NO_SAMPLES.search(walked)
        return _in_each_turn(node, holder, None, node.value, scope) if of_row else None
    if isinstance(node, ast.Yield) and node.value is not None:
        return _in_each_turn(node, None, None, node.value, scope)
    if not isinstance(node, ast.Call) or not node.args:
        return None
    named = target_name(node.func.value) or "" if isinstance(node.func, ast.Attribute) else ""
    if isinstance(node.func, ast.Attribute) and (node.func.attr in ("append", "extend") or ROW.search(named)):
        return _in_each_turn(node, node.func.value, None, node.args[0], scope)
    if not turns_around(node, scope) or SHOWS.search(last_name(node.func) or ""):
        return None
    handed = [arg for arg in [*node.args, *(word.value for word in node.keywords)] if isinstance(arg, ast.Name)]
    for arg in handed:  # go_on(cache, token) once for each sample
        given = _in_each_turn(node, None, None, arg, scope)
        if given is not None and (is_number(arg, scope) or not _turns(node, scope) & names_in(node)):
            return given
    return None


def _is_of_one_row(value: ast.expr, scope: Scope) -> bool:
    """first = multinomial(softmax(logits[-1]), 1), by which the scores of one position of one text are meant."""
    made = [b.value for b in scope.bindings.get(target_name(value) or "", []) if b.how == "="]
    if len(made) != 1 or not isinstance(made[0], ast.Call) or not chooses_token(made[0], scope):
        return False
    code = spelled(made[0], scope)
    return bool(re.search(r"\[(0, )?-1\]", code)) and not re.search(r"\[:, ?-1|expand|repeat|\bfor\b", code)


def _put_behind_each(node: ast.AST, scope: Scope) -> tuple[ast.expr, str] | None:
    """[cat([row, token]) for row in rows], [row + [token] for row in rows]: one token behind each of several rows."""
    parts: list[ast.expr] = []
    if isinstance(node, ast.Call) and last_name(node.func) in ("cat", "concat", "concatenate", "append") and node.args:
        joined = node.args[0]
        parts = joined.elts if isinstance(joined, (ast.List, ast.Tuple)) else list(node.args[:2])
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        parts = [node.left, node.right]
    around = turns_around(node, scope) if len(parts) == 2 else []
    if not around or not isinstance(around[0], (ast.ListComp, ast.GeneratorExp)):
        return None
    turned = {name for head in around[0].generators for name in names_in(head.target)}
    row, token = parts
    if isinstance(token, ast.List) and len(token.elts) == 1:
        token = token.elts[0]
    if not names_in(row) & turned or not names_in(token) or names_in(token) & turned:
        return None
    return token, f"the same behind each of {code_of(around[0].generators[0].iter, 20)}"


SHOWS = re.compile(
    r"print|log|info|debug|record|append|len|int|str|isinstance|range|zip|cat|stack|to$|item|where|expand"
)


def _turns(node: ast.AST, scope: Scope) -> set[str]:
    """The names that change with each turn of the innermost loop around a node."""
    loop = turns_around(node, scope)[0]
    heads = getattr(loop, "generators", [loop])
    return {name for head in heads if not isinstance(head, ast.While) for name in names_in(head.target)}


# names of one of several texts that are written side by side
ROW = re.compile(
    r"(^|[._])(row|seq|sequence|sample|branch|beam|state|slot|request|cand\w*|hyp\w*|completion|rollout|session)$"
)


# loops over the samples of one prompt, by what they count or walk over
SAMPLES = re.compile(
    r"(^|[^\w.])(\w+\.)*(n|k|m|g|b|bsz|best_of|takes|fan_?out|width|num_(samples|return\w*|rollouts|completions|beams|rows|"
    r"generations|seqs|sequences|branches|choices|copies|candidates)|n_(samples|seq|seqs|rollouts|completions|beams|rows|"
    r"best|branches|generations|copies|choices)|\w*group_?size|group|\w*samples|batch(_?size)?|rollouts|completions|branches|"
    r"copies|rows|beams|prompts|sequences|seqs|slots|states|requests)\b",
    re.I,
)
NO_SAMPLES = re.compile(
    r"layer|block|step|token|max_|new|len|hook|process|callback|listen|epoch|stage|module|cach", re.I
)


def _in_each_turn(
    node: ast.AST, holder: ast.expr | None, index: ast.expr | None, value: ast.expr, scope: Scope
) -> tuple[ast.expr, str] | None:
    """for i in range(n): rows[i].append(token), out[i, t] = token: with a token that does not change in the loop.

    Of a loop over the samples of a prompt also what goes elsewhere: outs.append(ids + [token]), go_on(cache, token).
    """
    loops = turns_around(node, scope)
    if not loops or isinstance(loops[0], ast.While):
        return None
    loop = loops[0]
    heads = loop.generators if not isinstance(loop, (ast.For, ast.AsyncFor)) else [loop]
    turned = {name for head in heads for name in names_in(head.target)}
    row = index.elts[0] if isinstance(index, ast.Tuple) and index.elts else index
    to_row = (
        holder is not None
        and bool({name.partition(".")[0] for name in names_in(holder)} & turned)
        or (row is not None and bool(names_in(row) & turned))
    )
    walked = code_of(heads[0].iter, 60)
    if not to_row and (NO_SAMPLES.search(walked) or not SAMPLES.search(walked)):
        return None
    named = names_in(value)
    made_inside = any(
        any(above is loop for above in scope.module.up(binding.node)) or binding.node is loop
        for name in named for binding in scope.bindings.get(name, [])
    )  # fmt: skip
    if named & turned or made_inside or not named:
        return None
    return value, f"the same for each of {code_of(heads[0].iter, 20)}"


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
    row = _one_row(value, scope, project, 6)
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
            return not is_one(made.args[0])
    return False


def _one_row(node: ast.expr, scope: Scope, project: Project, depth: int) -> ast.expr | None:
    """The cut of one row, logits[:1] or probs[0], that a drawn token was drawn from; also behind names; else None."""
    if depth == 0:
        return None
    if isinstance(node, ast.Subscript):
        index = first_part(node.slice)
        zero = isinstance(index, ast.Constant) and type(index.value) is int
        first = isinstance(index, ast.Slice) and index.lower is None and is_one(index.upper or node)
        first = first and isinstance(index.upper, ast.Constant)  # type: ignore[attr-defined]
        held = node.value
        named = isinstance(held, (ast.Name, ast.Attribute)) and bool(SCORES.search(target_name(held) or ""))
        if isinstance(node.slice, ast.Tuple) and isinstance(held, ast.Call):  # model(ids)[0, -1]
            named = is_model_call(held, scope, project)
        named = named or isinstance(held, ast.Name) and is_chosen(held, scope, project)  # tokens[0]
        return node if named and (zero or first) else _one_row(node.value, scope, project, depth - 1)
    if isinstance(node, ast.Call):
        for function in project.callees(node, scope)[:1]:  # self.draw(logits), which takes logits[0]
            rows = [_one_row(value, function, project, depth - 1) for value in function.returns]
            if rows and all(row is not None for row in rows):
                return rows[0]
        parts = [*node.args[:2], *([node.func.value] if isinstance(node.func, ast.Attribute) else [])]
        return next((row for part in parts if (row := _one_row(part, scope, project, depth - 1)) is not None), None)
    if isinstance(node, ast.BinOp):
        return _one_row(node.left, scope, project, depth - 1)
    made = [b.value for b in scope.bindings.get(target_name(node) or "", []) if b.how == "="]
    rows = [_one_row(value, scope, project, depth - 1) for value in made]
    return rows[0] if rows and all(row is not None for row in rows) else None


SCORES = re.compile(r"logit|prob|score|logp|(^|[._])(p|dist|weights)$")


def _is_drawn(value: ast.expr, scope: Scope, project: Project) -> bool:
    """A token that was drawn, or a whole text that was."""
    if isinstance(value, (ast.List, ast.Tuple)):  # [*prompt, token] for every row
        return any(is_chosen(part, scope, project) for part in value.elts if not isinstance(part, ast.Starred))
    if isinstance(value, ast.BinOp) and isinstance(value.op, ast.Add):  # prompt + [token]
        return _is_drawn(value.right, scope, project)
    if is_chosen(value, scope, project) or _holds_drawn(value, scope, project):
        return True
    return any(
        isinstance(origin.node, ast.Call)
        and (
            is_told(origin.node, "do_sample", origin.scope, project)
            or _is_told_to_sample(origin.node)
            or chooses_token(origin.node, origin.scope)
        )
        for origin in project.origins(value, scope, _text_passes, depth=5)
    )


def _is_told_to_sample(call: ast.Call) -> bool:
    """llm.generate(prompts, SamplingParams(temperature=0.8)): not with temperature 0, which takes the likeliest."""
    code = text_of(call)
    told = last_name(call.func) == "generate" and "SamplingParams(" in code
    return told and re.search(r"temperature=0(\.0*)?[,)]", code) is None


def _text_passes(node: ast.expr) -> Sequence[ast.expr]:
    """As token_passes, also through the text that tokens are turned into."""
    if isinstance(node, ast.Call) and last_name(node.func) in ("decode", "batch_decode") and len(node.args) == 1:
        return node.args
    if isinstance(node, ast.Attribute) and node.attr in ("text", "outputs", "token_ids", "sequences"):
        return [node.value]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "strip":
        return [node.func.value]
    return token_passes(node)


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
        called_ = last_name(one.func) or "" if isinstance(one, ast.Call) else ""
        of_row = called_[:1].isupper() and ROW.search(called_.lower())  # Session(prompt, token) of another package
        if isinstance(one, ast.Call) and (called_ in project.classes or of_row):
            parts = [*one.args, *(word.value for word in one.keywords)]
            return any(
                _is_drawn(part, scope, project)
                for part in parts
                if isinstance(part, (ast.Name, ast.BinOp, ast.List, ast.Attribute, ast.Subscript))
            )
    return False


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
