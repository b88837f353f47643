"""The calculator that answers tool calls inside a text: it parses, and never runs, what the model wrote."""

import math
import re
from fractions import Fraction

# what is longer is refused unread: a story may be quoted to count its letters, a novel not (guess)
MAX_CHARACTERS = 20_000
# numbers, signs and brackets of one expression: 1,000 of the slowest found take 5 ms of a 2 GHz core [measured]
MAX_TERMS = 1000
# digits of the largest whole number that may appear on the way: Python multiplies two of them in a microsecond
MAX_DIGITS = 300
DECIMALS = 6

# whole numbers are int, other exact ones Fraction; float where exactness has ended: roots, and more than MAX_DIGITS
Number = int | Fraction | float

_MAX_BITS = math.floor(MAX_DIGITS * math.log2(10))
_MAX_EXPONENT = 2 * MAX_DIGITS  # of 1e5: ten to this power is still made in a microsecond
_TERM = re.compile(
    r"""[ \t]*+(?:
    (?P<number>(?:(?:[1-9][0-9]{0,2}(?:,[0-9]{3})++(?![0-9,])|[0-9]++)(?:\.[0-9]*+)?+|\.[0-9]++)
               (?:[eE][-+]?[0-9]++)?+)(?![\w.])
    |(?P<text>'[^'\\\n]*+(?:\\['"\\][^'\\\n]*+)*+'|"[^"\\\n]*+(?:\\['"\\][^"\\\n]*+)*+")
    |(?P<word>len\b|\.count\b)
    |(?P<sign>\*\*|//|[-+*/%()])
    )""",
    re.VERBOSE,
)
# Python's order: a sign in front binds tighter than a product and looser than a power on its right
_PRECEDENCE = {"+": 1, "-": 1, "*": 2, "/": 2, "//": 2, "%": 2, "plus": 3, "minus": 3, "**": 4}
_IN_FRONT = {"+": "plus", "-": "minus"}

_Term = tuple[str, str]  # kind (a group of _TERM) and text


class _Refused(Exception):
    """The expression is outside what the calculator does."""


def calculator(expression: str) -> str | None:
    """The value of an expression as text, or None where it is refused; never raises, never takes 50 ms.

    Numbers (1,234 and 1.5e3 too) with + - * / // % **, brackets and signs, ordered as in Python; "word".count("x")
    and len("word"). Decimals are exact (0.1+0.2 is 0.3), roots and numbers of more than 300 digits have 15 digits,
    whole numbers that long are refused. Whole results have no decimal point ("50/5" is "10"), others at most six
    decimals, halves rounded away from zero; what six decimals would write as 0 has six digits instead ("1e-09").
    Safe to use from several threads.
    """
    if len(expression) > MAX_CHARACTERS:
        return None
    try:
        return _written(_value(_terms(expression.strip())))
    except (_Refused, ValueError, ArithmeticError):
        return None


def _terms(expression: str) -> list[_Term]:
    terms: list[_Term] = []
    place = 0
    while place < len(expression):
        match = _TERM.match(expression, place)
        if match is None or len(terms) == MAX_TERMS:
            raise _Refused
        assert match.lastgroup is not None, "every term is of some kind"
        terms.append((match.lastgroup, match[match.lastgroup]))
        place = match.end()
    return terms


def _value(terms: list[_Term]) -> Number:
    """Evaluates with two stacks, so that no depth of brackets meets the limit of recursion."""
    values: list[Number] = []
    signs: list[str] = []
    place = 0
    is_value_next = True
    while place < len(terms):
        kind, text = terms[place]
        if is_value_next and kind == "sign":
            if text != "(" and text not in _IN_FRONT:
                raise _Refused
            signs.append(_IN_FRONT.get(text, text))
        elif is_value_next:
            number, size = _operand(terms[place : place + 5])
            values.append(number)
            place += size - 1
            is_value_next = False
        elif text == ")":
            _apply_while(signs, values, 0)
            if not signs:
                raise _Refused
            signs.pop()
        elif text in _PRECEDENCE:
            # the power is right-associative: of two in a row the first waits
            _apply_while(signs, values, _PRECEDENCE[text] + (text == "**"))
            signs.append(text)
            is_value_next = True
        else:
            raise _Refused
        place += 1
    if is_value_next:
        raise _Refused
    _apply_while(signs, values, 0)
    if signs:
        raise _Refused
    return values[0]


def _operand(terms: list[_Term]) -> tuple[Number, int]:
    """The number, len("...") or "...".count("...") that terms begin with, and how many terms that is."""
    kinds = [text if kind in ("sign", "word") else kind for kind, text in terms]
    if kinds[0] == "number":
        return _number(terms[0][1]), 1
    if kinds[:4] == ["len", "(", "text", ")"]:
        return len(_unquoted(terms[2][1])), 4
    if kinds == ["text", ".count", "(", "text", ")"]:
        return _unquoted(terms[0][1]).count(_unquoted(terms[3][1])), 5
    raise _Refused


def _number(text: str) -> Number:
    text = text.replace(",", "")
    exponent = text.lower().partition("e")[2]
    if exponent and abs(int(exponent)) > _MAX_EXPONENT:
        raise _Refused
    return _limited(Fraction(text))


def _unquoted(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text[1:-1])


def _apply_while(signs: list[str], values: list[Number], precedence: int) -> None:
    """Applies the waiting signs that bind at least this tightly, back to the last open bracket."""
    while signs and signs[-1] != "(" and _PRECEDENCE[signs[-1]] >= precedence:
        sign = signs.pop()
        right = values.pop()
        if sign in ("plus", "minus"):
            values.append(-right if sign == "minus" else right)
        else:
            values.append(_limited(_combined(sign, values.pop(), right)))


def _combined(sign: str, left: Number, right: Number) -> Number:
    if sign == "+":
        return left + right
    if sign == "-":
        return left - right
    if sign == "//":
        return left // right
    if sign == "%":
        return left % right
    if sign == "**":
        return _power(left, right)
    if sign == "/":
        is_exact = not isinstance(left, float) and not isinstance(right, float)
        result = Fraction(left) / right if is_exact else left / right
    else:
        result = left * right
    if not result and left and right:
        raise _Refused  # too small for a float
    return result


def _power(base: Number, exponent: Number) -> Number:
    if isinstance(exponent, int) and not isinstance(base, float):
        # the size of a power is known before the work is done
        size = max(abs(base.numerator), base.denominator).bit_length() - 1
        if size * abs(exponent) <= _MAX_BITS:
            return Fraction(base) ** exponent
        if base.denominator == 1 and exponent > 0:
            raise _Refused
    result: object = float(base) ** float(exponent)
    if not isinstance(result, float) or (base and not result):
        raise _Refused  # a negative number's root is complex; or too small for a float
    return result


def _limited(value: Number) -> Number:
    """The value in its simplest form. Refuses whole numbers of more than MAX_DIGITS digits, infinity and NaN."""
    if isinstance(value, Fraction):
        if value.denominator == 1:
            value = value.numerator
        elif max(abs(value.numerator), value.denominator).bit_length() > _MAX_BITS:
            value = float(value)
            if not value:
                raise _Refused
    if isinstance(value, int) and value.bit_length() > _MAX_BITS:
        raise _Refused
    if isinstance(value, float) and not math.isfinite(value):
        raise _Refused
    return value


def _written(value: Number) -> str:
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        if abs(value) >= 1e16:  # beyond the digits of a float: its last ones would be noise
            return f"{value:.{DECIMALS}g}"
        value = Fraction(value)
    scale = 10**DECIMALS
    scaled = (2 * scale * abs(value.numerator) + value.denominator) // (2 * value.denominator)
    if not scaled and value:
        return f"{float(value):.{DECIMALS}g}"
    whole, decimals = divmod(scaled, scale)
    text = f"{whole}.{decimals:0{DECIMALS}}".rstrip("0").rstrip(".")
    return f"-{text}" if value < 0 else text
