"""A rule on prompts that are longer than the model's window: cutting them must not go unsaid."""

import ast
import re
from collections.abc import Iterator

from intone.optimise.scan.cachewrites import compares_size
from intone.optimise.scan.decode import decode_loops
from intone.optimise.scan.expressions import code_of, is_false, keyword, last_name, names_in, text_of
from intone.optimise.scan.project import Project
from intone.optimise.scan.reach import turns_around
from intone.optimise.scan.rulebook import Place, rule
from intone.optimise.scan.source import Module, Scope, target_name, walk
from intone.optimise.scan.values import spelled

WINDOW = re.compile(
    r"window|context|limit|max_|block_size|n_ctx|seq_len|positions|budget|capacity|room|(^|[._ (-])ctx|max_?len|keep",
    re.I,
)
PROMPT = re.compile(
    r"^(ids|toks?|tokens?|prompt|input_ids|inputs?|enc|encoded|encoding|context|ctx|history|prompt_(ids|tokens)|x|idx|seq|"
    r"sequence|text_ids|prefix)$"
)
ENCODES = re.compile(r"encode|tokeni[sz]e|apply_chat_template|\btok(enizer)?\(|input_ids")


@rule(
    "S12",
    "a prompt that is too long is cut in silence",
    kind="cache-overflow",
    severity="low",
    why="What does not fit into the window falls off, mostly the beginning with the instructions, and whoever asked "
    "gets an answer to another text.",
    fix="Compare the length with the window first: refuse, leave out whole messages by a rule, or say what was cut.",
    source="nanochat-facts.md 4.1.7",
)
def prompt_cut(module: Module, project: Project) -> Iterator[Place]:
    """ids[:, -window:] before a generation, with nothing that says so."""
    loops = {decode.loop for decode in decode_loops(module, project)}
    for scope in module.scopes[1:]:
        for node in scope.body:
            if not _cuts_text(node, scope) and not (isinstance(node, ast.Subscript) and _cuts(node, scope, project)):
                continue
            if any(loop in loops for loop in turns_around(node, scope)) or not _generates(scope, project):
                continue
            if _is_told(scope) or any(_is_told(site.scope) for site in project.callers(scope)[:4]):
                continue
            yield Place(
                node,
                f"`{code_of(node, 50)}` cuts a prompt that is too long, and nobody is told",
                ("no comparison of its length that raises, logs or answers, here or where this is called",),
                confidence="medium",
            )
            break


def _cuts_text(node: ast.AST, scope: Scope) -> bool:
    """tokenizer(prompt, truncation=True, max_length=limit) of one prompt, on the way to a generation."""
    if not isinstance(node, ast.Call) or not ENCODES.search(text_of(node.func) + "("):
        return False
    cut = keyword(node, "truncation")
    about = text_of(node.args[0]) if node.args else ""
    single = re.search(r"prompt|question|query|text|message|chat|request|user", about) is not None
    # without a length of its own it cuts at the tokenizer's, which is the model's or none at all
    return cut is not None and not is_false(cut) and single and keyword(node, "max_length") is not None


def _cuts(node: ast.Subscript, scope: Scope, project: Project) -> bool:
    """ids[-limit:], ids[:, -(window - reply):], ids[:limit] of a prompt, with a limit that has a name."""
    parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    last = parts[-1]
    if not isinstance(last, ast.Slice) or last.step is not None or not isinstance(node.ctx, ast.Load):
        return False
    if last.upper is None and isinstance(last.lower, ast.UnaryOp) and isinstance(last.lower.op, ast.USub):
        limit: ast.expr | None = last.lower.operand
    elif last.lower is None and last.upper is not None and not isinstance(last.upper, ast.UnaryOp):
        limit = last.upper
    else:
        return False
    if limit is None or not WINDOW.search(_spelled(limit, scope)):
        return False
    if isinstance(limit, ast.Name) and KEPT.search(limit.id):
        return False  # so many places are wanted: the prompt is left out, not cut
    name = target_name(node.value)
    if name is not None and not PROMPT.search(name.rpartition(".")[2]):
        return False
    return any(
        isinstance(origin.node, ast.Call) and ENCODES.search(text_of(origin.node.func) + "(")
        or isinstance(origin.node, ast.Attribute) and origin.node.attr == "input_ids"
        for origin in project.origins(node.value, scope, _of_prompt, depth=4)
    )  # fmt: skip


KEPT = re.compile(r"(^|_)(keep|kept|completion|response|resp|answer|generated|new)(_|$)")


def _of_prompt(node: ast.expr) -> list[ast.expr]:
    """The prompt in tensor([ids]), ids.to(device), encoded.input_ids[0]."""
    if isinstance(node, (ast.List, ast.Tuple)) and len(node.elts) == 1:
        return [node.elts[0]]
    if isinstance(node, ast.Subscript):
        return [node.value]
    if isinstance(node, ast.Call) and last_name(node.func) in ("tensor", "as_tensor", "list") and node.args:
        return [node.args[0]]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("to", "cuda", "long"):
        return [node.func.value]
    return []


def _spelled(limit: ast.expr, scope: Scope) -> str:
    """A limit with the names in it spelled out one step."""
    values = [b.value for name in names_in(limit) for b in scope.bindings.get(name, []) if b.how == "="]
    return " ".join(text_of(part) for part in [limit, *values])


def _generates(scope: Scope, project: Project) -> bool:
    """Whether a function, or one that calls it, generates a text."""
    return any(
        any(last_name(call.func) in ("generate", "stream_generate") for call in one.calls)
        or any(decode.scope is one for decode in decode_loops(one.module, project))
        or any(decode.scope in project.callees(call, one) for call in one.calls
               for decode in decode_loops(one.module, project))
        for one in [scope, *(site.scope for site in project.callers(scope)[:4]), *_beside(scope, project)]
    )  # fmt: skip


def _beside(scope: Scope, project: Project) -> list[Scope]:
    """The other methods of an object: a request is put into a queue here, and written there."""
    return project.class_scopes(scope.owner) if scope.owner is not None else []


def _is_told(scope: Scope) -> bool:
    """Whether a function compares a length and then raises, logs, or hands something else on than the cut text."""
    return any(
        isinstance(node, (ast.If, ast.Assert)) and compares_size(node.test) and _is_of_text(node.test, scope)
        and _speaks(node)
        for node in scope.body
    )  # fmt: skip


def _is_of_text(test: ast.expr, scope: Scope) -> bool:
    """Whether a test asks how long a text is: len(ids) > limit, ids.shape[1], n with n = len(ids), too_long."""
    code = spelled(test, scope, steps=1)
    return bool(re.search(r"len\(|\.shape|\.size\(|numel|num_tokens|n_tokens|length|too_long|over", code))


def _speaks(node: ast.If | ast.Assert) -> bool:
    if isinstance(node, ast.Assert):
        return True
    return any(
        isinstance(part, (ast.Raise, ast.Return))
        or isinstance(part, ast.Call) and re.search(r"log|warn|print|info|error|append|pop", last_name(part.func) or "")
        for statement in [*node.body, *node.orelse] for part in walk(statement)
    )  # fmt: skip
