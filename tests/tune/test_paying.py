"""Whether a search pays: guesses at first, then what searches on this machine cost and saved."""

import pytest

from intone.records import Segment
from intone.tune.batch import SEARCH_S
from intone.tune.found import Found, Size
from intone.tune.paying import SAVES, START_S, expected, remember, saved, search_key
from intone.tune.trials import Trials

SEGMENT = Segment(0, 1, False, "fp32", "sdpa", "test")


def found(rows, seconds=14.0):
    """A search over sizes of which 4 takes 1.0 s a step, 8 takes 0.9 s, and 16 did not fit."""
    curve = (Size(4, 4, 1.0, 1, "measured"), Size(8, 2, 0.9, 2, "line"), Size(16, 1, None, None, "out of memory"))
    return Found(rows, "line", "test", curve, 0.1, 1.0, None, None, None, 3, 1, seconds, "")


def test_the_first_search_is_expected_to_cost_a_start_and_its_probes(trials, facts):
    key = search_key(facts, SEGMENT, "cpu")
    guess = expected(trials, key, "cpu", start_s=None)
    assert (guess.cost_s, guess.saving, guess.is_measured) == (START_S + SEARCH_S, SAVES["cpu"], False)
    assert expected(trials, key, "cpu", start_s=3.0).cost_s == 3.0 + SEARCH_S
    assert not guess.pays(guess.cost_s / SAVES["cpu"]) and guess.pays(guess.cost_s / SAVES["cpu"] + 1)
    assert expected(trials, key, "mps", start_s=None).saving == 0


def test_a_run_of_ten_minutes_on_a_cpu_is_not_made_slower_by_a_first_search(trials, facts):
    guess = expected(trials, search_key(facts, SEGMENT, "cpu"), "cpu", start_s=None)
    assert not guess.pays(10 * 60)


def test_what_a_search_saved_is_kept_for_other_shapes_but_not_for_other_code(trials, facts):
    key = search_key(facts, SEGMENT, "cpu")
    remember(trials, key, found(8), rule_rows=4)
    known = expected(Trials(facts), key, "cpu", start_s=1.0)
    assert (known.cost_s, known.saving, known.is_measured) == (14.0, pytest.approx(0.1), True)
    for other in (Segment(0, 1, True, "fp32", "sdpa", "x"), Segment(0, 1, False, "bf16", "sdpa", "x")):
        assert not expected(trials, search_key(facts, other, "cpu"), "cpu", start_s=1.0).is_measured


def test_a_rule_that_is_no_worse_means_that_nothing_was_saved(trials, facts):
    assert saved(found(4), 8) == 0 and saved(found(8), 8) == 0
    assert saved(found(8), 16) is None and saved(found(8), 3) is None  # nobody knows what those take
    remember(trials, {}, found(8), rule_rows=3)
    assert trials.find("batch_search", {}) is None
