"""A rule on generation's memory: it should exist."""

import ast
import re
from collections.abc import Iterator

from intone.optimise.scan.decode import decode_loops
from intone.optimise.scan.expressions import code_of, keyword, last_name, names_in
from intone.optimise.scan.growth import grown_argument
from intone.optimise.scan.project import Project
from intone.optimise.scan.rulebook import Place, rule
from intone.optimise.scan.source import Module

CACHE_WORD = re.compile(
    r"cache|past|kv(_|$)|(^|_)state|input_pos|position_ids|cur_pos|start_pos|pos_ids|use_cache", re.I
)


@rule(
    "S10",
    "generation without a key-value cache",
    kind="no-kv-cache",
    severity="high",
    why="Every new token sends the whole text through the model again: the work for n tokens grows with n squared.",
    fix="Keep keys and values: run the prompt once, then feed only the newest token with its position.",
    source="optimiser.md D8; nanochat-facts.md 2.3",
)
def no_cache(module: Module, project: Project) -> Iterator[Place]:
    """A loop that feeds a growing text back into a model without handing over a cache or a position."""
    seen: set[ast.AST] = set()
    for decode in decode_loops(module, project):
        for item in decode.model_calls:
            assert isinstance(item.node, ast.Call)
            grown = grown_argument(item, decode.loop, project)
            if grown is None or item.anchor in seen or _hands_over_cache(item.node):
                continue
            seen.add(item.anchor)
            used = project.callers(decode.scope)[:3]
            where = f"the model runs at {item.scope.module.path}:{item.line}: {code_of(item.node, 50)}, {item.path()}"
            yield Place(
                item.anchor,
                f"the whole of `{grown.name}` goes through the model for every new token",
                (
                    f"it grows by {grown.how}",
                    "the call hands over no cache and no position",
                    *([where] if item.chain else []),
                    *(f"called at {site.scope.module.path}:{site.call.lineno}" for site in used),
                ),
                scope=decode.scope,
            )
    yield from _switched_off(module)


def _switched_off(module: Module) -> Iterator[Place]:
    """generate(..., use_cache=False)."""
    for scope in module.scopes:
        for call in scope.calls:
            value = keyword(call, "use_cache")
            if (
                last_name(call.func) in ("generate", "GenerationConfig")
                and isinstance(value, ast.Constant)
                and value.value is False
            ):
                yield Place(call, "the cache is switched off for generation", ("use_cache=False",))


def _hands_over_cache(call: ast.Call) -> bool:
    if len(call.args) > 1 and any(CACHE_WORD.search(name) for arg in call.args[1:] for name in names_in(arg)):
        return True
    for word in call.keywords:
        if word.arg is None:
            return True  # **kwargs: cannot be seen
        if word.arg == "use_cache" or (isinstance(word.value, ast.Constant) and word.value.value is None):
            continue
        if CACHE_WORD.search(word.arg):
            return True
    return False
