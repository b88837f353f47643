"""Small questions about expressions: names, dotted names with imports spelled out, keywords, code on one line."""

import ast

from intone.optimise.scan.source import Module, Scope, target_name, walk


def last_name(node: ast.expr) -> str | None:
    """f -> "f", a.b.f -> "f", anything else None."""
    if isinstance(node, ast.Name):
        return node.id
    return node.attr if isinstance(node, ast.Attribute) else None


def dotted(node: ast.AST, scope: Scope) -> str:
    """The name of an expression with imports spelled out: F.softmax -> torch.nn.functional.softmax; "" for others.

    A method of a computed object is ".name": (a + b).item -> ".item".
    """
    if isinstance(node, ast.Name):
        return scope.module.imports.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        known: tuple[Module, str] | None = node.__dict__.get("_dotted")
        if known is None or known[0] is not scope.module:
            known = node.__dict__["_dotted"] = (scope.module, f"{dotted(node.value, scope)}.{node.attr}")
        return known[1]
    return ""


def called(call: ast.Call, scope: Scope) -> str:
    """The dotted name of what a call calls."""
    return dotted(call.func, scope)


def keyword(call: ast.Call, name: str) -> ast.expr | None:
    """The value of a keyword argument, or None."""
    return next((word.value for word in call.keywords if word.arg == name), None)


def is_true(node: ast.expr | None) -> bool:
    """Whether an expression is the constant True."""
    return isinstance(node, ast.Constant) and node.value is True


def is_false(node: ast.expr | None) -> bool:
    """Whether an expression is the constant False."""
    return isinstance(node, ast.Constant) and node.value is False


def names_in(node: ast.AST) -> frozenset[str]:
    """The names and dotted names of names used in an expression. Kept with the node, as trees do not change."""
    found: frozenset[str] | None = node.__dict__.get("_names")
    if found is None:
        names = {target_name(part) for part in walk(node) if isinstance(part, (ast.Name, ast.Attribute))}
        found = node.__dict__["_names"] = frozenset(name for name in names if name)
    return found


def text_of(node: ast.AST) -> str:
    """The code of a node. Kept with the node: rules ask for the same ones again and again, and writing them is slow."""
    text: str | None = node.__dict__.get("_text")
    if text is None:
        text = node.__dict__["_text"] = ast.unparse(node)
    return text


def code_of(node: ast.AST, limit: int = 80) -> str:
    """An expression as one short line of code."""
    text = " ".join(text_of(node).split())
    return text if len(text) <= limit else text[: limit - 3] + "..."
