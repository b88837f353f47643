"""A rule on functions that set back the stream of the process and then draw from it, each time they are called."""

import ast
import re
from collections.abc import Iterator

from intone.optimise.scan.expressions import called, code_of, last_name, names_in, text_of
from intone.optimise.scan.project import Project
from intone.optimise.scan.purpose import is_run_once
from intone.optimise.scan.reach import reached
from intone.optimise.scan.rulebook import Place, rule, told_lines
from intone.optimise.scan.rules.reseeding import is_constant
from intone.optimise.scan.rules.seeding import seeds_process
from intone.optimise.scan.seeds import calls_something, seed_of
from intone.optimise.scan.source import Module, Scope

# functions that are run once, or that are asked for the same numbers each time
ONCE = re.compile(
    r"(^|_)(main|cli|run|demo|app|setup|init\w*|seed\w*|reseed|fit|train|training|eval\w*|valid\w*|tests?|benchmark\w*|bench|"
    r"profile|plot\w*|split\w*|prepare|build|make|load|create|compare|check|verify|fixture|launch|worker|reproduc\w*|"
    r"determin\w*|set_seed|experiment|trial|sweep|job|start|entry|download|preprocess|worker_init\w*|fix_\w+|shuffle\w*|"
    r"generate_(data|dataset|corpus)|synth\w*)($|_)|^<"
)
DRAWS = re.compile(
    r"^(rand|randn|randint|(rand|randn|randint)_like|normal_?|bernoulli_?|uniform_?|exponential_?|multinomial|random|"
    r"standard_normal|integers|gauss|randrange|gumbel_softmax|generate|sample|rsample|dropout)$"
)
# what a function that runs for each batch, text or frame is handed
PER_CALL = re.compile(
    r"^(x|xs|ids|batch|obs|images?|img|frames?|tokens?|logits|probs|prompts?|text|texts|rows?|samples?|inputs?|latents?|noise|"
    r"request|req|body|message|messages|query|state|t|pixels|wav|audio|x0|x_0|x_start|mask|input_ids|example|question|"
    r"examples|problem|problems|scores|hidden|features|feats|z|step)$"
)


@rule(
    "S97",
    "a function sets back the stream from which it draws",
    kind="rng",
    severity="medium",
    why="Whenever it is called, the stream of the whole process begins with the same number again: the same noise, "
    "masks or texts come back at each batch or request, and all else that draws begins anew with them.",
    fix="Seed once where the program begins, or draw from a generator that is seeded from (seed, call).",
    source="optimiser.md D22",
)
def sets_back_what_it_draws_from(module: Module, project: Project) -> Iterator[Place]:
    """def rollout(policy, prompts): set_seed(7); return [policy.generate(p, do_sample=True) for p in prompts]"""
    told = told_lines("rng", module, project, "S97")
    for scope in module.scopes[1:]:
        if isinstance(scope.node, ast.Lambda) or scope.simple_name == "__init__" or _is_told(scope, told):
            continue
        for call in scope.calls:
            seed = seed_of(call, scope)
            if seed is None or not seeds_process(call, scope) or calls_something(seed) or _is_put_back(scope):
                continue
            if not is_constant(seed, scope, project) or names_in(seed) & _given(scope, project):
                continue
            draw = _draw_behind(call, scope, project)
            often = _runs_often(scope, project) if draw is not None else None
            if draw is not None and often is not None:
                yield Place(
                    call,
                    f"`{scope.simple_name}` begins with the same number at each call",
                    (f"drawn from by {code_of(draw, 50)} at line {draw.lineno}", often),
                    confidence="low" if is_run_once(scope, project) else "medium",
                )
                break


def _is_told(scope: Scope, told: list[int]) -> bool:
    first, last = getattr(scope.node, "lineno", 0), getattr(scope.node, "end_lineno", 0) or 0
    return any(first <= line <= last for line in told)


def _is_put_back(scope: Scope) -> bool:
    return any(last_name(call.func) in ("fork_rng", "set_rng_state", "setstate", "set_state") for call in scope.calls)


def _given(scope: Scope, project: Project) -> set[str]:
    """The parameters that callers say: with a seed of the caller's own it is the caller who repeats it."""
    return {
        name for name in scope.parameters
        if any(project.argument(site, scope, name) is not None for site in project.callers(scope)[:6])
    }  # fmt: skip


def _draw_behind(seeding: ast.Call, scope: Scope, project: Project) -> ast.Call | None:
    """A draw behind a seeding in the same function or in what it calls; of a library's model what it generates."""
    for item in reached(scope.node, scope, project, 2):
        node = item.node
        if not isinstance(node, ast.Call) or not DRAWS.match(last_name(node.func) or "") or node is seeding:
            continue
        anchor = item.anchor
        greedy = re.search(r"do_sample=False|temperature=0(\.0)?\b", text_of(node))
        of_list = called(node, item.scope) == "random.sample"
        if getattr(anchor, "lineno", 0) >= seeding.lineno and not greedy and not of_list:
            return node
    return None


def _runs_often(scope: Scope, project: Project) -> str | None:
    """Why a function runs many times, in words: it is called in a loop, by a route, or handed what comes in many."""
    sites = project.callers(scope)[:6]
    for site in sites:
        if site.scope.module.loops_around(site.call):
            return f"called in a loop at {site.scope.module.path}:{site.call.lineno}"
    decorated = [text_of(item) for item in getattr(scope.node, "decorator_list", [])]
    if any(re.search(r"\.(get|post|put|route|websocket|on|task|event)\(", one) for one in decorated):
        return f"called for each request (@{decorated[0][:40]})"
    if ONCE.search(scope.simple_name) and not sites:
        return None
    once = [site for site in sites if site.scope.simple_name in ("main", "<module>", "cli", "run", "demo")]
    if sites and len(once) == len(sites):
        return None
    item = next((name for name in scope.parameters if PER_CALL.match(name)), None)
    if item is None or ONCE.search(scope.simple_name):
        return None
    return f"it is handed `{item}`, of which there are many"
