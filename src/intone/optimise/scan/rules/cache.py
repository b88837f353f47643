"""A rule on generation's memory: it should exist."""

import ast
import re
from collections.abc import Iterator

from intone.optimise.scan.constants import is_never
from intone.optimise.scan.decode import decode_loops
from intone.optimise.scan.expressions import code_of, last_name, names_in, text_of
from intone.optimise.scan.growth import grown_argument, is_last_only
from intone.optimise.scan.options import options
from intone.optimise.scan.project import Project
from intone.optimise.scan.reach import Reached, reached
from intone.optimise.scan.rulebook import Place, rule
from intone.optimise.scan.source import Module, Scope, own_nodes, target_name, walk
from intone.optimise.scan.values import is_model_call, is_module_class

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
            if grown is None or item.anchor in seen or _hands_over_cache(item.node, item.scope, decode.loop):
                continue
            turn = reached(decode.loop, decode.scope, project) if grown.is_cut else ()
            if any(_is_cached(other, decode.loop) for other in turn):
                continue  # the newest position is cut out of what a cache was handed to on the way
            seen.add(item.anchor)
            used = project.callers(decode.scope)[:3]
            where = f"the model runs at {item.scope.module.path}:{item.line}: {code_of(item.node, 50)}, {item.path()}"
            inside = _is_step(item, decode.scope) if item.chain else False
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
    yield from _continued(module, project, seen)
    yield from _switched_off(module, project)


def _continued(module: Module, project: Project, seen: set[ast.AST]) -> Iterator[Place]:
    """frames = cat((frames, decoder(frames, memory)[:, -1:])): numbers and no tokens, and the whole each time."""
    for scope in module.scopes[1:]:
        for loop in scope.of(ast.For, ast.While):
            inside = [node for node in own_nodes(loop)]
            if any(isinstance(node, ast.Call) and last_name(node.func) == "backward" for node in inside):
                continue
            for node in inside:
                name = target_name(node.targets[0]) if isinstance(node, ast.Assign) else None
                joins = name is not None and isinstance(node.value, ast.Call) and last_name(node.value.func) in JOINS  # type: ignore[attr-defined, operator]
                if name is None or not joins or name not in names_in(node.value):  # type: ignore[attr-defined]
                    continue
                run = _run_of_whole(name, node.value, inside, scope, project)  # type: ignore[attr-defined]
                if run is None or run in seen or _hands_over_cache(run, scope, loop):
                    continue
                seen.add(run)
                yield Place(
                    run,
                    f"the whole of `{name}` goes through the model for every new position",
                    (f"it grows by {code_of(node, 60)}", "the call hands over no cache and no position"),
                    confidence="medium",
                )


JOINS = ("cat", "concat", "concatenate", "hstack", "column_stack")


def _run_of_whole(
    name: str, joined: ast.expr, inside: list[ast.AST], scope: Scope, project: Project
) -> ast.Call | None:  # fmt: skip
    """The call of a model that gets the text `name` and whose last position is joined to it in the same loop."""
    made: dict[str, list[ast.expr]] = {}
    for node in inside:
        if isinstance(node, ast.Assign) and (target := target_name(node.targets[0])) is not None and target != name:
            made.setdefault(target, []).append(node.value)
    values, todo = [joined], [other for other in names_in(joined) if other != name]
    for _ in range(3):
        found = [value for other in todo for value in made.get(other, [])]
        values += found
        todo = [other for value in found for other in names_in(value) if other != name]
    last = any(isinstance(part, ast.Subscript) and is_last_only(part.slice) for value in values for part in walk(value))
    for part in [part for value in values for part in walk(value)]:
        whole = isinstance(part, ast.Call) and any(target_name(arg) == name for arg in part.args[:3])
        if last and whole and part is not joined and is_model_call(part, scope, project):  # type: ignore[arg-type]
            return part  # type: ignore[return-value]
    return None


def _is_step(item: Reached, home: Scope) -> bool:
    """Whether a method of the same object runs a whole text that it is handed and takes its last position only.

    Of another object's method it must be the one that begins a cache anew; a model's own methods are the model.
    """
    scope, call = item.scope, item.node
    kept = [part for part in scope.of(ast.Subscript) if isinstance(part.ctx, ast.Load) and is_last_only(part.slice)]
    if scope.owner is None or not kept or not isinstance(call, ast.Call):
        return False
    if scope.owner is home.owner and any(part in walk(value) for value in scope.returns for part in kept):
        return True
    handed = {name for arg in [*call.args, *(word.value for word in call.keywords)] for name in names_in(arg)}
    given = bool(handed & (set(scope.parameters) - {"self"})) and not is_module_class(scope.owner)
    cached = any(CACHE_WORD.search(word.arg or "") for word in call.keywords if word.arg != "use_cache")
    return given and (scope.owner is home.owner or cached)


def _switched_off(module: Module, project: Project) -> Iterator[Place]:
    """generate(..., use_cache=False), also among keywords that are handed on with **; generation_config.use_cache."""
    told: set[ast.AST] = set()
    for scope in module.scopes:
        for made in scope.of(ast.Dict):
            if (off := _off_in_options(made, scope, project)) is not None and made not in told:
                told.add(made)
                yield Place(off, "the cache is switched off for generation", (code_of(made, 70),), scope=scope)
        for node in scope.of(ast.Assign, ast.Call):
            flags = node.targets if isinstance(node, ast.Assign) else []
            if any(_is_flag_of_settings(one) for one in flags) and _is_off(node.value, scope, project):  # type: ignore[attr-defined]
                yield Place(node, "the cache is switched off for generation", (code_of(node, 60),))
            if isinstance(node, (ast.Assign, ast.Call)) and _for_whole_model(node, scope, project):
                if isinstance(node, ast.Assign) and _is_set_for_a_while(node, scope):
                    continue
                yield Place(node, "the cache is switched off in the model's settings", (code_of(node, 60),))
            if not isinstance(node, ast.Call) or not _generates(node, scope, project):
                continue
            for flag in options(node, "use_cache", scope, project):
                if _is_off(flag.value, flag.scope, project) and flag.node not in told:
                    told.add(flag.node)
                    handed = f"handed on by {code_of(node, 50)} at {module.path}:{node.lineno}"
                    evidence = ("use_cache=False", *([handed] if flag.node is not node else []))
                    yield Place(flag.node, "the cache is switched off for generation", evidence, scope=flag.scope)


def _is_set_for_a_while(node: ast.Assign, scope: Scope) -> bool:
    """config.use_cache = False, and config.use_cache = before at its end: set for what stands between."""
    name = target_name(node.targets[0])
    same = [one for one in scope.of(ast.Assign) if any(target_name(target) == name for target in one.targets)]
    return name is not None and any(not isinstance(one.value, ast.Constant) for one in same)


# options that only generation has
GENERATES = re.compile(
    r"^(do_sample|top_p|top_k|temperature|max_new_tokens|repetition_penalty|num_beams|min_p|num_return_sequences)$"
)


def _off_in_options(made: ast.Dict, scope: Scope, project: Project) -> ast.expr | None:
    """{"do_sample": True, "top_p": 0.95, "use_cache": False}: the value, of options by which a text is generated."""
    pairs = zip(made.keys, made.values, strict=True)
    said = {key.value: value for key, value in pairs if isinstance(key, ast.Constant)}
    off = said.get("use_cache")
    if off is None or not any(isinstance(key, str) and GENERATES.match(key) for key in said):
        return None
    return off if _is_off(off, scope, project) else None


def _for_whole_model(node: ast.Assign | ast.Call, scope: Scope, project: Project) -> bool:
    """model.config.use_cache = False, from_pretrained(name, use_cache=False) in a file that only generates."""
    if isinstance(node, ast.Assign):
        name = target_name(node.targets[0]) or ""
        off = bool(re.search(r"(config|cfg|conf)\.use_cache$", name)) and not re.search(r"(^|[._])encoder", name)
        off = off and not _is_flag_of_settings(node.targets[0]) and _is_off(node.value, scope, project)
    else:
        off = bool(re.search(r"^from_(pretrained|config)$|Config$", last_name(node.func) or "")) and any(
            _is_off(flag.value, flag.scope, project) for flag in options(node, "use_cache", scope, project)
        )
        off = off and last_name(node.func) != "GenerationConfig"
    text = scope.module.text
    return off and ".generate(" in text and not re.search(r"use_cache['\"]?\s*[=:]\s*True|\.backward\(|\.train\(", text)


def _is_flag_of_settings(target: ast.expr) -> bool:
    """model.generation_config.use_cache"""
    if not isinstance(target, ast.Attribute) or target.attr != "use_cache":
        return False
    return bool(re.search(r"gen\w*_?(config|cfg|settings|args|kwargs)$", target_name(target.value) or "", re.I))


def _is_off(value: ast.expr, scope: Scope, project: Project) -> bool:
    """False, or a name, setting or flag that is False by all that the code shows."""
    return is_never(value, scope, project) and not (isinstance(value, ast.Constant) and value.value is None)


def _generates(call: ast.Call, scope: Scope, project: Project) -> bool:
    """model.generate(), GenerationConfig(), partial(model.generate), a pipeline of transformers that writes text."""
    last = last_name(call.func)
    if last == "partial" and call.args:
        return last_name(call.args[0]) == "generate"
    if last in ("generate", "GenerationConfig", "stream_generate", "generate_text"):
        return True
    if not any(word.arg in ("use_cache", None) for word in call.keywords):
        return False
    made = [call, *(o.node for o in project.origins(call.func, scope, depth=3))]
    if re.search(r"(^|_)(pipe|pipeline|text_generator)$", last or ""):
        return True
    return any(
        isinstance(one, ast.Call) and last_name(one.func) == "pipeline" and "gener" in text_of(one) for one in made
    )


def _is_cached(item: Reached, loop: ast.AST) -> bool:
    """Whether a call that runs at every turn is handed a cache."""
    return isinstance(item.node, ast.Call) and _hands_over_cache(item.node, item.scope, loop)


def _hands_over_cache(call: ast.Call, scope: Scope, loop: ast.AST) -> bool:
    """Whether a call gets a cache or a position; not where it is made anew at every turn, or counts the whole text."""
    for arg in call.args[1:]:
        if any(CACHE_WORD.search(name) for name in names_in(arg)) and not _is_fresh(arg, scope, loop):
            return True
    for word in call.keywords:
        if word.arg is None:
            if _is_tokenized(word.value, scope):
                continue  # **tokenizer(text): ids and mask
            return True  # **kwargs: cannot be seen
        if word.arg == "use_cache" or (isinstance(word.value, ast.Constant) and word.value.value is None):
            continue
        if CACHE_WORD.search(word.arg) and not _is_fresh(word.value, scope, loop):
            return True
    return False


def _is_tokenized(value: ast.expr, scope: Scope) -> bool:
    made = [value, *(b.value for b in scope.bindings.get(target_name(value) or "", []) if b.how == "=")]
    return any(isinstance(one, ast.Call) and "return_tensors" in text_of(one) for one in made)


def _is_fresh(value: ast.expr, scope: Scope, loop: ast.AST) -> bool:
    """past = None at every turn, KVCache(config) made in the loop, arange(len(ids)) as positions: nothing is kept."""
    name = target_name(value)
    if name is None:
        return _begins_anew(value)
    inside = set(map(id, own_nodes(loop)))
    bound = scope.bindings.get(name, [])
    if bound and not any(id(b.node) in inside for b in bound) and name not in scope.parameters:
        runs_in_loop = not any(id(node) in inside for node in scope.body) and not _is_around(loop, scope)
        return runs_in_loop and all(b.how == "=" and _begins_anew(b.value) for b in bound)
    made = [b for b in bound if id(b.node) in inside]
    if len(made) != len(bound) and name not in scope.parameters and not made:
        return False
    before = [b for b in bound if id(b.node) not in inside]
    return bool(made) and not before and all(b.how == "=" and _begins_anew(b.value) for b in made)


def _is_around(loop: ast.AST, scope: Scope) -> bool:
    """Whether a loop stands in a function itself, and not in one that calls it."""
    return any(node is loop for node in scope.body) or scope.node is loop


def _begins_anew(value: ast.expr) -> bool:
    if isinstance(value, ast.Constant):
        return value.value is None
    if not isinstance(value, ast.Call):
        return False
    last = last_name(value.func) or ""
    if last == "arange":
        return len(value.args) < 2
    if last in ("unsqueeze", "view", "expand", "to", "long", "cumsum"):
        return bool(re.search(r"arange\([^,]*\)|arange\([^,]*, device|mask\w*\.\w*\(?.*cumsum", text_of(value)))
    return bool(re.search(r"cache", last, re.I)) and not re.search(r"update|append|crop|get|advance", last)
