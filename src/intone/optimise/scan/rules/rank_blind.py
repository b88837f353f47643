"""A rule on streams of noise in a program of several processes: each has to begin with a seed of its own."""

import ast
import re
from collections.abc import Iterator

from intone.optimise.scan.expressions import called, code_of, last_name, names_in, text_of
from intone.optimise.scan.loops import train_loops
from intone.optimise.scan.neighbours import is_elsewhere, neighbours
from intone.optimise.scan.project import Project, Site
from intone.optimise.scan.reach import reached
from intone.optimise.scan.rulebook import Place, rule, told_lines
from intone.optimise.scan.seeds import SEEDED, SEEDING, calls_something, seed_of
from intone.optimise.scan.source import Module, Scope, target_name, walk
from intone.optimise.scan.streamuse import draws_from

TOGETHER = re.compile(
    r"init_process_group|DistributedDataParallel|Accelerator\(|Fabric\(|fully_shard|deepspeed\.initialize|init_distributed|"
    r"LOCAL_RANK|\bhvd\.|xm\.xrt_world_size"
)
RANK = re.compile(r"rank|process_index|replica|device_id|ordinal|worker|\bddp|proc(ess)?_id|shard_id", re.I)
# draws that make rows differ: noise, time steps, masks, tokens; no order, which ranks must have alike
NOISE = re.compile(
    r"^(rand|randn|randint|(rand|randn|randint)_like|normal_?|bernoulli_?|uniform_?|exponential_?|multinomial|poisson|random_?|"
    r"standard_normal|integers|uniform|gauss|choice|beta|log_normal_?|trunc_normal_?|geometric_?)$"
)
# what is meant to be alike wherever it runs: a picture of the progress, weights at the start
ALIKE = re.compile(
    r"(^|_)(eval\w*|valid\w*|val|tests?|preview\w*|plot\w*|grid|visuali\w*|demo|fixed|probe\w*|init\w*|reset_parameters|"
    r"snapshot|showcase|perm\w*|shuffle\w*|split\w*|order)($|_)"
)


@rule(
    "S96",
    "noise that every rank draws alike",
    kind="rng",
    severity="medium",
    why="Several processes train together, and the stream from which noise, time steps or masks are drawn begins with "
    "one number on all of them: every device draws the same, so more devices see no more variety.",
    fix="Make the seed a function of (seed, rank), for this stream if not for all.",
    source="optimiser.md D22; PyTorch notes on reproducibility",
)
def noise_alike_on_ranks(module: Module, project: Project) -> Iterator[Place]:
    """Diffusion(steps, device, args.seed), whose generator is seeded with that number in each process of a DDP run."""
    if is_elsewhere(module):
        return
    files = neighbours(module, project)
    if not any(file.mentions(TOGETHER) for file in files):
        return
    told = [line for file in files if file is module for line in told_lines("rng", file, project, "S96")]
    if told:
        return
    steps = _in_steps(files, project)
    for scope in module.scopes:
        for call in scope.calls:
            seed = seed_of(call, scope)
            if seed is None or not _is_own(call, scope, project) or _differs(seed, scope, project):
                continue
            draw = next((pair for pair in draws_from(call, scope, project) if _is_noise(*pair, steps)), None)
            if draw is None:
                continue
            site = _who_says(seed, scope, project)
            at, place = (site.scope, site.call) if site is not None else (scope, call)
            yield Place(
                place,
                f"`{code_of(draw[0], 40)}` draws the same on every rank",
                (
                    f"the stream begins with `{code_of(seed, 30)}` at {module.path}:{call.lineno}, without a rank",
                    f"drawn from in the steps of a training at {draw[1].module.path}:{draw[0].lineno}",
                ),
                confidence="medium",
                scope=at,
                also=((call, scope),) if site is not None else (),
            )
            return


def _in_steps(files: list[Module], project: Project) -> set[Scope]:
    """The functions that run in the steps of the trainings of some files."""
    loops = [loop for file in files for loop in train_loops(file, project)]
    found = {item.scope for loop in loops for item in loop.step_turn(project)}
    for file in files:  # a trainer of a library calls these for each batch
        for scope in file.scopes:
            if scope.simple_name in ("training_step", "compute_loss"):
                found |= {item.scope for item in reached(scope.node, scope, project)}
    return found


def _is_own(call: ast.Call, scope: Scope, project: Project) -> bool:
    """Whether a call seeds a stream of its own: a generator's manual_seed, default_rng(1), Random(1)."""
    if called(call, scope) in SEEDED:
        return called(call, scope) != "random.Random"  # whose numbers are ports, names and orders more often than noise
    if not isinstance(call.func, ast.Attribute) or not SEEDING.search("." + call.func.attr):
        return False
    base = call.func.value
    if isinstance(base, ast.Call):
        return last_name(base.func) == "Generator"
    name = target_name(base) or ""
    owner = project.owner_of(scope) if name.startswith("self.") else None
    places = [scope, *(project.class_scopes(owner[1]) if owner is not None else [])]
    return any("Generator(" in text_of(b.value) for place in places for b in place.bindings.get(name, []))


def _differs(seed: ast.expr, scope: Scope, project: Project) -> bool:
    """Whether a seed may be another one on each rank, or at each step, by what it is made of anywhere."""
    if calls_something(seed) or isinstance(seed, ast.Constant) and seed.value is None:
        return True
    parts = [part for part in walk(seed) if isinstance(part, (ast.Name, ast.Attribute))]
    ends = [end for part in parts for end in project.origins(part, scope, lambda n: _sides(n), depth=5)]
    texts = [text_of(seed), *(text_of(end.node) for end in ends if not end.is_annotation)]
    if any(RANK.search(text) or re.search(r"step|epoch|index|idx|time\(|urandom|\bid\b", text) for text in texts):
        return True
    return any(isinstance(end.node, ast.Constant) and end.node.value is None for end in ends)


def _sides(node: ast.expr) -> list[ast.expr]:
    return [node.left, node.right] if isinstance(node, ast.BinOp) else []


def _is_noise(draw: ast.Call, scope: Scope, steps: set[Scope]) -> bool:
    if not NOISE.match(last_name(draw.func) or "") or ALIKE.search(scope.simple_name):
        return False
    names = {name for arg in draw.args for name in names_in(arg)}
    rows = any(re.search(r"len\((data|self\.(data|rows|files|paths|docs))", text_of(arg)) for arg in draw.args)
    return scope in steps and not rows and not any(RANK.search(name) for name in names)


def _who_says(seed: ast.expr, scope: Scope, project: Project) -> Site | None:
    """The call that hands the seed over, where it is a parameter: Diffusion(steps, device, args.seed)."""
    name = target_name(seed)
    if name is None or name not in scope.parameters:
        return None
    sites = [site for site in project.callers(scope)[:4] if project.argument(site, scope, name) is not None]
    return sites[0] if sites else None
