"""Whether the batches of a program change their width from step to step, so that compiled code meets new shapes."""

import ast
import re

from intone.optimise.scan.calls import functions_of
from intone.optimise.scan.expressions import code_of, keyword, last_name, names_in, text_of
from intone.optimise.scan.filling import LONGEST, filled_up
from intone.optimise.scan.loops import train_loops
from intone.optimise.scan.neighbours import imported_by, neighbours
from intone.optimise.scan.project import Project
from intone.optimise.scan.reach import Reached, reached
from intone.optimise.scan.rules.padding import filled_rows
from intone.optimise.scan.seldom import is_periodic
from intone.optimise.scan.source import Module, Scope, walk

TRAINS = ".backward("  # a program that trains, not one that only calls others


def varying_width(module: Module, project: Project, *, any_rows: bool = False) -> tuple[str, str] | None:
    """(what changes, where) for the batches of the program that a file belongs to; None where no width changes.

    any_rows: rows of a loader of the file count too where nothing says that they are for training.
    """
    files = list(neighbours(module, project))
    if any("mark_dynamic" in file.text or "mark_unbacked" in file.text for file in files):
        return None
    users = [other for other in project.modules if module in imported_by(other, project)]
    files += [other for other in users if other not in files]
    near = {
        module,
        *imported_by(module, project),
        *users,
        *(one for user in users if TRAINS in user.text for one in imported_by(user, project)),
    }
    for file in (file for file in project.modules if file in near):
        for place in filled_rows(file, project):
            if LONGEST in place.message:
                at = place.scope.module.path if place.scope else file.path
                line = getattr(place.node, "lineno", 0)
                words = f"rows are filled up to the longest of the batch at {at}:{line}"
                return "batches are as wide as their longest text", words
    for site in project.sites.get("DataLoader", []) if any_rows else ():
        collate = keyword(site.call, "collate_fn") if site.scope.module is module else None
        for maker in functions_of(collate, site.scope, project)[:2] if collate is not None else ():
            if (padded := filled_up(maker, project)) is not None and padded[1] == LONGEST:
                at = f"{maker.module.path}:{getattr(padded[0], 'lineno', 0)}"
                return "batches are as wide as their longest row", f"rows are filled up to the longest at {at}"
    for file in files:
        turns: list[tuple[ast.AST, list[Reached]]] = [
            (loop.inner, loop.turn(project)) for loop in train_loops(file, project)
        ]
        turns += [(s.node, reached(s.node, s, project)) for s in file.scopes if s.simple_name in STEPS]
        for around, turn in turns:
            for item in turn:
                ways = (_cut_to_width, _cut_from_stream, _asked_width)
                if found := next((found for way in ways if (found := way(item, project))), None):
                    if _evaluates(item, around, project):
                        continue
                    return "batches are cut to a width that changes", f"{item.scope.module.path}:{item.line}: {found}"
    return None


def _evaluates(item: Reached, around: ast.AST, project: Project) -> bool:
    """Whether a helper that runs only now and then leads to a node: it evaluates, with batches of its own."""
    sites = [Reached(site.call, site.scope, item.chain[:number]) for number, site in enumerate(item.chain)]
    return any(is_periodic(site, around, project) for site in sites[:1])


STEPS = ("training_step", "compute_loss", "train_step", "train_batch", "shared_step")  # a library calls them


def _cut_to_width(item: Reached, project: Project) -> str | None:
    """x[:, :width] with a width that depends on the batch, the step or chance."""
    node = item.node
    if not isinstance(node, ast.Subscript) or not isinstance(node.slice, ast.Tuple):
        return None
    if item.is_in_forward:
        return None
    for part in node.slice.elts[1:]:
        if (
            isinstance(part, ast.Slice)
            and part.upper is not None
            and (
                _changes(part.upper, item.scope, 3)
                or _follows_step(part.upper, item, project, 2)
                or _is_drawn(part.upper, item.scope, project)
            )
        ):
            return code_of(node, 50)
    return None


def _cut_from_stream(item: Reached, project: Project) -> str | None:
    """data[i : i + width] with a width that is drawn or follows the step, not only the place."""
    node = item.node
    if not isinstance(node, ast.Subscript) or not isinstance(node.slice, ast.Slice) or item.is_in_forward:
        return None
    lower, upper = node.slice.lower, node.slice.upper
    if lower is None or not isinstance(upper, ast.BinOp):
        return None
    steps = {  # data[i * width : (i + 1) * width]
        name for part in walk(lower) if isinstance(part, ast.BinOp) and isinstance(part.op, ast.Mult)
        for name in names_in(part) if WIDTH.search(name)
    }  # fmt: skip
    for name in sorted((names_in(upper) - names_in(lower)) | (names_in(upper) & steps)):
        if any(_is_new_width(value, item, project) for value in _values(name, item.scope)):
            return code_of(node, 50)
    return None


WIDTH = re.compile(r"len|width|size|seq|ctx|context|block|height|side|resolution|crop|horizon|bucket|^[tThwHWL]$|^res$")
RESIZES = ("interpolate", "resize", "crop", "center_crop", "random_crop", "resized_crop", "Resize", "upsample")


def _asked_width(item: Reached, project: Project) -> str | None:
    """width = random.choice(WIDTHS); x, y = get_batch(rows, width); also in a function, by the step, or as a size."""
    node = item.node
    if not isinstance(node, ast.Call) or item.is_in_forward:
        return None
    resizes = last_name(node.func) in RESIZES
    for arg in [*node.args, *(word.value for word in node.keywords)]:
        for name in names_in(arg):
            if not resizes and not WIDTH.search(name):
                continue
            if any(_is_new_width(value, item, project) for value in _values(name, item.scope)):
                return code_of(node, 50)
    return None


def _values(name: str, scope: Scope) -> list[ast.expr]:
    return [binding.value for binding in scope.bindings.get(name, []) if binding.how in ("=", "part")]


def _is_new_width(value: ast.expr, item: Reached, project: Project) -> bool:
    """Whether a number is drawn, or computed from the step, so that it is another one at every turn."""
    return _is_drawn(value, item.scope, project) or _by_step(value, item, project)


def _is_drawn(value: ast.expr, scope: Scope, project: Project, depth: int = 3) -> bool:
    """Whether chance decides a number: by a call, through names and sums, or in a function that hands it back."""
    for part in walk(value):
        if isinstance(part, ast.Call):
            if last_name(part.func) in ("randint", "randrange", "choice", "choices", "integers"):
                return not _has_shape(part, scope)
            if depth and any(
                _is_drawn(result, function, project, depth - 1)
                for function in project.callees(part, scope)[:2] for result in function.returns[:3]
            ):  # fmt: skip
                return True
        elif isinstance(part, ast.Name) and depth:
            made = [b.value for b in scope.bindings.get(part.id, []) if b.how == "="]
            if len(made) == 1 and _is_drawn(made[0], scope, project, depth - 1):
                return True
    return False


def _has_shape(draw: ast.Call, scope: Scope) -> bool:
    """Whether a draw gives a tensor of numbers, which are no widths: randint(0, vocabulary, (rows, length))."""
    shapes = [*draw.args, *(word.value for word in draw.keywords if word.arg == "size")]
    shapes = [part for part in shapes if isinstance(part, (ast.Tuple, ast.List)) and part.elts]
    above = scope.module.parents.get(draw)
    read = isinstance(above, ast.Attribute) and above.attr in ("item", "tolist")
    kept = last_name(draw.func) in ("choice", "choices", "integers")  # of a list; a size is its second argument
    return bool(shapes[1:] if kept and draw.args and shapes and shapes[0] is draw.args[0] else shapes) and not read


def _by_step(value: ast.expr, item: Reached, project: Project) -> bool:
    """width = schedule(step), min(longest, 64 + step): a number that is computed from the counter of the loop."""
    if not isinstance(value, ast.Call) or not project.callees(value, item.scope):
        calls = [part for part in walk(value) if isinstance(part, ast.Call)]
        plain = all(last_name(call.func) in ("min", "max", "int", "round", "len") for call in calls)
        return plain and _follows_step(value, item, project, 0)
    if not any(_follows_step(arg, item, project, 0) for arg in value.args):
        return False
    function = project.callees(value, item.scope)[0]
    results = function.returns
    return any(names_in(result) & set(function.parameters) for result in results) and not any(
        isinstance(part, ast.Call) and last_name(part.func) not in ("min", "max", "int", "round", "len")
        for result in results for part in walk(result)
    )  # fmt: skip


def _follows_step(node: ast.expr, item: Reached, project: Project, depth: int) -> bool:
    """A width that is computed from the counter of a loop around: min(longest, 64 + step // 100)."""
    loops = item.scope.module.loops_around(item.node)
    counters = {name for loop in loops if isinstance(loop, ast.For) for name in names_in(loop.target)}
    counters = {name for name in counters if re.search(r"step|iter|epoch|^i$|^it$|^t$", name)}
    names = names_in(node)
    if names & counters:
        return True
    if item.chain:  # a helper that is handed the step
        for name in names & set(item.scope.parameters):
            handed = project.argument(item.chain[-1], item.scope, name)
            above = Reached(item.chain[-1].call, item.chain[-1].scope, item.chain[:-1])
            if handed is not None and _follows_step(handed, above, project, depth):
                return True
    values = [b.value for name in names for b in item.scope.bindings.get(name, []) if b.how == "="]
    return depth > 0 and any(_follows_step(value, item, project, depth - 1) for value in values)


def _changes(node: ast.expr, scope: Scope, depth: int) -> bool:
    text = text_of(node)
    if re.search(r"\.max\(\)|max\(|\.sum\(|random\.|randint|choice\(|longest|max_in_batch", text):
        return bool(re.search(r"len|mask|pad|random|randint|choice|longest|width|size", text))
    if depth == 0:
        return False
    for name in names_in(node):
        for binding in scope.bindings.get(name, []):
            if binding.how == "=" and _changes(binding.value, scope, depth - 1):
                return True
    return False
