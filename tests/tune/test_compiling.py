"""When compiling pays."""

import pytest

from intone.tune import compiling
from intone.tune.compiling import decide


def test_compiling_pays_from_its_break_even_on():
    assert decide(True, 101, 0.3, 0.2, 10.0).value == "on"
    assert decide(True, 99, 0.3, 0.2, 10.0).value == "off"


def test_the_reason_holds_the_sums_and_the_break_even():
    choice = decide(True, 1000, 0.5, 0.25, 20.0)
    assert (
        choice.reason == "1,000 steps save 4 min 10 s, compiling costs 20 s, even at 80 steps (2.00x per step measured)"
    )
    assert choice.origin == "measured"
    assert choice.beat == ({"value": "off", "why": "230 s slower over 1,000 steps"},)


def test_without_a_measured_step_it_is_predicted_and_says_so():
    choice = decide(True, 1000, 0.5, None, 20.0, ratio=0.5)
    assert choice.value == "on" and choice.origin == "default"
    assert choice.measured["compiled_step_s"] == 0.25
    assert "2.00x per step predicted" in choice.reason


def test_slower_compiled_steps_never_pay():
    choice = decide(True, 10**9, 0.2, 0.21, 0.0)
    assert choice.value == "off" and "not faster" in choice.reason


def test_without_a_compiler_it_is_off_with_the_fix():
    choice = decide(False, 10**9, 1.0, 0.1, 1.0)
    assert choice.value == "off"
    assert choice.reason == "torch.compile needs a C++ compiler and the Python headers: apt install g++ python3-dev"


def test_what_a_run_has_seen_predicts_the_next(trials):
    key = {"width": 192}
    assert compiling.expect(trials, key, "cpu") == compiling.CPU_GUESS
    assert compiling.expect(trials, key, "cuda") == compiling.GPU_GUESS
    compiling.remember(trials, key, eager_step_s=0.4, compiled_step_s=0.1, compile_s=7.5)
    seen = compiling.expect(trials, key, "cpu")
    assert seen == compiling.CompileFacts(pytest.approx(0.25), 7.5, is_measured=True)
    assert compiling.expect(trials, {"width": 193}, "cpu") == compiling.CPU_GUESS


def test_one_block_for_all_is_compiled_in_short_runs_and_the_whole_model_in_long_ones(trials):
    key = {"width": 192}
    whole, block = (compiling.expect(trials, key, "cpu", by_block=by_block) for by_block in (False, True))
    assert block.compile_s < whole.compile_s and block.ratio > whole.ratio
    even = (whole.compile_s - block.compile_s) / (0.4 * (block.ratio - whole.ratio))
    assert compiling.by_block_pays(trials, key, "cpu", int(even) - 1, 0.4)
    assert not compiling.by_block_pays(trials, key, "cpu", int(even) + 2, 0.4)
    assert not compiling.by_block_pays(trials, key, "cuda", 10, 0.4)


def test_what_was_seen_of_one_block_counts_for_it_alone(trials):
    key = {"width": 192}
    compiling.remember(trials, key, eager_step_s=0.4, compiled_step_s=0.1, compile_s=7.5, by_block=True)
    assert compiling.expect(trials, key, "cpu", by_block=True).ratio == pytest.approx(0.25)
    assert compiling.expect(trials, key, "cpu") == compiling.CPU_GUESS
    assert compiling.by_block_pays(trials, key, "cpu", 10**9, 0.4)
