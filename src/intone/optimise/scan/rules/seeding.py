"""Rules on seeds that act beyond their place, and on streams that several processes or rows begin with."""

import ast
import re
from collections.abc import Iterator

from intone.optimise.scan.calls import functions_of
from intone.optimise.scan.constants import known_values
from intone.optimise.scan.expressions import called, code_of, keyword, last_name, names_in, text_of
from intone.optimise.scan.project import Project
from intone.optimise.scan.reach import reached
from intone.optimise.scan.rulebook import Place, rule
from intone.optimise.scan.rules.requests import one_seed_for_requests
from intone.optimise.scan.rules.reseeding import reseeded
from intone.optimise.scan.rules.streams import set_back_by_one
from intone.optimise.scan.seeds import MAKERS, SEEDERS, SEEDING, WRITES, chain_of, seed_of
from intone.optimise.scan.source import Module, Scope, target_name
from intone.optimise.scan.values import chooses_token

PARTS = re.compile(r"Dataset|Sampler|Loader|Collat|Augment|Transform|Mask|Noise|Buffer|Stream|Shuffl|Tokenizer")
SCRIPT = re.compile(r"^(main|cli|run|demo|app|setup|<module>)$")


def seeds_process(call: ast.Call, scope: Scope) -> bool:
    """Whether a call seeds a stream of the whole process: torch.manual_seed, random.seed, set_seed of a library."""
    name = called(call, scope)
    root = (target_name(call.func) or "").partition(".")[0]
    return (bool(SEEDING.search("." + name.rpartition(".")[2])) or name in SEEDERS) and root in scope.module.imports


@rule(
    "S13",
    "making an object seeds the whole process",
    kind="rng",
    severity="medium",
    why="Whoever makes this object sets back the stream of everybody else: a second one in the middle of a run brings "
    "back the dropout masks, rows and tokens that were drawn before.",
    fix="Give the object a generator of its own, made from the seed.",
    source="optimiser.md D22",
)
def seeded_by_object(module: Module, project: Project) -> Iterator[Place]:
    """class Rows(Dataset): def __init__(self, seed): np.random.seed(seed)"""
    for scope in module.scopes[1:]:
        if scope.owner is None or scope.simple_name != "__init__":
            continue
        about = " ".join([scope.owner.name, *(text_of(base) for base in scope.owner.bases)])
        for call in scope.calls if PARTS.search(about) else ():
            if seeds_process(call, scope) and call.args:
                yield Place(
                    call,
                    f"making `{scope.owner.name}` sets the stream of the whole process",
                    (code_of(call, 60), "all else that draws from this stream goes on from the same number"),
                )
                break


@rule(
    "S14",
    "a call that names no seed gets that of all others",
    kind="rng",
    severity="medium",
    why="Every call that names no seed sets the stream of the process to one number: the same prompt gives the same "
    "text whatever the temperature, and whatever else draws begins anew with it.",
    fix="Let no seed mean that nothing is seeded, and draw from a generator that belongs to the call.",
    source="optimiser.md D22",
)
def one_seed_for_calls(module: Module, project: Project) -> Iterator[Place]:
    """def generate(self, prompt, seed=1234): torch.manual_seed(seed); also with a number that is written there."""
    told: set[ast.AST] | None = None
    for scope in module.scopes[1:]:
        if not WRITES.search(scope.simple_name) or SCRIPT.match(scope.simple_name):
            continue
        for call in scope.calls:
            own = not seeds_process(call, scope)
            if not call.args or _is_asked_for(call, scope) or own and not _seeds_own(call, scope):
                continue
            number = next((one for one in known_values(call.args[0], scope, project) if type(one.value) is int), None)
            if number is None or not _draws(scope, project) or _runs_once(scope, project):
                continue
            if told is None:
                others = (reseeded, one_seed_for_requests, set_back_by_one)
                told = {place.node for other in others for place in other(module, project)}
            if call not in told:
                what = "begins" if own else "seeds the whole process,"
                yield Place(
                    call,
                    f"`{scope.simple_name}` {what} with {number.value} where nobody says otherwise",
                    (code_of(call, 60), f"the number stands at {number.scope.module.path}:{number.node.lineno}"),
                )
                break


def _seeds_own(call: ast.Call, scope: Scope) -> bool:
    """gen.manual_seed(self.seed) of a generator that is made here, with a seed that no caller gives."""
    seed = seed_of(call, scope)
    if seed is None or not SEEDING.search("." + (last_name(call.func) or "")):
        return False
    given = set(scope.parameters) - {"self", "cls"}
    named = set(names_in(seed))
    named |= {n for name in named for b in scope.bindings.get(name, []) for n in names_in(b.value)}
    base = call.func.value if isinstance(call.func, ast.Attribute) else None
    made = [b.value for b in scope.bindings.get(target_name(base) or "", [])] if base is not None else []
    fresh = "Generator(" in " ".join(text_of(one) for one in [*made, *([base] if isinstance(base, ast.Call) else [])])
    return fresh and not {name.partition(".")[0] for name in named} & given


def _is_asked_for(call: ast.Call, scope: Scope) -> bool:
    """if seed is not None: torch.manual_seed(seed)"""
    names = names_in(call.args[0])
    return any(isinstance(above, ast.If) and names & names_in(above.test) for above in scope.module.up(call))


def _draws(scope: Scope, project: Project) -> bool:
    return any(
        isinstance(item.node, ast.Call)
        and (last_name(item.node.func) in ("generate", "randn", "randn_like") or chooses_token(item.node, item.scope))
        for item in reached(scope.node, scope, project)
    )


def _runs_once(scope: Scope, project: Project) -> bool:
    """Whether all that calls a function is a script's own code, outside of loops: it seeds its one run."""
    sites = project.callers(scope)
    return bool(sites) and all(
        SCRIPT.match(site.scope.simple_name) and not site.scope.module.loops_around(site.call) for site in sites
    )


@rule(
    "S17",
    "processes begin with one state of numpy",
    kind="rng",
    severity="medium",
    why="A process that is forked inherits the state of numpy's stream, and nothing seeds it anew: all of them draw "
    "the same numbers.",
    fix="Seed in each process from (seed, its number), or hand each a generator of its own.",
    source="numpy reference on parallel random numbers",
)
def inherited_state(module: Module, project: Project) -> Iterator[Place]:
    """Process(target=play), pool.map(play, ...) where play draws by np.random and seeds nothing."""
    if re.search(r"['\"](spawn|forkserver)['\"]", module.text):
        return
    for starter in ("Process", "map", "imap", "imap_unordered", "starmap", "apply_async"):
        for site in project.sites.get(starter, []):
            if site.scope.module is not module or not re.search(r"multiprocessing|\bmp\.", module.text):
                continue
            if isinstance(site.call.func, ast.Name) and starter != "Process":
                continue
            handed = keyword(site.call, "target") or (site.call.args[0] if site.call.args else None)
            for function in functions_of(handed, site.scope, project)[:1] if handed is not None else ():
                inside = reached(function.node, function, project, 2)
                items = [item for item in inside if isinstance(item.node, ast.Call)]
                if any(seed_of(item.node, item.scope) is not None for item in items):  # type: ignore[arg-type]
                    continue
                draw = next((item for item in items if _is_of_numpy(item.node, item.scope)), None)
                if draw is not None:
                    yield Place(
                        draw.node,
                        f"every process that runs `{function.simple_name}` draws the same numbers",
                        (f"started by {code_of(site.call, 50)} at line {site.call.lineno}, forked with numpy's state",),
                        scope=draw.scope,
                    )


def _is_of_numpy(node: ast.AST, scope: Scope) -> bool:
    """A draw from numpy's own stream: np.random.rand()"""
    name = called(node, scope) if isinstance(node, ast.Call) else ""
    return name.startswith("numpy.random.") and name.rpartition(".")[2] not in (
        "seed", "default_rng", "RandomState", "Generator", "SeedSequence", "get_state", "set_state", "PCG64", "Philox"
    )  # fmt: skip


@rule(
    "S18",
    "one generator under the name of several",
    kind="rng",
    severity="medium",
    why="The list holds one generator many times: rows that should have a stream each take turns with one, so the text "
    "of a row depends on how many others there are.",
    fix="Make one generator for each row, seeded from (seed, row).",
    source="optimiser.md D22",
)
def one_generator_many_times(module: Module, project: Project) -> Iterator[Place]:
    """[torch.Generator().manual_seed(seed)] * n, [rng for _ in range(n)]"""
    for scope in module.scopes:
        for node in scope.of(ast.BinOp, ast.ListComp):
            one: ast.expr | None = None
            if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
                lists = [side for side in (node.left, node.right) if isinstance(side, ast.List)]
                one = next((side.elts[0] for side in lists if len(side.elts) == 1), None)
            elif isinstance(node, ast.ListComp) and isinstance(node.elt, ast.Name):
                own = {name for head in node.generators for name in names_in(head.target)}
                one = node.elt if node.elt.id not in own else None
            if one is not None and _is_generator(one, scope):
                yield Place(node, f"`{code_of(node, 50)}` is one generator, not one for each", (code_of(one, 60),))


def _is_generator(node: ast.expr, scope: Scope) -> bool:
    values = [node]
    if isinstance(node, (ast.Name, ast.Attribute)):
        values = [b.value for b in scope.bindings.get(target_name(node) or "", []) if b.how == "="]
    return bool(values) and all(
        isinstance(value, ast.Call) and any(maker in chain_of(value, scope) for maker in MAKERS) for value in values
    )
