"""Rules on random numbers that all rows share: noise for one row that is broadcast, one draw for a whole batch."""

import ast
import re
from collections.abc import Iterator

from intone.optimise.scan.copying import copied, rows_copied
from intone.optimise.scan.expressions import code_of, last_name, names_in, text_of
from intone.optimise.scan.noise import BATCH, amount_drawn, drawn_for_one, drawn_once, parts_of
from intone.optimise.scan.project import Project
from intone.optimise.scan.reach import turns_around
from intone.optimise.scan.rulebook import Place, rule
from intone.optimise.scan.source import Module, Scope, target_name, walk
from intone.optimise.scan.values import is_model_call, spelled

RANDOM = re.compile(r"rand|uniform|exponential|[Gg]umbel|normal|choice|gauss|permut|rng")
NOISY = re.compile(r"log\(|log_\(|exponential|gumbel", re.I)


@rule(
    "S15",
    "one random number for all rows",
    kind="copied-token",
    severity="medium",
    why="Every row meets the same noise, so rows with the same scores get the same token: the samples of one prompt "
    "are copies, and those of others go together.",
    fix="Draw noise of the shape of the scores: one number per row, or for Gumbel one per entry.",
    source="optimiser.md D22",
)
def shared_noise(module: Module, project: Project) -> Iterator[Place]:
    """(logits + gumbel(1, vocabulary)).argmax(-1), also from a helper; (probs.cumsum(-1) < torch.rand(1)).sum(-1)."""
    for scope in module.scopes[1:]:
        for call in scope.calls:
            last = last_name(call.func)
            if last not in ("argmax", "max", "topk", "sum", "int", "long") or not _chooses_per_row(call, scope):
                continue
            noise = _one_threshold(call, scope, project) if last in ("sum", "int", "long") else None
            noise = noise or _noise_of_one_row(call, scope, project)
            if noise is None:
                continue
            drawn, at = noise
            yield Place(
                drawn,
                f"`{code_of(drawn, 40)}` is drawn once for all rows",
                (f"used for each of them by {code_of(call, 50)} at {module.path}:{call.lineno}",),
                confidence="medium",
                scope=at,
                also=((call, scope),) if at is not scope else (),
            )


def _chooses_per_row(call: ast.Call, scope: Scope) -> bool:
    """Whether a call chooses along the last axis of rows: argmax(-1), not argmax(-1).item() of one row."""
    if not re.search(r"-1|dim=1|axis=1|keepdim|\(1\)", text_of(call)):
        return False
    above = scope.module.parents.get(call)
    if isinstance(above, ast.Attribute) and above.attr == "item" or isinstance(above, ast.Call) and call in above.args:
        return not (isinstance(above, ast.Attribute) or last_name(above.func) == "int")
    turned = {name for loop in turns_around(call, scope) if not isinstance(loop, ast.While)
              for head in getattr(loop, "generators", [loop]) for name in names_in(head.target)}  # fmt: skip
    scores = call.func.value if isinstance(call.func, ast.Attribute) else call
    return not turned & names_in(scores)  # for row in logits: (row + noise).argmax(-1)


def _noise_of_one_row(call: ast.Call, scope: Scope, project: Project) -> tuple[ast.Call, Scope] | None:
    """The noise over the vocabulary, with no size for rows, that is added to scores before an argmax per row."""
    code = spelled(call, scope)
    around = text_of(scope.node)
    for part, at in parts_of(call, scope, project):
        if not isinstance(part, ast.Call) or part is call or amount_drawn(part, at) != "row":
            continue
        noisy = NOISY.search(f"{code} {text_of(part)} {at.simple_name}") or NOISY.search(text_of(at.node))
        leads = bool(part.args) and text_of(part.args[0]) in ("1", "(1,")
        alone = re.search(r"\[0, ?-1\]|\[-1\]|\[0\]", code.replace(text_of(part), "")) and not leads
        one_text = re.search(r"unsqueeze\(0\)|\[None\b|tensor\(\[\w", around)
        copied_on = _is_repeated(part, at)
        if noisy and not alone and not one_text and not copied_on:
            return part, at
    return None


def _is_repeated(draw: ast.Call, scope: Scope) -> bool:
    """Whether a draw is copied in so many words: told by the rule on numbers that are copied."""
    return any(
        isinstance(above, ast.Call) and last_name(above.func) in ("expand", "repeat", "expand_as", "broadcast_to")
        for above in scope.module.up(draw)
    )


def _one_threshold(call: ast.Call, scope: Scope, project: Project) -> tuple[ast.Call, Scope] | None:
    """The one number that the cumulated distributions of all rows are compared with."""
    for part in walk(call):
        if not isinstance(part, ast.Compare) or not re.search(r"cumsum", spelled(part, scope)):
            continue
        for side in [part.left, *part.comparators]:
            for made, at in parts_of(side, scope, project, steps=2):
                if isinstance(made, ast.Call) and amount_drawn(made, at) == "one" and not _is_repeated(made, at):
                    return made, at
    return None


@rule(
    "S91",
    "one random draw for a whole batch",
    kind="copied-token",
    severity="medium",
    why="All rows of a batch get the same drawn number: the same time step, noise, place or mask. A step then sees one "
    "of them instead of as many as there are rows, and its gradient is as noisy as that of a far smaller batch.",
    fix="Draw one number per row: torch.randint(high, (rows,)), rand(rows), randn_like(batch).",
    source="Ho et al. 2020, algorithm 1: t is drawn for each example",
)
def one_draw_for_batch(module: Module, project: Project) -> Iterator[Place]:
    """torch.randint(T, (1,)).expand(x.size(0)), full((rows,), random()), [data[i : i + n] for _ in range(rows)]"""
    if not module.mentions(RANDOM) or not module.mentions(LEARNS):
        return
    kinds = (ast.BinOp, ast.ListComp, ast.Call)
    for scope in module.scopes[1:]:
        if ASKS.search(scope.name) or _is_without_grad(scope, project) or scope.simple_name == "__init__":
            continue
        for node in scope.of(*kinds):
            drawn = _copied_draw(node, scope, project)
            how = f"copied for every row by {code_of(node, 60)}"
            if drawn is None and isinstance(node, ast.Call):
                drawn, how = _handed_to_model(node, scope, project), f"handed to the model by {code_of(node, 60)}"
            if drawn is None and isinstance(node, ast.Call) and _is_shape_of_one(node, scope):
                drawn, how = (node, scope), "its size is that of one row of the batch, and it meets all of them"
            if drawn is None or drawn[1] is scope and _is_in_turn(drawn[0], node, scope):
                continue
            yield Place(
                node,
                f"`{code_of(drawn[0], 40)}` is drawn once and used for all rows of the batch",
                (how, f"drawn at {drawn[1].module.path}:{drawn[0].lineno}"),
                confidence="medium",
            )
            break


def _copied_draw(node: ast.AST, scope: Scope, project: Project) -> tuple[ast.Call, Scope] | None:
    """The draw, of one number or for one row, of which a copy for all rows of a batch is made."""
    made = copied(node, scope)
    drawn = drawn_once(made[0], scope, project, 6) if made is not None and _has_rows(node, scope) else None
    if drawn is not None:
        return drawn
    rows = rows_copied(node, scope)
    if rows is None or not _counts_rows(rows[1], scope):
        return None
    return drawn_for_one(rows[0], scope, project, frozenset(name for one in rows[1] for name in names_in(one)))


def _counts_rows(counts: list[ast.expr], scope: Scope) -> bool:
    """Whether a number is that of a batch's rows, by what is written of it, here or where a caller hands it over."""
    values = [b.value for one in counts for name in names_in(one) for b in scope.bindings.get(name, [])]
    return any(ROWS.search(text_of(part)) or BATCH.search(text_of(part)) for part in [*counts, *values])


def _is_shape_of_one(draw: ast.Call, scope: Scope) -> bool:
    """noise = torch.randn(x.shape[1:]) or randn_like(x[0]) in x + noise, where the function gets the batch x."""
    if amount_drawn(draw, scope) != "row" or turns_around(draw, scope) and not _is_statement_loop(draw, scope):
        return False
    found = re.search(r"(\w+)\.(shape|size\(\))\[1:\]|_like\((\w+)\[(0|:1)\]\)|(\w+)\[(0|:1)\]\.shape", text_of(draw))
    batch = next((name for name in (found[1], found[3], found[5]) if name), "") if found else ""
    if not batch or batch not in scope.parameters:
        return False
    above = scope.module.parents.get(draw)
    while isinstance(above, (ast.Attribute, ast.Call)):
        above = scope.module.parents.get(above)
    held = {target_name(t) for t in above.targets} if isinstance(above, ast.Assign) else set()
    return any(
        isinstance(node, ast.BinOp) and batch in names_in(node) and (held & names_in(node) or draw in walk(node))
        for node in scope.body
    )


def _is_statement_loop(node: ast.AST, scope: Scope) -> bool:
    return all(isinstance(loop, (ast.For, ast.While)) for loop in turns_around(node, scope)[:1])


LEARNS = re.compile(
    r"\.backward\(|def training_step|cross_entropy|_loss\(|Loss\(|def compute_loss|\.manual_backward\(|"
    r"optim\.[A-Z]\w+\("
)
ASKS = re.compile(
    r"(^|[._])(generat\w*|infer\w*|eval\w*|valid\w*|test\w*|plot\w*|preview\w*|demo\w*|visuali\w*|inpaint\w*|"
    r"rollout\w*|complet\w*|serve\w*|decod\w*)(?=$|[._])",
    re.I,
)
ROWS = re.compile(
    r"shape\[0\]|size\(0\)|\.size\(\)|\.shape\b|len\(|batch|\bbsz?\b|\bb\b|rows|num_(samples|graphs|images|envs)|examples|_like\(",
    re.I,
)


def _is_without_grad(scope: Scope, project: Project) -> bool:
    """Whether a function makes samples, and does not draw for a training: without gradients, or step by step."""
    items = getattr(scope.node, "decorator_list", [])
    if any(re.search(r"no_grad|inference_mode", text_of(item)) for item in items):
        return True
    if not re.search(r"sampl", scope.simple_name, re.I):
        return False
    return bool(scope.of(ast.For, ast.While)) or any(is_model_call(call, scope, project) for call in scope.calls)


def _has_rows(node: ast.AST, scope: Scope) -> bool:
    """Whether a copy is as long as a batch, by what is written of its size: expand(x.shape[0]), [t] * len(rows)."""
    if isinstance(node, ast.ListComp):
        return bool(ROWS.search(text_of(node.generators[0].iter)))
    if isinstance(node, ast.BinOp):
        return any(bool(ROWS.search(text_of(side))) for side in (node.left, node.right))
    if not isinstance(node, ast.Call):
        return False
    if last_name(node.func) in ("expand_as", "full_like"):
        return True
    counts = [*node.args, *(word.value for word in node.keywords)]
    first = counts[0] if counts else None
    if isinstance(first, (ast.Tuple, ast.List)):
        first = first.elts[0] if first.elts else None
    if isinstance(first, (ast.UnaryOp, ast.Constant)):
        return False
    code = " ".join(text_of(one) for one in counts)
    values = [b.value for name in names_in(node) for b in scope.bindings.get(name, [])]
    sized = any(re.search(r"\.shape|\.size\(|len\(", text_of(value)) for value in values)
    return bool(ROWS.search(code)) or sized


def _is_in_turn(draw: ast.Call, node: ast.AST, scope: Scope) -> bool:
    """Whether a draw stands in the comprehension that makes the rows: [random() for _ in range(rows)] are as many."""
    return any(above is node for above in scope.module.up(draw)) and isinstance(node, ast.ListComp)


TIMES = re.compile(r"^(t|ts|time\w*|\w*_?steps?|sigmas?|noise_?level\w*|level|tau)$")


def _handed_to_model(call: ast.Call, scope: Scope, project: Project) -> tuple[ast.Call, Scope] | None:
    """model(noisy, t) with t = torch.randint(T, (1,)): the one time step for all rows, without a copy in the code."""
    if len(call.args) < 2 or not is_model_call(call, scope, project):
        return None
    for arg in call.args[1:]:
        drawn = drawn_once(arg, scope, project, 4) if TIMES.match(target_name(arg) or "") else None
        if drawn is not None and amount_drawn(drawn[0], drawn[1]) == "one":
            return drawn
    return None
