"""Our float32 products or the library's: by injected times, and once by real ones."""

from dataclasses import replace

import pytest

from intone.child import ChildFailed
from intone.errors import UserError
from intone.model.native import build
from intone.tune import kernels
from intone.tune.products import COST_S, ROWS, SAVES, SHAPES, measure, num_rows, settle_products


@pytest.fixture
def settled(facts, config, trials, auto, monkeypatch):
    """settled(seconds of ours over the library's, per shape) -> the choice; on a processor of AMD's."""
    monkeypatch.setattr(kernels.build, "obstacle", lambda variant: None)
    monkeypatch.setattr(build, "processor", lambda: ("AMD EPYC", set()))

    def ask(ratios=(1.0, 1.0, 1.0), *, asked="auto", dtype="fp32", run_s=None, already=None, failure=None, rounds=3):
        def times(facts, config, threads):
            if failure:
                raise ChildFailed(failure)
            return [[0.004 * ratio] * rounds for ratio in ratios], [[0.004] * rounds for _ in ratios]

        return settle_products(
            replace(auto, value=asked), auto, facts, config, trials, dtype=dtype, threads=2, run_s=run_s,
            already=already or {}, time_products=times,
        )  # fmt: skip

    return ask


def test_ours_are_taken_where_they_are_faster_and_the_answer_is_kept(settled):
    choice = settled((0.8, 0.8, 1.0))
    assert (choice.value, choice.origin) == ("own", "measured")
    assert choice.reason == (
        "our products are 1.15x as fast as the library's "
        "(forward 1.25x, gradient of x 1.25x, gradient of weights 1.00x; median of 3 rounds)"
    )
    assert choice.beat == ({"value": "library", "why": "0.87x as fast"},)
    assert choice.measured["own_s"]["forward"] == pytest.approx(0.0032)
    assert settled((2.0, 2.0, 2.0)).origin == "cached"


def test_the_library_is_taken_where_it_is_faster_whatever_the_processors_name(settled):
    choice = settled((1.1, 1.3, 1.2))
    assert (choice.value, choice.origin) == ("library", "measured")
    assert choice.reason.startswith("our products are 0.83x as fast as the library's (forward 0.91x")
    assert choice.beat == ({"value": "own", "why": "0.83x as fast"},)


def test_ours_are_taken_where_they_are_as_fast_since_they_spare_a_pass(settled):
    choice = settled((1.01, 1.02, 1.02))
    assert choice.value == "own" and choice.reason.endswith("and spare a pass over memory")


def test_a_run_too_short_to_gain_goes_by_the_processors_name(settled, monkeypatch):
    choice = settled((2.0, 2.0, 2.0), run_s=COST_S / SAVES - 1)
    assert (choice.value, choice.origin) == ("own", "default") and "processor's name" in choice.reason
    monkeypatch.setattr(build, "processor", lambda: ("Intel", set()))
    assert settled(run_s=1.0).value == "library"
    assert settled((0.5, 0.5, 0.5), run_s=COST_S / SAVES + 1).value == "own"
    assert settled(run_s=1.0).origin == "cached"  # what is known costs nothing


def test_what_cannot_be_timed_goes_by_the_name_and_is_not_kept(settled):
    choice = settled(failure="no answer within 120 s")
    assert (choice.value, choice.origin) == ("own", "default") and "no answer within 120 s" in choice.reason
    assert settled().origin == "measured"


def test_nothing_is_asked_where_our_kernels_do_not_train_in_fp32(settled, monkeypatch):
    assert settled(dtype="bf16") is None and settled(asked="torch") is None
    monkeypatch.setattr(kernels.build, "obstacle", lambda variant: "no compiler")
    assert settled() is None


def test_what_the_person_has_set_stays_and_a_typo_is_an_error(settled):
    choice = settled((0.5, 0.5, 0.5), already={build.PRODUCTS: "library"})
    assert (choice.value, choice.reason) == ("library", "INTONE_PRODUCTS is set")
    with pytest.raises(UserError, match="owm"):
        settled(already={build.PRODUCTS: "owm"})


def test_products_take_milliseconds_whatever_the_width_and_the_rate(facts, config):
    assert num_rows(facts, config) == 1344  # 4 ms of 100 GFLOP/s at width 192
    assert num_rows(replace(facts, fp32_flops_per_s=None), config) == ROWS[0]
    assert num_rows(facts, replace(config, width=64)) == ROWS[1]


@pytest.mark.skipif(build.obstacle("avx2") is not None, reason="our kernels cannot be built here")
def test_the_child_times_both_sides_of_every_shape_in_rounds():
    answer = measure(width=32, hidden=128, rows=48, threads=1, budget_s=0.0)
    times = [answer["own_s"], answer["library_s"]]
    assert [[len(entries) for entries in side] for side in times] == [[3] * len(SHAPES)] * 2
    assert all(seconds > 0 for side in times for entries in side for seconds in entries)
