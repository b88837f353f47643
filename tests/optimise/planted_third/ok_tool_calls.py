"""Arithmetic and look-ups asked for by a model, parsed and never executed."""
import ast
import json
import operator
from pathlib import Path

BINARY = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul,
          ast.Div: operator.truediv, ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod}
UNARY = {ast.USub: operator.neg, ast.UAdd: operator.pos}


def evaluate(text, limit=200):
    """A number from an arithmetic expression; anything else is refused."""
    if len(text) > limit:
        raise ValueError("expression too long")
    return _walk(ast.parse(text, mode="eval").body)


def _walk(node):
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return node.value
    if isinstance(node, ast.BinOp) and type(node.op) in BINARY:
        return BINARY[type(node.op)](_walk(node.left), _walk(node.right))
    if isinstance(node, ast.UnaryOp) and type(node.op) in UNARY:
        return UNARY[type(node.op)](_walk(node.operand))
    raise ValueError(f"{type(node).__name__} is not allowed")


class Notes:
    def __init__(self, root):
        self.root = Path(root).resolve()

    def read(self, name):
        path = (self.root / name).resolve()
        if not path.is_relative_to(self.root) or path.suffix != ".md":
            raise ValueError("no such note")
        return path.read_text()


class Desk:
    def __init__(self, notes_root):
        notes = Notes(notes_root)
        self.tools = {"calc": (evaluate, {"text"}), "note": (notes.read, {"name"})}

    def handle(self, model_output):
        try:
            call = json.loads(model_output)
            fn, wanted = self.tools[call["tool"]]
            args = call["args"]
            if set(args) != wanted or not all(isinstance(v, str) for v in args.values()):
                raise ValueError(f"arguments should be {sorted(wanted)}, all strings")
            return {"ok": True, "value": fn(**args)}
        except (KeyError, TypeError, ValueError, SyntaxError, ArithmeticError, OSError,
                RecursionError) as err:
            return {"ok": False, "error": f"{type(err).__name__}: {err}"}


def parse_literal(reply):
    """The list of scores a judge model wrote, or None."""
    try:
        value = ast.literal_eval(reply.strip())
    except (ValueError, SyntaxError):
        return None
    return value if isinstance(value, list) else None
