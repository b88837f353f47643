"""The calculator that answers tool calls inside a text: it parses, and never runs, what the model wrote."""

import ast
import math
import operator
import re
from collections.abc import Callable

# a call longer than this is refused unread; a model's context is the usual limit (guess)
MAX_CHARACTERS = 1000
# digits of the largest whole number that may appear on the way: Python multiplies two of them in microseconds
MAX_DIGITS = 300
MAX_DEPTH = 200  # operations inside operations; two calls each, so far below Python's recursion limit of 1,000
DECIMALS = 6

Number = int | float

_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])")
_WORD = re.compile(r"[^\W\d]+")  # letters of any alphabet, and underscores
_KNOWN_WORDS = {"len", "count", "e", "E"}  # e: as in 1e5
_STRINGS = re.compile(r"'[^'\\\n]*'|\"[^\"\\\n]*\"")
_BINARY: dict[type[ast.operator], Callable[[Number, Number], Number]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}


class _Refused(Exception):
    """The expression is outside what the calculator does."""


def calculator(expression: str) -> str | None:
    """The value of an expression as text, or None where it is refused; never raises, never takes long.

    Numbers (1,234 too) with + - * / // % **, parentheses and signs; "word".count("x") and len("word").
    Whole results have no decimal point ("50/5" is "10"), others have up to six decimals.
    """
    # a backslash is refused because Python would read it as an escape; other words are for Python's parser, not for us
    if len(expression) > MAX_CHARACTERS or "\\" in expression:
        return None
    if set(_WORD.findall(_STRINGS.sub(" ", expression))) - _KNOWN_WORDS:
        return None
    try:
        tree = ast.parse(_without_thousands(expression).strip(), mode="eval")
        return _written(_value(tree.body, depth=0))
    except (_Refused, SyntaxError, ValueError, ArithmeticError, RecursionError, MemoryError):
        return None


def _without_thousands(expression: str) -> str:
    """1,234 becomes 1234, but never inside quotes."""
    pieces, end = [], 0
    for match in _STRINGS.finditer(expression):
        pieces += [_THOUSANDS.sub(_joined, expression[end : match.start()]), match.group()]
        end = match.end()
    return "".join([*pieces, _THOUSANDS.sub(_joined, expression[end:])])


def _joined(match: re.Match[str]) -> str:
    return match.group().replace(",", "")


def _value(node: ast.expr, *, depth: int) -> Number:
    if depth > MAX_DEPTH:
        raise _Refused
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return _limited(node.value)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        inner = _value(node.operand, depth=depth + 1)
        return -inner if isinstance(node.op, ast.USub) else inner
    if isinstance(node, ast.BinOp):
        return _combined(node, depth=depth)
    if isinstance(node, ast.Call) and not node.keywords and len(node.args) == 1:
        return _counted(node.func, _text(node.args[0]))
    raise _Refused


def _combined(node: ast.BinOp, *, depth: int) -> Number:
    operation = _BINARY.get(type(node.op))
    if operation is None:
        raise _Refused
    left, right = _value(node.left, depth=depth + 1), _value(node.right, depth=depth + 1)
    if isinstance(left, int) and isinstance(right, int):
        # the size of a power is known before the work is done
        if isinstance(node.op, ast.Pow) and abs(left) > 1 and abs(right) * math.log10(abs(left)) > MAX_DIGITS:
            raise _Refused
        if isinstance(node.op, ast.Div) and right and left % right == 0:
            return left // right  # exact, also beyond the digits of a float
    return _limited(operation(left, right))


def _limited(value: object) -> Number:
    """The value, if it is a real number of reasonable size. A negative number's root is complex: refused."""
    if isinstance(value, int) and value.bit_length() <= MAX_DIGITS * 3.33:
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    raise _Refused


def _counted(function: ast.expr, argument: str) -> int:
    """len(argument), or "text".count(argument)."""
    if isinstance(function, ast.Name) and function.id == "len":
        return len(argument)
    if isinstance(function, ast.Attribute) and function.attr == "count":
        return _text(function.value).count(argument)
    raise _Refused


def _text(node: ast.expr) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    raise _Refused


def _written(value: Number) -> str:
    if isinstance(value, float):
        if value.is_integer():
            return str(int(value)) if abs(value) < 1e16 else f"{value:.{DECIMALS}g}"
        rounded = f"{value:.{DECIMALS}f}".rstrip("0").rstrip(".")
        # a small number keeps its digits: six decimals would write it as 0
        return rounded if rounded not in ("0", "-0") else f"{value:.{DECIMALS}g}"
    return str(value)
