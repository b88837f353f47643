"""Every detector fires on its planted signals, says its evidence, and is silent one step below the threshold."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from intone.optimise.detect.catalogue import DETECTORS, detect
from intone.optimise.signals import Line, Signals

GOOD = Signals(
    step_s=0.1, step_spread=0.02, drift=0.01, num_steps=30, elasticity=1.04, replay=1.0, num_shapes=1, pad_share=0.1,
    parts={"data": 0.05, "forward": 0.35, "backward": 0.5, "optimizer": 0.1}, idle_share=0.15, compiled=True,
    recompiles=0, graphs=1, syncs_per_step=1.0, matmul_dtypes={"bf16": 0.9, "fp32": 0.1}, best_dtype="bf16",
    best_dtype_gain=2.0, peak_bytes=100, memory_bytes=1000, logits_bytes=20, reserved_bytes=100, allocated_bytes=86,
    alloc_retries=0, duplicate_rows=0, rows_looked_at=8, masked_rows=0, nonfinite_losses=0, tokens_per_step=1000.0,
    planned_tokens_per_step=1000.0, threads=2, threads_gain=(1, 1.03), attention_gain=("products", 1.05),
    compile_s=10.0, planned_s=100.0, off_step_share=0.05, odd_product=("1 x 2 x 3", 0.5, 1.05), num_processes=3,
    exchanges_per_step=1.0, exchange_share=0.1, rank_step_s=(1.0, 1.0, 1.1), kept_gain=1.05, kept_bytes=10,
    constant_share=0.02,
)  # fmt: skip
WRITES = Signals(
    kind="generate", late_over_early=1.5, positions=(64, 512), batch_gain=6.0, batch_gain_rows=8, kv_used_share=0.6,
    prefill_ratio=1.1, num_samples=16, distinct_first=5, expected_distinct=5.0,
)  # fmt: skip
PLANTED: dict[str, tuple[Signals, dict[str, Any], str]] = {
    "D1": (GOOD, {"elasticity": 1.3, "device_batch": 4, "micro_steps": 8.0}, "1.30 times the tokens/s"),
    "D2": (GOOD, {"idle_share": 0.4, "ops_per_step": 900.0, "median_op_s": 5e-6}, "40.0% of the time"),
    "D3": (GOOD, {"recompiles": 3}, "compiled again 3 times"),
    "D4": (GOOD, {"compile_s": 30.0, "planned_s": 100.0}, "30 s of a run of"),
    "D5": (GOOD, {"syncs_per_step": 4.0, "sync_place": "train.py:7"}, "4 waits per step"),
    "D6": (GOOD, {"parts": {"data": 0.3, "forward": 0.7}, "replay": 0.7}, "30.0% of the time"),
    "D7": (GOOD, {"parts": {"copy": 0.1, "forward": 0.9}}, "10.0% of a step"),
    "D8": (WRITES, {"late_over_early": 6.0}, "6.00 times as long"),
    "D9": (WRITES, {"batch_gain": 1.5}, "8 rows takes 1.50 times"),
    "D10": (WRITES, {"kv_used_share": 0.3}, "30% of the cache"),
    "D11": (WRITES, {"prefill_ratio": 4.0}, "4.00 prompt tokens"),
    "D12": (GOOD, {"alloc_retries": 2}, "2 allocations"),
    "D13": (GOOD, {"logits_bytes": 50}, "50% of the peak"),
    "D14": (GOOD, {"matmul_dtypes": {"bf16": 0.1, "fp32": 0.9}}, "90% of the time of matrix products"),
    "D15": (GOOD, {"odd_product": ("64 x 96 x 1,001 in fp32, beside 64 x 96 x 1,024", 0.3, 1.5)}, "takes 1.50 times"),
    "D16": (GOOD, {"pad_share": 0.45}, "45.0% of the positions"),
    "D17": (GOOD, {"attention_gain": ("products", 1.3)}, "1.30 times the speed"),
    "D18": (GOOD, {"parts": {"optimizer": 0.3, "forward": 0.7}}, "30.0% of a step"),
    "D19": (GOOD, {"exchanges_per_step": 4.0, "micro_steps": 4.0}, "exchanged 4 times per optimizer step"),
    "D20": (GOOD, {"exchange_share": 0.4}, "take 60.0% of their time"),
    "D21": (GOOD, {"rank_step_s": (1.0, 1.5, 1.0)}, "process 1 of 3 takes 1.50 times"),
    "D22": (WRITES, {"distinct_first": 1}, "16 samples of one prompt"),
    "D23": (GOOD, {"masked_rows": 2}, "2 of 8 rows"),
    "D24": (GOOD, {"off_step_share": 0.2}, "20.0% of the run's time"),
    "D25": (GOOD, {"kept_gain": 1.3}, "at 1.30 times the speed"),
    "D26": (GOOD, {"threads_gain": (1, 1.4)}, "1 threads were measured at 1.40"),
    "D27": (GOOD, {"drift": 0.2}, "1.200 of the first"),
    "D28": (GOOD, {"constant_share": 0.1, "constant_place": "model.py:7"}, "10.0% of a step"),
}


@pytest.mark.parametrize("signals", [GOOD, WRITES, Signals(), Signals(kind="generate")])
def test_nothing_fires_at_the_thresholds_or_on_what_nobody_measured(signals: Signals):
    assert detect(signals) == []


def test_every_detector_has_a_planted_case():
    assert set(PLANTED) == set(DETECTORS)


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_bottleneck_is_the_one_finding(name: str):
    clean, planted, evidence = PLANTED[name]
    found = detect(replace(clean, **planted))
    assert [entry.detector for entry in found] == [name]
    assert any(evidence in words for words in found[0].evidence)
    assert found[0].threshold and found[0].source and (found[0].bound is None or found[0].bound > 1)


@pytest.mark.parametrize("name", PLANTED)
def test_the_page_names_every_detector_with_its_threshold_and_where_that_is_from(name: str):
    clean, planted, _ = PLANTED[name]
    (found,) = detect(replace(clean, **planted))
    page = (Path(__file__).parents[2] / "docs" / "optimise.md").read_text()
    assert f"| {name} | {found.title} | {found.threshold} | {found.source} |" in page


def test_slow_kernels_are_found_where_faster_ones_were_measured():
    (found,) = detect(replace(GOOD, compiled=False, kernels_gain=1.5))
    assert (found.detector, found.bound, found.signal) == ("D3", 1.5, "kernels_gain")
    assert detect(replace(GOOD, compiled=False, kernels_gain=1.04)) == []


def test_rows_that_bring_little_each_time_they_are_doubled_are_found_by_what_they_bring_together():
    few = replace(GOOD, device_batch=4, elasticity=1.04, ladder={"4": 1.0, "8": 1.04, "16": 1.09, "32": 1.08})
    (found,) = detect(few)
    assert found.detector == "D1" and "with 16 rows at once 1.09 times" in found.evidence[0]
    assert detect(replace(few, ladder={"2": 1.2, "4": 1.0, "8": 1.04})) == [], "fewer rows are another matter"


def test_time_spent_on_data_is_no_finding_where_one_batch_again_is_no_faster():
    stalled = replace(GOOD, parts={"data": 0.3, "forward": 0.7})
    assert [entry.detector for entry in detect(replace(stalled, replay=0.99))] == []
    assert [entry.detector for entry in detect(replace(stalled, replay=None))] == ["D6"]


def test_faults_stand_before_what_is_only_slow_and_the_rest_by_what_it_is_worth():
    both = replace(GOOD, masked_rows=1, pad_share=0.5, idle_share=0.3)
    assert [entry.detector for entry in detect(both)] == ["D23", "D16", "D2"]


def test_a_finding_names_the_hottest_line_of_its_part():
    lines = (Line("a.py", 3, "f", "forward", 0.6), Line("b.py", 9, "get", "data", 0.2))
    found = detect(replace(GOOD, parts={"data": 0.2, "forward": 0.8}, replay=None, lines=lines))
    assert found[0].place == "b.py:9"


def test_signals_come_back_from_json_as_they_were():
    lines = (Line("a.py", 3, "f", "forward", 0.6),)
    signals = replace(GOOD, lines=lines, notes=("x",), positions=(1, 2))
    assert Signals.from_json(signals.as_json()) == signals
