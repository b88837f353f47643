"""Words of --data: names and paths with weights, and paths that only look as if they had one."""

import math

import pytest

from intone.errors import UserError
from intone.mixture import Ingredient, absolute_word, parse_mixture, read_word


def shares(*words):
    return [(portion.names, pytest.approx(portion.share)) for portion in parse_mixture(words).portions]


def test_one_name_or_path_is_everything():
    assert shares("starter") == [(("starter",), 1)]
    assert shares("texts") == [(("texts",), 1)]
    assert parse_mixture(["texts"]).note is None


def test_paths_without_weights_are_one_portion_by_their_size():
    mixture = parse_mixture(["a.txt", "b.txt,c.txt"])
    assert [portion.names for portion in mixture.portions] == [("a.txt", "b.txt", "c.txt")]
    assert mixture.note is None


def test_weights_are_shares_of_the_tokens():
    assert shares("tinystories:0.7,b.txt:0.3") == [(("tinystories",), 0.7), (("b.txt",), 0.3)]
    assert shares("tinystories:.7", "b.txt:3e-1") == [(("tinystories",), 0.7), (("b.txt",), 0.3)]
    assert parse_mixture(["a:0.7,b:0.3"]).note is None


def test_weights_that_do_not_add_up_to_one_are_divided_by_their_sum_and_it_is_said():
    mixture = parse_mixture(["a.txt:6,starter:2"])
    assert [portion.share for portion in mixture.portions] == [0.75, 0.25]
    assert mixture.note == "the weights add up to 8, not to 1: a.txt 75%, starter 25% of the tokens"


def test_named_sets_without_weights_have_equal_shares_and_it_is_said():
    mixture = parse_mixture(["a.txt", "starter", "b.txt"])
    assert [(portion.names, portion.share) for portion in mixture.portions] == [
        (("starter",), 0.5), (("a.txt", "b.txt"), 0.5)
    ]  # fmt: skip
    assert mixture.note == (
        "no weights are given: starter 50%, a.txt and 1 more 50% of the tokens; others: --data starter:0.5,a.txt:0.5"
    )


@pytest.mark.parametrize(
    "name", ["C:\\texts\\a.txt", "C:\\texts", "host:folder/a.txt", "a:b.txt", "a:0.5.txt", "10:30"]
)
def test_a_path_with_a_colon_is_not_misread(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    if "/" in name:
        (tmp_path / name).parent.mkdir()
    (tmp_path / name).touch()
    assert read_word(name) == [Ingredient(name)]
    assert read_word(f"{name}:0.25") == [Ingredient(name, 0.25)]


@pytest.mark.parametrize("name", ["C:\\texts\\a.txt", "host:folder/a.txt"])
def test_a_path_with_a_colon_that_is_not_there_is_named_whole(name):
    assert read_word(name) == [Ingredient(name)]


def test_a_path_with_a_comma_is_not_cut_where_it_exists(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a,b.txt", "a", "c.txt"):
        (tmp_path / name).touch()
    assert read_word("a,b.txt") == [Ingredient("a,b.txt")]
    assert read_word("a,b.txt:0.5,c.txt:0.5") == [Ingredient("a,b.txt", 0.5), Ingredient("c.txt", 0.5)]
    assert read_word("a,c.txt") == [Ingredient("a"), Ingredient("c.txt")]


def test_a_glob_may_have_a_weight():
    assert read_word("texts/*.jsonl:2") == [Ingredient("texts/*.jsonl", 2)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a:0.5,b"], "b has no weight while others have one"),
        (["a:0"], "the weight of a is 0"),
        (["a:-1,b:2"], "the weight of a is -1"),
        (["a:nan"], "the weight of a is nan"),
        (["a:inf"], "the weight of a is inf"),
        (["a:1,,b:1"], "'a:1,,b:1' has an empty name between its commas"),
        (["a,"], "'a,' has an empty name between its commas"),
        ([""], "an empty path was given"),
        (["starter", "starter"], "starter is named twice"),
        (["a:0.5,a:0.5"], "a is named twice"),
        ([], "no data is named"),
    ],
)
def test_what_cannot_be_meant_is_refused(words, message):
    with pytest.raises(UserError) as caught:
        parse_mixture(words)
    assert caught.value.message == message and caught.value.fix


def test_shares_of_any_weights_add_up_to_one():
    for weights in ([1e-9, 3], [0.1] * 10, [7, 3]):
        words = [f"p{number}:{weight}" for number, weight in enumerate(weights)]
        assert math.fsum(portion.share for portion in parse_mixture(words).portions) == pytest.approx(1)


def test_paths_inside_a_word_become_absolute_and_names_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.txt", "tinystories"):
        (tmp_path / name).touch()
    assert absolute_word("a.txt:0.5,tinystories:0.5") == f"{tmp_path}/a.txt:0.5,tinystories:0.5"
    assert absolute_word("./tinystories") == f"{tmp_path}/tinystories"
    assert absolute_word("not-there.txt:0.5,b") == "not-there.txt:0.5,b"
    assert absolute_word("") == ""
