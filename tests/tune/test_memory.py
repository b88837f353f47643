"""The memory estimate against what was measured."""

from dataclasses import replace

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


# workers on our kernels, fp32, two threads, steps of two passes, EPYC 7003: (depth, width where it is not that of the
# depth, vocabulary, context, rows of a pass, bytes of tensors alive and of packed copies by the trace, VmHWM of workers
# with freed memory kept, on huge pages, and with the C library's own way)
WORKERS = [
    (2, None, 4096, 256, 16, 94_728_412, 2_097_152, 470_757_376, 468_983_808, 461_611_008),
    (4, None, 4096, 256, 8, 175_782_412, 4_194_304, 651_038_720, 627_380_224, 638_443_520),
    (6, None, 8192, 512, 2, 286_023_676, 12_582_912, 959_213_568, 952_852_480, 956_866_560),
    (8, None, 8192, 512, 1, 382_260_396, 16_777_216, 1_376_010_240, 1_404_907_520, 1_349_652_480),
    (3, None, 4096, 512, 6, 147_031_460, 3_145_728, 586_784_768, 579_203_072, 569_692_160),
    (4, None, 8192, 1024, 2, 205_142_540, 8_388_608, 728_449_024, 709_758_976, 702_050_304),
    # that matrices count by themselves comes from this one; no constant was fitted to the two behind it, and only the
    # last of them had not been looked at when the form was chosen
    (2, 1024, 4096, 256, 3, 323_390_088, 16_777_216, 1_190_551_552, 1_153_519_616, 1_203_777_536),
    (6, None, 32768, 512, 3, 633_179_644, 50_331_648, 2_014_760_960, 1_990_770_688, 1_997_729_792),
    (3, 768, 8192, 256, 3, 370_933_776, 25_165_824, 1_280_692_224, 1_336_446_976, 1_334_816_768),
    # with the library's products, nothing packed by us; not fitted to either
    (2, None, 4096, 256, 16, 111_505_628, 0, 474_525_696, None, None),
    (3, None, 4096, 512, 6, 175_343_012, 0, 630_411_264, None, None),
    (4, None, 4096, 256, 8, 209_336_844, 0, 666_116_096, None, None),
    (4, None, 8192, 1024, 2, 238_696_972, 0, 742_227_968, None, None),
]


@pytest.mark.parametrize(
    ("depth", "width", "vocab_size", "context", "rows", "live", "packed", "kept", "huge", "system"), WORKERS
)
def test_a_worker_on_our_kernels_needs_what_a_trace_foretells_within_5_percent(
    depth, width, vocab_size, context, rows, live, packed, kept, huge, system
):
    config = model_config("modern", depth=depth, vocab_size=vocab_size, context=context)
    if width is not None:
        config = replace(config, width=width, num_heads=width // 64, num_kv_heads=width // 64)
    need = sum(worker_bytes(config, live, packed))
    for measured in (kept, huge, system):
        assert measured is None or need == pytest.approx(measured, rel=0.05)


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
