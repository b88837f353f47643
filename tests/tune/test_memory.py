"""The memory estimate against what was measured."""

import pytest

from intone.config import model_config
from intone.tune.memory import bytes_per_token, fixed_bytes, training_bytes, worker_bytes

# growth of resident memory per token over a forward and backward pass, gradients left out: 2-core CPU, torch 2.13,
# preset modern, packed rows: (depth, vocabulary, context, dtype, compiled, bytes per token)
MEASURED = [
    (2, 64, 256, "fp32", False, 46_129),
    (2, 8192, 256, "fp32", False, 362_809),
    (2, 8192, 256, "bf16", False, 339_607),
    (4, 64, 256, "fp32", False, 148_230),
    (4, 4096, 256, "fp32", False, 291_052),
    (4, 64, 256, "bf16", False, 107_050),
    (4, 64, 256, "bf16", True, 46_459),
    (4, 4096, 256, "bf16", True, 69_143),
    (4, 64, 256, "fp32", True, 93_454),
    (4, 4096, 256, "fp32", True, 121_566),
    (6, 8192, 512, "bf16", True, 131_509),
    (6, 8192, 512, "bf16", False, 501_982),
    (6, 8192, 512, "fp32", False, 516_403),
]


# workers on our kernels, fp32, two passes a step, EPYC 7003: (depth, vocabulary, context, bytes of tensors alive by the
# trace, VmHWM of the worker); the last two shapes had no part in the fit
WORKERS = [
    (2, 4096, 256, 111_505_628, 646_332_416),
    (4, 4096, 256, 209_336_844, 819_617_792),
    (6, 8192, 512, 323_772_412, 1_130_852_352),
    (8, 8192, 512, 415_865_000, 1_579_000_000),  # rounded to a MiB
    (3, 4096, 512, 175_343_012, 735_322_112),
    (4, 8192, 1024, 238_696_972, 896_872_448),
]


@pytest.mark.parametrize(("depth", "vocab_size", "context", "live", "measured"), WORKERS)
def test_a_worker_on_our_kernels_needs_what_a_trace_foretells_within_5_percent(
    depth, vocab_size, context, live, measured
):
    config = model_config("modern", depth=depth, vocab_size=vocab_size, context=context)
    assert sum(worker_bytes(config, live)) == pytest.approx(measured, rel=0.05)


@pytest.mark.parametrize(("depth", "vocab_size", "context", "dtype", "compiled", "measured"), MEASURED)
def test_the_estimate_is_within_5_percent_below_and_20_above_of_measured(
    depth, vocab_size, context, dtype, compiled, measured
):
    config = model_config("modern", depth=depth, vocab_size=vocab_size, context=context)
    assert 0.95 < bytes_per_token(config, dtype, compiled) / measured < 1.2


def test_the_estimate_is_a_line_in_the_micro_batch(config):
    one, two, five = (training_bytes(config, rows, dtype="fp32", compiled=False) for rows in (1, 2, 5))
    assert five - one == pytest.approx(4 * (two - one), abs=4)
    assert one > fixed_bytes(config)


def test_fp16_needs_what_bf16_needs(config):
    fp16, bf16 = (training_bytes(config, 3, dtype=dtype, compiled=True) for dtype in ("fp16", "bf16"))
    assert fp16 == bf16
