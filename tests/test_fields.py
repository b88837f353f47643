"""One setting: its bounds, its words, its help, its flag."""

import dataclasses
from dataclasses import dataclass
from typing import Literal

import pytest

from intone.errors import UserError
from intone.fields import check_value, flag_of, help_of, kind, metavar, setting, shown


@dataclass(frozen=True, kw_only=True)
class Lower:
    # what the lower class says
    shared: int = 1
    # replaced above
    again: int = 2


@dataclass(frozen=True, kw_only=True)
class Example(Lower):
    # a first line
    # and a second one
    rows: int | Literal["auto"] = setting("auto", least=1, most=8)
    share: float | None = setting(None, least=0)
    words: tuple[str, ...] = ("a # b",)  # at the end of its line
    # said anew
    again: int = 3
    from_run: str = setting("latest", flag="from")
    stage: Literal["base", "mid"] = setting("base", positional=True)


FIELDS = {entry.name: entry for entry in dataclasses.fields(Example)}


def test_help_is_the_comment_above_a_field_or_at_its_end_and_is_inherited():
    helps = help_of(Example)
    assert helps["rows"] == "a first line and a second one"
    assert helps["words"] == "at the end of its line"
    assert helps["shared"] == "what the lower class says"
    assert helps["again"] == "said anew"
    assert helps["share"] == ""


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rows", 8),
        ("rows", "auto"),
        ("share", None),
        ("share", 2),
        ("share", 0.5),
        ("words", ("x", "y")),
        ("words", ()),
    ],
)
def test_a_value_of_the_right_kind_passes(name, value):
    check_value(FIELDS[name], value)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("rows", 0, "rows is 0, it must be at least 1"),
        ("rows", 9, "rows is 9, it must be at most 8"),
        ("rows", True, "rows True is not a whole number or auto"),
        ("rows", 2.0, "rows 2.0 is not a whole number or auto"),
        ("rows", None, "rows None is not a whole number or auto"),
        ("share", float("nan"), "share nan is not a number or none"),
        ("share", float("inf"), "share inf is not a number or none"),
        ("words", "x", "words 'x' is not a list, each a text"),
        ("words", ("",), "words ('',) is not a list, each a text"),
        ("stage", "bse", "stage 'bse' is not one of base, mid"),
    ],
)
def test_a_value_of_the_wrong_kind_or_out_of_bounds_is_named(name, value, message):
    with pytest.raises(UserError) as caught:
        check_value(FIELDS[name], value)
    assert caught.value.message == message
    assert caught.value.value is value


def test_a_mistyped_word_gets_the_nearest_and_a_number_its_bound_as_fix():
    with pytest.raises(UserError, match="did you mean 'base'?"):
        check_value(FIELDS["stage"], "bse")
    with pytest.raises(UserError, match="use 1 or more, or auto"):
        check_value(FIELDS["rows"], -4)


def test_flags_have_dashes_an_own_spelling_or_none():
    assert flag_of(FIELDS["from_run"]) == "--from"
    assert flag_of(FIELDS["stage"]) == "STAGE"
    assert flag_of(FIELDS["shared"]) == "--shared"


def test_types_in_words():
    assert kind(int | Literal["auto"] | None) == "a whole number or auto or none"
    assert kind(tuple[Literal["x", "y"], ...]) == "a list, each one of x, y"
    assert metavar(int | Literal["auto"] | None) == "INT|auto|none"
    assert metavar(tuple[str, ...]) == "TEXT"


def test_values_are_shown_as_a_person_writes_them():
    assert [shown(v) for v in (None, (), True, False, ("a", "b"), 1.5)] == ["none", "none", "yes", "no", "a b", "1.5"]
