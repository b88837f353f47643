"""The physical bound: the least work behind a rate, against what the machine can do."""

import dataclasses

import pytest

from intone.config import model_config
from intone.hardware import Facts
from intone.model.cost import num_parameters, train_flops_per_token
from intone.prove.gates import physical

CONFIG = model_config("modern", depth=12, vocab_size=32768, context=2048)
CPU = Facts("ab", device="cpu", cores_logical=2, cores_physical=2, fp32_flops_per_s=160e9, fp32_small_flops_per_s=170e9,
            bf16_flops_per_s=400e9, copy_bytes_per_s=20e9)  # fmt: skip
H200 = dataclasses.replace(CPU, device="cuda", gpu_name="NVIDIA H200", peak_flops_per_s=989e12, peak_bytes_per_s=4.8e12)


def training(tokens_per_s, facts, dtype="bf16", **options):
    work = physical.training_work(CONFIG, tokens_per_s, dtype=dtype, **options)
    return physical.judge(work, physical.bound_of(facts, dtype))


def decoding(tokens_per_s, facts, *, rows, config=CONFIG, dtype="bf16"):
    work = physical.decode_work(config, tokens_per_s, rows=rows, dtype=dtype)
    return physical.judge(work, physical.bound_of(facts, dtype))


def test_the_least_work_of_training_is_below_what_mfu_counts_and_near_it():
    per_token = physical.training_work(CONFIG, 1.0, dtype="bf16").flops_per_s
    assert 0.5 < per_token / train_flops_per_token(CONFIG, 2048) < 1


def test_a_rate_at_half_of_the_data_sheet_passes_and_one_above_it_does_not():
    per_token = physical.training_work(CONFIG, 1.0, dtype="bf16").flops_per_s
    half = training(0.5 * 989e12 / per_token, H200)
    assert half.passed and half.evidence["share"] == pytest.approx(0.5)
    near = training(0.95 * 989e12 / per_token, H200)
    assert near.passed and near.reason.endswith("near it: look twice")
    above = training(1.01 * 989e12 / per_token, H200)
    assert above.passed is False and "this machine does 989,000 at most" in above.reason
    assert "data sheet" in above.threshold.origin


def test_a_measured_rate_is_given_slack_and_a_data_sheet_is_not():
    per_token = physical.training_work(CONFIG, 1.0, dtype="fp32").flops_per_s
    assert training(1.9 * 170e9 / per_token, CPU, "fp32").passed
    assert training(2.1 * 170e9 / per_token, CPU, "fp32").passed is False
    assert training(2.1 * 170e9 / per_token, CPU, "bf16").passed


def test_positions_that_learn_nothing_may_save_the_head():
    full = physical.training_work(CONFIG, 1e6, dtype="bf16")
    half = physical.training_work(CONFIG, 1e6, dtype="bf16", supervised_share=0.5)
    assert full.flops_per_s - half.flops_per_s == pytest.approx(3e6 * num_parameters(CONFIG)["head"])


def test_decoding_one_row_faster_than_its_weights_can_be_read_is_rejected():
    big = model_config("modern", depth=26, vocab_size=65536, context=2048)
    counts = num_parameters(big)
    weight_bytes = 2 * (counts["matrices"] + counts["head"])
    at_the_bound = 4.8e12 / weight_bytes
    slow = decoding(0.6 * at_the_bound, H200, rows=1, config=big)
    assert slow.passed and "bytes/s" in slow.reason
    assert decoding(1.2 * at_the_bound, H200, rows=1, config=big).passed is False
    assert decoding(1.2 * at_the_bound, H200, rows=8, config=big).passed  # eight rows share one reading


def test_weights_that_fit_a_cache_are_bounded_by_products_only():
    small = model_config("modern", depth=4, vocab_size=1024, context=256)
    assert physical.decode_work(small, 1e4, rows=1, dtype="fp32").bytes_per_s is None


def test_eight_bit_work_is_bounded_by_twice_the_sixteen_bit_rate():
    assert physical.bound_of(H200, "fp8").flops_per_s == 2 * 989e12
    assert physical.bound_of(CPU, "int8").flops_per_s == 2 * 2 * 400e9


def test_without_a_known_rate_nothing_is_judged():
    unknown = dataclasses.replace(CPU, bf16_flops_per_s=None)
    result = training(1e9, unknown)
    assert result.passed is None and "no peak rate is known here for bf16" in result.reason
    assert training(1e9, CPU, "fp64").passed is None


def test_a_rate_that_is_no_number_is_rejected():
    assert training(float("nan"), CPU).passed is False
    assert training(float("inf"), CPU).passed is False
