"""A rule on generation's memory: it should exist."""

import ast
import re
from collections.abc import Iterator

from intone.optimise.scan.decode import decode_loops
from intone.optimise.scan.expressions import code_of, is_false, keyword, last_name, names_in
from intone.optimise.scan.growth import grown_argument
from intone.optimise.scan.project import Project
from intone.optimise.scan.rulebook import Place, rule
from intone.optimise.scan.source import Module, Scope, target_name

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
    yield from _switched_off(module, project)


def _switched_off(module: Module, project: Project) -> Iterator[Place]:
    """generate(..., use_cache=False), also among keywords that are handed on with **; generation_config.use_cache."""
    told: set[ast.AST] = set()
    for scope in module.scopes:
        for node in scope.of(ast.Assign, ast.Call):
            if isinstance(node, ast.Assign) and is_false(node.value) and _is_flag_of_settings(node.targets[0]):
                yield Place(node, "the cache is switched off for generation", (code_of(node, 60),))
            if not isinstance(node, ast.Call) or last_name(node.func) not in ("generate", "GenerationConfig"):
                continue
            for flag, value, at in _cache_flags(node, scope, project):
                if is_false(value) and flag not in told:
                    told.add(flag)
                    handed = f"handed on by {code_of(node, 50)} at {module.path}:{node.lineno}"
                    evidence = ("use_cache=False", *([handed] if flag is not node else []))
                    yield Place(flag, "the cache is switched off for generation", evidence, scope=at)


def _is_flag_of_settings(target: ast.expr) -> bool:
    """model.generation_config.use_cache"""
    if not isinstance(target, ast.Attribute) or target.attr != "use_cache":
        return False
    return bool(re.search(r"gen\w*_?(config|cfg|settings|args|kwargs)$", target_name(target.value) or "", re.I))


def _cache_flags(call: ast.Call, scope: Scope, project: Project) -> Iterator[tuple[ast.AST, ast.expr, Scope]]:
    """(where it is said, value, function) of use_cache among a call's keywords, and in dicts handed on with **."""
    for word in call.keywords:
        if word.arg == "use_cache":
            yield call, word.value, scope
        elif word.arg is None:
            for origin in project.origins(word.value, scope, _merged, depth=4):
                found = _flag_in(origin.node)
                if found is not None:
                    yield *found, origin.scope
            name = target_name(word.value)
            owner = project.owner_of(scope) if name is not None and name.startswith("self.") else None
            for method in project.class_scopes(owner[1]) if owner is not None else [scope]:
                for node in method.body:
                    if name is not None and (value := _put_later(node, name)) is not None:
                        yield node, value, method


def _flag_in(node: ast.expr) -> tuple[ast.AST, ast.expr] | None:
    """use_cache in a dict that is written out: {"use_cache": False}, dict(use_cache=False)."""
    if isinstance(node, ast.Dict):
        for key, value in zip(node.keys, node.values, strict=True):
            if isinstance(key, ast.Constant) and key.value == "use_cache":
                return key, value
    elif isinstance(node, ast.Call) and last_name(node.func) == "dict":
        return next(((word, word.value) for word in node.keywords if word.arg == "use_cache"), None)
    return None


def _merged(node: ast.expr) -> list[ast.expr]:
    """The dicts that another one is made of, unless it says itself: {**defaults, "top_k": 5}, defaults | {...}."""
    if _flag_in(node) is not None:
        return []
    if isinstance(node, ast.Dict):
        return [value for key, value in zip(node.keys, node.values, strict=True) if key is None]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return [node.right] if _flag_in(node.right) is not None else [node.left, node.right]
    if isinstance(node, ast.Call) and last_name(node.func) in ("dict", "deepcopy"):
        return [*node.args, *(word.value for word in node.keywords if word.arg is None)]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "copy":
        return [node.func.value]
    return []


def _put_later(node: ast.AST, name: str) -> ast.expr | None:
    """kwargs["use_cache"] = False; kwargs.update(use_cache=False)"""
    if isinstance(node, ast.Assign) and isinstance(target := node.targets[0], ast.Subscript):
        key = target.slice
        put = isinstance(key, ast.Constant) and key.value == "use_cache" and target_name(target.value) == name
        return node.value if put else None
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "update":
        return keyword(node, "use_cache") if target_name(node.func.value) == name else None
    return None


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
