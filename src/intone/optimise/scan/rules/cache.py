"""A rule on generation's memory: it should exist."""

import ast
import re
from collections.abc import Iterator

from intone.optimise.scan.decode import decode_loops
from intone.optimise.scan.expressions import code_of, is_false, last_name, names_in
from intone.optimise.scan.growth import grown_argument, is_last_only
from intone.optimise.scan.options import options
from intone.optimise.scan.project import Project
from intone.optimise.scan.rulebook import Place, rule
from intone.optimise.scan.source import Module, Scope, target_name, walk

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
            inside = _is_step(item.scope, decode.scope) if item.chain else False
            yield Place(
                item.node if inside else item.anchor,
                f"the whole of `{grown.name}` goes through the model for every new token",
                (
                    f"it grows by {grown.how}",
                    "the call hands over no cache and no position",
                    *([where] if item.chain else []),
                    *(f"called at {site.scope.module.path}:{site.call.lineno}" for site in used),
                ),
                scope=item.scope if inside else decode.scope,
                also=((item.anchor, decode.scope),) if inside else (),
            )
    yield from _switched_off(module, project)


def _is_step(scope: Scope, home: Scope) -> bool:
    """Whether a function of the same class runs a whole text and hands on its last position only."""
    if scope.owner is None or scope.owner is not home.owner:
        return False
    kept = [part for value in scope.returns for part in walk(value) if isinstance(part, ast.Subscript)]
    return any(is_last_only(part.slice) for part in kept)


def _switched_off(module: Module, project: Project) -> Iterator[Place]:
    """generate(..., use_cache=False), also among keywords that are handed on with **; generation_config.use_cache."""
    told: set[ast.AST] = set()
    for scope in module.scopes:
        for node in scope.of(ast.Assign, ast.Call):
            if isinstance(node, ast.Assign) and is_false(node.value) and _is_flag_of_settings(node.targets[0]):
                yield Place(node, "the cache is switched off for generation", (code_of(node, 60),))
            if isinstance(node, (ast.Assign, ast.Call)) and _for_whole_model(node, scope, project):
                yield Place(node, "the cache is switched off in the model's settings", (code_of(node, 60),))
            if not isinstance(node, ast.Call) or last_name(node.func) not in ("generate", "GenerationConfig"):
                continue
            for flag in options(node, "use_cache", scope, project):
                if is_false(flag.value) and flag.node not in told:
                    told.add(flag.node)
                    handed = f"handed on by {code_of(node, 50)} at {module.path}:{node.lineno}"
                    evidence = ("use_cache=False", *([handed] if flag.node is not node else []))
                    yield Place(flag.node, "the cache is switched off for generation", evidence, scope=flag.scope)


def _for_whole_model(node: ast.Assign | ast.Call, scope: Scope, project: Project) -> bool:
    """model.config.use_cache = False, from_pretrained(name, use_cache=False) in a file that only generates."""
    if isinstance(node, ast.Assign):
        off = is_false(node.value) and (target_name(node.targets[0]) or "").endswith("config.use_cache")
        off = off and not _is_flag_of_settings(node.targets[0])
    else:
        off = last_name(node.func) in ("from_pretrained", "from_config") and any(
            is_false(flag.value) for flag in options(node, "use_cache", scope, project)
        )
    text = scope.module.text
    return off and ".generate(" in text and not re.search(r"use_cache['\"]?\s*[=:]\s*True|\.backward\(|\.train\(", text)


def _is_flag_of_settings(target: ast.expr) -> bool:
    """model.generation_config.use_cache"""
    if not isinstance(target, ast.Attribute) or target.attr != "use_cache":
        return False
    return bool(re.search(r"gen\w*_?(config|cfg|settings|args|kwargs)$", target_name(target.value) or "", re.I))


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
