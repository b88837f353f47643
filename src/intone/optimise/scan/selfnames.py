"""Methods whose first parameter is called otherwise than self are read as if it were."""

import ast


def name_self(tree: ast.Module) -> None:
    """Renames the first parameter of methods to self in a tree, as all that reads methods expects it there."""
    for owner in ast.walk(tree):
        if isinstance(owner, ast.ClassDef):
            for method in owner.body:
                if isinstance(method, (ast.FunctionDef, ast.AsyncFunctionDef)):
                    _name_first(method)


def _name_first(method: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
    first = next(iter([*method.args.posonlyargs, *method.args.args]), None)
    if first is None or first.arg in ("self", "cls", "mcs", "mcls"):
        return
    if any(isinstance(item, ast.Name) and item.id.endswith("method") for item in method.decorator_list):
        return
    names = [node for node in ast.walk(method) if isinstance(node, ast.Name)]
    if any(node.id == "self" for node in names):
        return
    for node in names:
        node.id = "self" if node.id == first.arg else node.id
    first.arg = "self"
