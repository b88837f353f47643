import decimal
import math
import random
import sys
import threading
import time
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intone.data.starter.calculating import arithmetic, units
from intone.engine.calculator import DECIMALS, MAX_CHARACTERS, MAX_DIGITS, MAX_TERMS, calculator


@pytest.mark.parametrize(
    "expression, answer",
    [
        ("50/5", "10"), ("12 + 30 * 2", "72"), ("(12 + 30) * 2", "84"), (" 3+4 ", "7"), ("\n3+4\n", "7"), ("007", "7"),
        # signs and powers
        ("-(-3)", "3"), ("+3", "3"), ("2--3", "5"), ("2*-3", "-6"), ("-2**2", "-4"), ("2**-1", "0.5"), ("-0", "0"),
        ("2**-1*4", "2"), ("2**3**2", "512"), ("2**-1**2", "0.5"), ("(-2)**3", "-8"), ("4**0.5", "2"), ("0**0", "1"),
        ("27**(1/3)", "3"), ("0**0.5", "0"), ("1**(10**299)", "1"), ("(2/3)**-2", "2.25"), ("2**0.5", "1.414214"),
        # floor division and remainder as in Python, and exact
        ("7//2", "3"), ("-7//2", "-4"), ("7 % 3", "1"), ("-7 % 3", "2"), ("7.5//0.1", "75"), ("1.1%0.1", "0"),
        ("8-3-2", "3"), ("100/10/5", "2"), ("2*7%5", "4"), ("7%4*2", "6"),
        # decimals, and how they are rounded
        ("1/3", "0.333333"), ("-2/3", "-0.666667"), ("0.1+0.2", "0.3"), ("1/3*3", "1"), (".5+5.", "5.5"),
        ("1/128", "0.007813"), ("-1/128", "-0.007813"), ("0.0000005", "0.000001"), ("0.00000049", "4.9e-07"),
        ("1e5", "100000"), ("1E-9", "1e-09"), ("1.5e3", "1500"), ("2.50", "2.5"), ("1.005*100", "100.5"),
        ("99999999999999999999+0.5", "99999999999999999999.5"), ("1.1**1000", "2.46993e+41"),
        # commas
        ("1,234*2", "2468"), ("1,234,567", "1234567"), ("1,234.5", "1234.5"), ("10**40/10**20", "1" + "0" * 20),
        # counting
        ("'a,b,c'.count(',')", "2"), ("'1,234'.count(',')", "1"), ('"strawberry".count("r")', "3"),
        ("'important'.count('t')", "2"), ("'open file, dir, eval, input'.count('i')", "3"), ("len('word')", "4"),
        ("'été'.count('é')", "2"), ("len('日本')", "2"), ("'aaa'.count('aa')", "1"), ("''.count('')", "1"),
        (r"'don\'t'.count('\'')", "1"), (r"len('a\\b')", "3"), ('"it\'s".count("\'")', "1"), ("len('(')", "1"),
        ("'a b' .count ( 'b' ) + len( 'abc' )*2", "7"),
    ],
)  # fmt: skip
def test_the_calculator_answers(expression, answer):
    assert calculator(expression) == answer


@pytest.mark.parametrize(
    "expression",
    [
        "", "  ", "7/0", "7%0", "7.5//0", "0**-1", "12,34", "0,5", "0,123", "1,2345", "1,234,56", "2**100000",
        "9**9**9", "9.9**999999", "(-8)**0.5", "1e400", "1e308*10", "1e-400*1e-400", "0.5**99999", "2**-99999",
        "1e999999999999", "True+1", "1j", "0x10", "1_000", "1.2.3", "1or 2", "'a'*5", "'a'", "[1]", "max(3)",
        "__import__('os')", "len(5)", "len('a','b')", "len 'a'", "len(len('a'))", "'a'.upper()", "'a'.count",
        "'a'.count(", "'a'.count(1)", "'a'.count('a', 1)", "'a'.counts('a')", "len(*'a')", "1;2", "x:=1", "lambda: 1",
        "'a\\x41'.count('A')", "'a\nb'.count('a')", "1\n2", "\x00", "(1", "1)", "()", "(1)(2)", "1 2", "1+",
        "*2", "5!", "2^3", "50%", "²", "٣", "(" * 900, "(1," * 200, "10**300*10**300",
        "'", "'a", "e", "1e", "1e+", ".", "-", "1..2",
    ],
)  # fmt: skip
def test_the_calculator_refuses_what_is_not_its_own(expression):
    assert calculator(expression) is None


def test_every_call_of_the_training_data_is_answered_as_the_model_was_taught():
    rng = random.Random(5)
    items = [make(rng, held_out=False) for make in (arithmetic, units) for _ in range(200)]
    for item in items:
        parts = [part for message in item.messages if not isinstance(message.content, str) for part in message.content]
        calls = [part.text for part in parts if part.kind == "call"]
        assert calls
        assert [calculator(call) for call in calls] == [part.text for part in parts if part.kind == "output"]


LONG = {
    "a long number": "9" * 20_000,
    "far too long": "9" * 1_000_000,
    "only brackets": "(" * MAX_CHARACTERS,
    "deep brackets": "(" * 499 + "1" + ")" * 499,
    "brackets around sums": "(" * 300 + "1/3" + "+1/7)" * 300,
    "many signs": "-" * 999 + "1",
    "a quote": "'" * MAX_CHARACTERS,
    "escapes": "len('" + "\\'" * 9000 + "')",
    "a long text": "len('" + "x" * 19_000 + "')",
    "powers in a row": "9**9" * 250,
    "a tower of powers": "**".join(["9"] * 500),
    "a tower of roots": "**0.5".join(["2"] * 300),
    "a huge float": "9.9**999999",
    "a huge exponent": "1e" + "9" * 19_000,
    "many sums": "1+" * 499 + "1",
    "long products": "*".join(["9" * 290] * 60),
    "long fractions": "-".join(["3**200/7**150+11**90/13**80"] * 40),
    "growing denominators": "+".join(f"1/{10**12 + number}" for number in range(250)),
    "long remainders": "+".join(["3**600/7**350%(2**500/3**300)"] * 50),
    "long divisions": "//".join(["9" * 150 + "/7"] * 80),
    "long decimals": "+".join(["0." + "3" * 280] * 60),
    "nearly commas": "1" + ",111" * 4999 + ",11",
    "blanks": " " * MAX_CHARACTERS,
    "blanks between": "1" + " " * 19_000 + "+1",
    "nearly found": "'" + "a" * 10_000 + "'.count('" + "a" * 5000 + "b')",
    "periodic": "'" + "ab" * 6000 + "'.count('" + "ab" * 1999 + "aa')",
    "found late": "'" + "a" * 9000 + "'.count('b" + "a" * 9000 + "')",
}


@pytest.mark.parametrize("name", LONG)
def test_the_calculator_answers_or_refuses_within_50_ms(name):
    times = []
    for _ in range(3):
        start = time.thread_time()
        calculator(LONG[name])
        times.append(time.thread_time() - start)
    # the best of three: the processor's time of a busy machine includes interrupts and cold caches
    assert min(times) < 0.05


def test_what_is_long_or_deep_but_possible_is_answered():
    assert calculator(LONG["deep brackets"]) == "1"
    assert calculator(LONG["many signs"]) == "-1"
    assert calculator(LONG["many sums"]) == "500"
    assert calculator(LONG["a long text"]) == "19000"
    assert calculator(LONG["escapes"]) == "9000"
    assert calculator("10**299") == "1" + "0" * 299
    assert calculator("+".join(["1"] * (MAX_TERMS // 2))) == str(MAX_TERMS // 2)
    assert calculator("+".join(["1"] * (MAX_TERMS // 2 + 1))) is None


def test_nesting_does_not_use_the_stack_of_python():
    limit = sys.getrecursionlimit()
    try:
        sys.setrecursionlimit(len_of_stack() + 60)
        assert calculator(LONG["deep brackets"]) == "1"
        assert calculator(LONG["many signs"]) == "-1"
    finally:
        sys.setrecursionlimit(limit)


def len_of_stack():
    frame, depth = sys._getframe(), 0
    while frame:
        frame, depth = frame.f_back, depth + 1
    return depth


@settings(deadline=None, max_examples=300)
@given(st.text(alphabet="0123456789+-*/%().,'\" \\eltncou_é\n", max_size=60))
def test_any_text_is_answered_with_text_or_refused(text):
    answer = calculator(text)
    assert answer is None or (answer and len(answer) <= MAX_DIGITS + DECIMALS + 2)


class Sum:
    """An expression as text, its exact value (None: not defined), and the longest number met on the way, in bits."""

    def __init__(self, text, value, precedence=9, parts=()):
        self.text, self.value, self.precedence = text, value, precedence
        longest = max(abs(value.numerator), value.denominator).bit_length() if value is not None else 0
        self.longest = max([longest, *(part.longest for part in parts)])

    def __repr__(self):
        return self.text

    def inside(self, precedence):
        return f"({self.text})" if self.precedence < precedence else self.text


def decimal_sum(number, places):
    text = f"{number / 10**places:.{places}f}"
    return Sum(text, Fraction(text), 3 if number < 0 else 9)


def combined(parts):
    left, sign, right = parts
    precedence = 1 if sign in "+-" else 2
    text = f"{left.inside(precedence)}{sign}{right.inside(precedence + 1)}"
    if left.value is None or right.value is None or (right.value == 0 and sign in ("/", "//", "%")):
        return Sum(text, None, precedence, (left, right))
    value = {
        "+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b, "/": lambda a, b: a / b,
        "//": lambda a, b: Fraction(math.floor(a / b)), "%": lambda a, b: a - b * math.floor(a / b),
    }[sign](left.value, right.value)  # fmt: skip
    return Sum(text, value, precedence, (left, right))


def powered(base, exponent):
    text = f"{base.inside(5)}**{exponent}"
    is_defined = base.value is not None and (base.value != 0 or exponent >= 0)
    return Sum(text, Fraction(base.value) ** exponent if is_defined else None, 4, (base,))


def negated(inner):
    return Sum(f"-{inner.inside(3)}", None if inner.value is None else -inner.value, 3, (inner,))


def rounded(value):
    """The answer by another road: decimal's own rounding to six places."""
    with decimal.localcontext(prec=700):
        exact = decimal.Decimal(value.numerator) / value.denominator
        text = f"{exact.quantize(decimal.Decimal('0.000001'), decimal.ROUND_HALF_UP):f}".rstrip("0").rstrip(".")
    return f"{float(value):.6g}" if value and text.lstrip("-") == "0" else text if value else "0"


NUMBERS = st.one_of(
    st.integers(-9999, 9999).map(lambda number: Sum(str(number), Fraction(number), 3 if number < 0 else 9)),
    st.builds(decimal_sum, st.integers(-99999, 99999), st.integers(1, 4)),
    st.integers(1000, 10**9).map(lambda number: Sum(f"{number:,}", Fraction(number))),
)
SUMS = st.recursive(
    NUMBERS,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(("+", "-", "*", "/", "//", "%")), inner).map(combined),
        st.builds(powered, inner, st.integers(-3, 4)),
        inner.map(negated),
    ),
    max_leaves=10,
)


@settings(deadline=None, max_examples=400)
@given(SUMS)
def test_arithmetic_is_exact_and_rounded_once_at_the_end(expected):
    answer = calculator(expected.text)
    if expected.value is None:
        assert answer is None
    elif expected.longest <= MAX_DIGITS * 3:
        assert answer == rounded(expected.value)
    else:
        # somewhere on the way it was too long to be exact: refused, or as good as a float
        assert answer is None or math.isfinite(float(answer))


@settings(deadline=None, max_examples=100)
@given(st.text(alphabet="abcxyz,' é\\\"", max_size=30), st.sampled_from("abc, '\\"))
def test_letters_are_counted_as_written(word, letter):
    def quoted(text):
        return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"

    assert calculator(f"{quoted(word)}.count({quoted(letter)})") == str(word.count(letter))


def test_many_threads_at_once_get_the_same_answers():
    expressions = ["1,234*2", "'a,b'.count(',')", "2**0.5", "(1/3+1/7)*21", "7/0"] * 20
    expected = [calculator(expression) for expression in expressions]
    answers = {}

    def work(number):
        answers[number] = [calculator(expression) for expression in expressions]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answers[number] for number in range(8)] == [expected] * 8
