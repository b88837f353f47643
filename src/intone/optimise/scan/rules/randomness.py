"""Rules on random numbers: who draws from which stream, and when a stream is set back."""

import ast
import re
from collections.abc import Iterator

from intone.optimise.scan.classes import class_field
from intone.optimise.scan.expressions import called, code_of, keyword, last_name, names_in, text_of
from intone.optimise.scan.project import Project
from intone.optimise.scan.reach import Reached, reached
from intone.optimise.scan.rulebook import Place, rule
from intone.optimise.scan.seeds import MAKERS, SEEDED, SEEDING, chain_of, method_of, seed_of
from intone.optimise.scan.source import Module, Scope, target_name, walk
from intone.optimise.scan.values import chooses_token

ROWS = re.compile(
    r"^(num_samples|n_samples|num_return_sequences|num_rows|n_rows|batch_size|n|num_completions|n_completions|num_rollouts|"
    r"group_size|num_generations|samples|n_seq|best_of|prompts|requests)$"
)


@rule(
    "S02",
    "one random stream for all rows",
    kind="rng",
    severity="medium",
    why="The text of a row depends on how many other rows are generated with it, so a seed does not "
    "reproduce an answer "
    "once the batch changes.",
    fix="Derive one stream per row from (seed, row, position), and draw each row's token from its own.",
    source="optimiser.md D22; nanochat-facts.md 2.4",
)
def shared_generator(module: Module, project: Project) -> Iterator[Place]:
    """A generator made from a seed in a function that makes several rows, or kept by an object, for every draw."""
    told: set[ast.AST] = set()
    for scope in module.scopes[1:]:
        named = (name for name in scope.parameters if ROWS.match(name) and not _counts_tokens(name, scope))
        rows = next(named, None) or _rows_here(scope)
        if rows is None:
            continue
        for item in reached(scope.node, scope, project):
            call = item.node
            if not isinstance(call, ast.Call) or not chooses_token(call, item.scope):
                continue
            stream = stream_of(call, item.scope)
            if stream is not None and _is_of_each(stream, item):
                continue
            maker = one_stream(stream, item, project) if stream is not None else None
            if maker is None or stream is None:
                continue
            made, at = maker
            seeded = seeding_of(made, at, project)
            if seeded is None or _is_of_call(seeded, at, scope, rows, project):
                continue
            if _is_of_request(_as_handed(stream, item, project), seeded, at, scope) and not TOGETHER.match(
                rows.rpartition(".")[2]
            ):
                continue
            if call in told or made in told:
                break
            told |= {call, made}
            # told where it is made, or, where another function or object keeps it, at the draw
            here = at in (scope, item.scope)
            yield Place(
                made if here else call,
                f"`{code_of(stream, 30)}` is one stream for all of `{rows}` rows",
                (
                    f"seeded by {code_of(seeded, 40)} at {at.module.path}:{seeded.lineno}",
                    f"all rows draw from it in {code_of(call, 50)} at {item.scope.module.path}:{call.lineno}",
                ),
                scope=at if here else item.scope,
                also=((call, item.scope) if here else (made, at),),
            )
            break


def _is_of_call(seeding: ast.Call, maker: Scope, scope: Scope, rows: str, project: Project) -> bool:
    """Whether a stream belongs to one call and all its rows: its seed is new each time, or given with the one text."""
    if not re.match(r"prompts|requests", rows) and (_is_new_each_call(seeding, maker, project) or _is_of_run(maker)):
        return True
    together = maker is scope and TOGETHER.match(rows.rpartition(".")[2]) is not None
    return not together and _is_told_seed(seeding, maker, project)


# rows of several texts, of which one may come back in other company
TOGETHER = re.compile(r"prompts|requests|reqs|batch|num_rows|n_rows|rows|seqs|sequences|active|running|slots|lanes")


def _as_handed(stream: ast.expr, item: Reached, project: Project) -> ast.expr:
    """What the function at the head of the way hands over for a stream that is a parameter on the way."""
    at = item.scope
    for site in reversed(item.chain):
        name = target_name(stream)
        handed = project.argument(site, at, name) if name in at.parameters else None
        if handed is None:
            break
        stream, at = handed, site.scope
    made = [b.value for b in at.bindings.get(target_name(stream) or "", []) if b.how == "="]
    if len(made) == 1 and isinstance(made[0], ast.Call) and isinstance(made[0].func, ast.Attribute):
        return made[0].func  # stream = request.stream(device)
    return stream


def _is_of_request(stream: ast.expr, seeding: ast.Call, maker: Scope, scope: Scope) -> bool:
    """request.generator with a seed of the request's own, of the one request that a function is handed."""
    root = (target_name(stream) or "").partition(".")[0]
    seed, owner = seed_of(seeding, maker), maker.owner
    fields = [name for name in names_in(seed) if name.startswith("self.")] if seed is not None else []
    if owner is None or not fields or root not in scope.parameters or root in ("self", "cls"):
        return False
    return all(class_field(owner, name.removeprefix("self.")) is None for name in fields)


def _is_of_each(stream: ast.expr, item: Reached) -> bool:
    """rows[i].draw(...), for row in rows: row.draw(...), where each row keeps a stream of its own: self.rng."""
    if not (target_name(stream) or "").startswith("self."):
        return False
    for site in item.chain:
        base = site.call.func.value if isinstance(site.call.func, ast.Attribute) else None
        root = (target_name(base) or "").partition(".")[0] if base is not None else ""
        if isinstance(base, ast.Subscript) or any(b.how == "iter" for b in site.scope.bindings.get(root, [])):
            return True
    return False


def _counts_tokens(name: str, scope: Scope) -> bool:
    """for i in range(p, p + n): of a name as short as n, which may be how many tokens are wanted and not how many rows.

    It counts rows where something is made or repeated n times: expand(n, -1), zeros(n, length), [x] * n.
    """
    if name != "n":
        return False
    uses = [
        scope.module.parents.get(node) for node in scope.of(ast.Name) if node.id == name and type(node.ctx) is ast.Load
    ]
    if bool(uses) and all(isinstance(use, (ast.Call, ast.BinOp)) and _ends_range(use, scope) for use in uses):
        return True
    parts = [use for use in uses if isinstance(use, (ast.Call, ast.BinOp))]
    makes = [use for use in uses if isinstance(use, ast.Call) and last_name(use.func) not in ("range", "arange")]
    sizes = [use for use in uses if isinstance(use, (ast.Tuple, ast.List))]
    repeats = [use for use in parts if isinstance(use, ast.BinOp) and isinstance(use.op, ast.Mult)]
    return not makes and not sizes and not repeats and any(_ends_range(use, scope) for use in parts)


def _ends_range(node: ast.AST, scope: Scope) -> bool:
    """range(n), range(n - 1), range(p, p + n - 1) in the head of a for"""
    above: ast.AST | None = node
    while isinstance(above, ast.BinOp):
        above = scope.module.parents.get(above)
    if not isinstance(above, ast.Call) or last_name(above.func) != "range":
        return False
    return isinstance(scope.module.parents.get(above), ast.For)


def _is_told_seed(seeding: ast.Call, maker: Scope, project: Project) -> bool:
    """def sample(prompt, n, seed): the caller gives a seed for all samples of this one call, which it gets as a whole.

    A seed that is a number unless somebody gives another is none of the caller's; nor is one of an object or file,
    which keeps the stream for all that comes.
    """
    seed = seed_of(seeding, maker)
    name = target_name(seed) if seed is not None else None
    if name is None or name not in maker.parameters or maker.simple_name == "__init__":
        return False
    if any(site.scope.simple_name in ("__init__", "<module>") for site in project.callers(maker)[:6]):
        return False
    default = maker.parameters[name].default
    return default is None or isinstance(default, ast.Constant) and default.value is None


def _is_of_run(maker: Scope) -> bool:
    """Whether a script's own code made the stream and hands it on: it is that of its one run, which has its rows."""
    return maker.owner is None and re.match(r"^(main|cli|run|demo)$", maker.simple_name) is not None


def _is_new_each_call(seeding: ast.Call, scope: Scope, project: Project) -> bool:
    """A seed that is counted on or drawn, so that no caller asks for the same numbers twice: base + next(counter)."""
    seed = seed_of(seeding, scope)
    if seed is None:
        return False
    values = [b.value for name in names_in(seed) for b in scope.bindings.get(name, []) if b.how == "="]
    parts = [seed, *(value for value in values if isinstance(value, (ast.Call, ast.BinOp)))]
    owner = project.owner_of(scope)
    methods = project.class_scopes(owner[1]) if owner is not None else []
    names = {name for part in parts for name in names_in(part) if name.startswith("self.")}
    counted = any(
        isinstance(b.node, ast.AugAssign) for m in methods for name in names for b in m.bindings.get(name, [])
    )
    return counted or any(
        isinstance(node, ast.Call) and last_name(node.func) in ("next", "time", "time_ns", "urandom", "randbits")
        for part in parts for node in walk(part)
    )  # fmt: skip


def _rows_here(scope: Scope) -> str | None:
    """A function that makes several texts: prompt.expand(n, -1), prompts as a batch, for request in self.active."""
    for call in scope.calls:
        if last_name(call.func) in ("expand", "repeat", "repeat_interleave") and call.args:
            name = target_name(call.args[0])
            if name and ROWS.match(name.rpartition(".")[2]):
                return name
    for name, bindings in scope.bindings.items():
        if ROWS.match(name) and any("shape[0]" in text_of(b.value) or ".size(0)" in text_of(b.value) or
                                    text_of(b.value).startswith("len(") for b in bindings):  # fmt: skip
            return name
    for node in scope.of(ast.Attribute):  # torch.empty(request.n_samples, length)
        if isinstance(node.ctx, ast.Load) and SEVERAL.match(node.attr):
            return target_name(node) or node.attr
    heads = [loop.iter for loop in scope.of(ast.For)]  # one draw for each of several rows
    heads += [loop.generators[0].iter for loop in scope.of(ast.ListComp)]
    heads += [loop.generators[0].iter for loop in scope.of(ast.GeneratorExp)]
    for head in heads:
        walked = [name for name in sorted(names_in(head)) if WALKED.search(name)]
        if walked and "range" not in names_in(head):
            return walked[0]
    return None


# fields that say how many texts of one prompt are wanted
SEVERAL = re.compile(
    r"^(num_samples|n_samples|num_return_sequences|best_of|num_completions|num_generations|group_size|n_seqs)$"
)
# what is walked over where several texts are made side by side
WALKED = re.compile(
    r"(^|[._])(active|running|requests|reqs|slots|seqs|sequences|rows|lanes|prompts|\w*probs\w*|\w*logits\w*|batch|in_flight)$"
)


def stream_of(call: ast.Call, scope: Scope) -> ast.expr | None:
    """The generator that a draw is handed: generator=g, or one of its arguments that is named so."""
    handed = keyword(call, "generator")
    if handed is not None:
        return handed
    for arg in [*call.args, *(word.value for word in call.keywords)]:
        if re.search(r"(^|[._])(g|gen|rng|generator|stream)$", target_name(arg) or "", re.I):
            return arg
    if last_name(call.func) in ("choice", "choices", "multinomial") and isinstance(call.func, ast.Attribute):
        name = target_name(call.func.value) or ""
        return call.func.value if re.search(r"(^|[._])(g|gen|\w*rng|generator|stream|rs|dice)$", name, re.I) else None
    return None


def one_stream(stream: ast.expr, item: Reached, project: Project) -> tuple[ast.Call, Scope] | None:
    """Where a generator is made once: not in a loop or comprehension over rows, and not one of a list."""
    for origin in project.origins(stream, item.scope, _stream_passes, depth=5):
        node = origin.node
        if not isinstance(node, ast.Call) or not any(maker in chain_of(node, origin.scope) for maker in MAKERS):
            continue
        module = origin.scope.module
        around = [
            above for above in module.up(node) if isinstance(above, (ast.ListComp, ast.GeneratorExp, ast.DictComp))
        ]
        if not around and not module.loops_around(node):
            return node, origin.scope
        return None
    return None


def _stream_passes(node: ast.expr) -> list[ast.expr]:
    """Torch's chain: Generator().manual_seed(seed) hands itself back."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "manual_seed":
        return [node.func.value]
    return []


def seeding_of(made: ast.Call, scope: Scope, project: Project) -> ast.Call | None:
    """The call that seeds a generator: in the chain that makes it, or on the name that holds it."""
    module = scope.module
    if called(made, scope) in SEEDED and (made.args or made.keywords):
        return made  # numpy's and Python's take the seed where they are made
    for above in module.up(made):
        if isinstance(above, ast.Call) and last_name(above.func) == "manual_seed":
            return above
        if isinstance(above, ast.stmt):
            targets = above.targets if isinstance(above, ast.Assign) else []
            names = {target_name(target) for target in targets}
            owner = project.owner_of(scope)
            scopes = [scope, *(project.class_scopes(owner[1]) if owner else [])]
            for one in scopes:
                for call in one.calls:
                    if (
                        SEEDING.search(method_of(call))
                        and isinstance(call.func, ast.Attribute)
                        and target_name(call.func.value) in names
                    ):
                        return call
            return None
    return None


@rule(
    "S06",
    "one random stream for data and sampling",
    kind="rng",
    severity="medium",
    why="Every sampled token moves the stream from which the rows are drawn, and the other way round: to sample once "
    "more changes all later batches, and neither can be repeated alone.",
    fix="Make a generator for each purpose, seeded from (seed, purpose).",
    source="optimiser.md D22",
)
def mixed_purposes(module: Module, project: Project) -> Iterator[Place]:
    """A generator that is handed to a DataLoader, sampler of rows or randperm, and to draws of tokens too."""
    uses: dict[ast.Call, dict[str, ast.Call]] = {}
    makers: dict[ast.Call, Scope] = {}
    for scope in module.scopes:
        for call in scope.calls:
            stream = keyword(call, "generator")
            purpose = _purpose(call, scope) if stream is not None else None
            if stream is None or purpose is None:
                continue
            maker = one_stream(stream, Reached(call, scope), project)
            if maker is not None:
                makers[maker[0]] = maker[1]
                uses.setdefault(maker[0], {})[purpose] = call
    for made, found in uses.items():
        if len(found) > 1:
            yield Place(
                made,
                "one generator draws rows and tokens",
                tuple(
                    f"{purpose}: {code_of(call, 60)} at line {call.lineno}" for purpose, call in sorted(found.items())
                ),
                scope=makers[made],
            )


def _purpose(call: ast.Call, scope: Scope) -> str | None:
    last = called(call, scope).rpartition(".")[2]
    if last in (
        "DataLoader",
        "RandomSampler",
        "randperm",
        "WeightedRandomSampler",
        "random_split",
        "SubsetRandomSampler",
    ):
        return "rows"
    return "tokens" if chooses_token(call, scope) or last in ("multinomial", "bernoulli", "exponential_") else None
