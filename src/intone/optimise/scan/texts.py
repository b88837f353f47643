"""Texts that a model may have written: the names that say so, and the parts that a text is made of."""

import ast
import re
from collections.abc import Sequence

from intone.optimise.scan.expressions import last_name, text_of
from intone.optimise.scan.origins import Origin
from intone.optimise.scan.source import target_name

MODEL_TEXT = re.compile(
    r"(^|_)(decode|batch_decode|completion|completions|generate\w*|chat|complete|ask_llm|predict_text)($|_)"
)
MODEL_WORD = re.compile(
    r"(completion|generated|model_(out|text|code|expr|sql)|llm_|response|repl(y|ies)\b|replies_|reply_|answer|prediction|output_text|"
    r"tool_(call|input|code|expr)|assistant|(^|_)generations?$|(^|_)preds?($|_(code|expr|text|program))|rollout_text)",
    re.I,
)
# files that deal with what a model writes
GENERATES = re.compile(
    r"completion|generat(ed|ions?\b)|model_output|assistant|rollout|tool_call|llm|sampled_text|\.generate\(", re.I
)
# objects that answer, and how they are asked
ANSWERERS = re.compile(
    r"(^|[._])(\w*llm|lm|model|agent|chat|chatbot|bot|client|pipe|pipeline|chain|assistant|gpt\d*|policy|solver|student|"
    r"actor|reasoner|coder|writer|planner|generator|engine|oracle|judge|grader|critic)$",
    re.I,
)
ASKS = (
    "invoke", "ask", "predict", "respond", "reply", "query", "prompt", "run", "answer", "sample", "create", "__call__",
    "act", "send", "solve", "write", "infer", "decide", "think", "plan", "propose", "say", "message", "forward_text",
)  # fmt: skip
# entries of a row or a reply in which a model's text stands
WRITTEN_KEYS = re.compile(
    r"^(\w*_)?(generated_text|completions?|responses?|generations?|predictions?|pred|model_output|output_text|llm_output|"
    r"reply|answer_code|model_answer|generated_code|rollout)(_\w+)?$"
)
# tables from token ids to letters
LETTERS = re.compile(
    r"(^|[._])(itos|id2\w+|idx2\w+|ix_?to_?\w+|i2\w+|int_?to_?\w+|ids?_to_\w+|inv_vocab|index_to_\w+)$"
)


TEXT_METHODS = (
    "strip", "replace", "split", "group", "groups", "lower", "upper", "rstrip", "lstrip", "join", "removeprefix",
    "removesuffix", "format", "partition", "rpartition", "rsplit", "splitlines", "title", "translate", "get", "pop",
)  # fmt: skip


# functions that take a piece out of a text
TAKES_OUT = re.compile(r"(^|_)(extract|blocks?|code_?blocks?|snippets?|fences?|unfence|unwrap|strip_\w+|clean)($|_)")
# what walks over texts and hands each on
WALKS = ("map", "filter", "list", "tuple", "sorted", "reversed", "enumerate", "zip", "iter", "set")


def text_passes(node: ast.expr) -> Sequence[ast.expr]:
    """The parts of an expression that a text is made of."""
    if isinstance(node, ast.BinOp):
        return [node.left, node.right]
    if isinstance(node, ast.JoinedStr):
        return [part.value for part in node.values if isinstance(part, ast.FormattedValue)]
    if isinstance(node, (ast.Subscript, ast.Starred)):
        return [node.value]
    if isinstance(node, (ast.List, ast.Tuple, ast.Set)):
        return node.elts
    if isinstance(node, ast.Dict):
        return node.values
    if isinstance(node, (ast.ListComp, ast.GeneratorExp)):
        return [node.elt]
    if isinstance(node, ast.Attribute) and node.attr in ("output", "stdout_text", "string"):
        return [node.value]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        if node.func.attr in TEXT_METHODS:
            return [node.func.value, *node.args]
        if node.func.attr in ("search", "match", "findall", "finditer", "sub", "fullmatch", "dedent", "compile"):
            return list(node.args[-2:])
        if node.func.attr in ("parse", "loads", "safe_load", "fromstring", "unescape"):  # of JSON, code or markup
            return list(node.args[:1])
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in WALKS:
        return node.args
    if isinstance(node, ast.Call) and TAKES_OUT.search(last_name(node.func) or ""):
        return list(node.args[:1])
    if (
        isinstance(node, ast.Call)
        and last_name(node.func) in ("str", "compile", "dedent", "max", "min", "next", "text", "loads")
        and node.args
    ):
        return [node.args[0]]
    return []


def written_by_model(origin: Origin) -> str | None:
    """Why an expression is text that a model wrote, in words: decoded, asked for, or named so; None for others."""
    node = origin.node
    where = f"{origin.scope.module.path}:{getattr(node, 'lineno', 0)}"
    if isinstance(node, ast.Subscript):
        key = node.slice.value if isinstance(node.slice, ast.Constant) else None
        letters = LETTERS.search(target_name(node.value) or "")
        if letters or isinstance(key, str) and (WRITTEN_KEYS.match(key) or "choices" in text_of(node)):
            return f"the text is {text_of(node)[:40]} at {where}"
    if isinstance(node, ast.Call) and _answers(node):
        return f"the text comes from {text_of(node)[:40]} at {where}"
    name = last_name(node) or ""
    if name and MODEL_WORD.search(name):
        return f"`{name}` at {where} is named as a model's text"
    if isinstance(node, ast.Attribute):
        holder = text_of(node)
        said = node.attr in ("content", "text") and re.search(
            r"choice|message|response|completion|output|\b(msg|reply|answer|llm|chat)\b", holder
        )
        if said or node.attr == "arguments" and re.search(r"function|tool|call", holder):
            return f"the text is {holder[:40]} at {where}"
    return None


def _answers(node: ast.Call) -> bool:
    """tokenizer.decode(ids), model.complete(prompt), agent.ask(question), llm(prompt)"""
    last = last_name(node.func) or ""
    base = text_of(node.func)
    if LETTERS.search(target_name(node.func) or ""):
        return True
    if MODEL_TEXT.search(last) and not re.search(
        r"base64|bytes|utf|codecs|json|b\.decode|stdout|data\.decode|response\.read", base
    ):
        constant = bool(node.args) and isinstance(node.args[0], ast.Constant)
        return not (last == "decode" and (constant or not node.args))  # bytes.decode("utf-8")
    if isinstance(node.func, ast.Attribute) and last in ASKS:
        return bool(ANSWERERS.search(target_name(node.func.value) or ""))
    return isinstance(node.func, (ast.Name, ast.Attribute)) and bool(
        re.fullmatch(r"(ask_|call_|query_|prompt_)?(llm|lm|gpt\w*|chat_model|pipe)(_\w+)?", last)
    )
