"""Every "auto" of this part becomes a value with a reason; what was asked for stays."""

import dataclasses

import pytest

from intone.child import ChildFailed
from intone.config import model_config
from intone.errors import UserError
from intone.records import Choice
from intone.resolving import Resolved
from intone.tune import compiling, settle
from intone.tune.precision import NoTrial

GIB = 2**30


def asked(value) -> Resolved:
    return Resolved(value, "flag", "asked for")


def never(*arguments):
    raise AssertionError("nothing should have been measured")


def steps_like_fp32(dtype, compiled, num_steps):
    return [3.0 / step for step in range(1, num_steps + 1)]


class Clockwork:
    """Fake step times per case; counts its calls."""

    def __init__(self, seconds):
        self.seconds = seconds
        self.count = 0

    def __call__(self, config, cases, facts):
        self.count += 1
        return [[self.seconds(case)] * 3 for case in cases]


def test_a_cpu_machine_computes_on_its_cpu(auto, facts):
    choice = settle.settle_device(auto, facts)
    assert (choice.value, choice.reason, choice.origin) == ("cpu", "no GPU here", "default")


def test_a_gpu_that_this_torch_cannot_use_is_named(auto, facts):
    facts = dataclasses.replace(facts, gpu_name="NVIDIA Foo")
    assert settle.settle_device(auto, facts).reason == "torch 2.13.0+cpu cannot use the NVIDIA Foo"
    with pytest.raises(UserError, match="device cuda is not usable here .NVIDIA Foo is there, but torch 2.13.0"):
        settle.settle_device(asked("cuda"), facts)


def test_a_usable_gpu_is_taken_unless_the_cpu_is_asked_for(auto, facts):
    facts = dataclasses.replace(facts, gpu_name="NVIDIA Foo", device="cuda")
    assert settle.settle_device(auto, facts).value == "cuda"
    choice = settle.settle_device(asked("cpu"), facts)
    assert (choice.value, choice.origin) == ("cpu", "flag")


def test_a_machine_without_a_working_torch_is_an_error_with_a_fix(auto, facts):
    with pytest.raises(UserError, match="no device to compute on: torch 2.13.0.cpu could not be started"):
        settle.settle_device(auto, dataclasses.replace(facts, device=None))


@pytest.mark.parametrize(
    ("device", "gpus", "rows", "asked_for", "expected"),
    [
        ("cpu", None, 8, "auto", 1),
        ("cpu", None, 8, 3, 3),
        ("cpu", 4, 8, "auto", 1),  # GPUs that torch cannot use, or that are not asked for
        ("cuda", 4, 8, "auto", 4),
        ("cuda", 4, 3, "auto", 3),
        ("cuda", None, 8, "auto", 1),
        ("cuda", 4, 8, 2, 2),
        ("mps", None, 8, 1, 1),
    ],
)
def test_every_gpu_is_a_device_and_a_cpu_is_one(auto, facts, device, gpus, rows, asked_for, expected):
    facts = dataclasses.replace(facts, device=device, num_gpus=gpus)
    wanted = auto if asked_for == "auto" else asked(asked_for)
    assert settle.settle_devices(wanted, facts, device=device, rows_per_step=rows).value == expected


@pytest.mark.parametrize(
    ("device", "rows", "asked_for", "message"),
    [
        ("cpu", 4, 5, "devices 5 is more than the 4 rows of a step"),
        ("cuda", 64, 9, "devices 9 is more than the 2 GPUs here"),
        ("mps", 8, 2, "several processes cannot train together on device mps"),
    ],
)
def test_more_devices_than_can_be_are_refused(facts, device, rows, asked_for, message):
    facts = dataclasses.replace(facts, device=device, num_gpus=2)
    with pytest.raises(UserError, match=message):
        settle.settle_devices(asked(asked_for), facts, device=device, rows_per_step=rows)


def test_processes_on_one_cpu_share_its_threads_unless_a_number_is_asked_for(facts):
    measured = Choice(6, "the fastest", "measured")
    assert settle.shared_threads(measured, facts, 1) == measured
    assert settle.shared_threads(measured, facts, 4).value == 1
    assert settle.shared_threads(measured, facts, 2).reason == "6 are shared by 2 processes (the fastest)"
    given = Choice(6, "asked for", "flag")
    assert settle.shared_threads(given, facts, 2) == given


def test_dtype_is_timed_gated_and_then_remembered(auto, facts, config, trials):
    clock = Clockwork(lambda case: 0.1 if case.dtype == "bf16" else 0.3)
    first = settle.settle_dtype(auto, facts, config, trials, run_steps=steps_like_fp32, time_steps=clock)
    assert (first.value, first.origin) == ("bf16", "measured")
    second = settle.settle_dtype(auto, facts, config, trials, run_steps=never, time_steps=never)
    assert (second.value, second.origin) == ("bf16", "cached")
    assert second.reason.startswith(first.reason + " (measured ")
    other = model_config("modern", depth=3, vocab_size=501, context=80)
    settle.settle_dtype(auto, facts, other, trials, run_steps=steps_like_fp32, time_steps=clock)
    assert clock.count == 2


def test_a_dtype_asked_for_is_kept_without_measuring(facts, config, trials):
    choice = settle.settle_dtype(asked("bf16"), facts, config, trials, run_steps=never, time_steps=never)
    assert (choice.value, choice.origin, choice.reason) == ("bf16", "flag", "asked for")
    with pytest.raises(UserError, match="fp16 needs a GPU"):
        settle.settle_dtype(asked("fp16"), facts, config, trials, run_steps=never, time_steps=never)


def test_threads_are_measured_per_load_of_the_machine(auto, facts, config, trials):
    clock = Clockwork(lambda case: 0.1 + 0.01 * case.threads)
    busy = dataclasses.replace(facts, busy_cores=2.2)
    for machine in (facts, busy, facts):
        assert settle.settle_threads(auto, machine, config, trials, dtype="bf16", time_steps=clock).value == 1
    assert clock.count == 2


def test_threads_that_cannot_be_timed_fall_back_by_load_and_are_tried_again(auto, facts, config, trials):
    def fails(*arguments):
        raise ChildFailed("no answer within 60 s")

    for busy_cores, number in ((0.0, 4), (3.0, 1), (None, 4)):
        machine = dataclasses.replace(facts, busy_cores=busy_cores)
        choice = settle.settle_threads(auto, machine, config, trials, dtype="fp32", time_steps=fails)
        assert (choice.value, choice.origin) == (number, "default")


def test_one_core_and_gpus_need_no_measurement_of_threads(auto, facts, config, trials):
    one = dataclasses.replace(facts, cores_physical=1)
    assert settle.settle_threads(auto, one, config, trials, dtype="fp32", time_steps=never).value == 1
    gpu = dataclasses.replace(facts, device="cuda", cores_physical=64)
    assert settle.settle_threads(auto, gpu, config, trials, dtype="bf16", time_steps=never).value == 8
    assert settle.settle_threads(asked(3), facts, config, trials, dtype="fp32", time_steps=never).value == 3


def settled_compile(resolved, facts, config, trials, *, steps=1000, run_steps=steps_like_fp32, **times):
    return settle.settle_compile(
        resolved, facts, config, trials, dtype="bf16", steps=steps, eager_step_s=0.4, run_steps=run_steps, **times
    )


def test_compile_is_on_where_it_pays_and_its_losses_follow_fp32(auto, facts, config, trials):
    choice = settled_compile(auto, facts, config, trials)
    assert choice.value == "on"
    assert "compiled bf16 accepted" in choice.reason


def test_compile_is_off_for_a_short_run_without_any_trial(auto, facts, config, trials):
    assert settled_compile(auto, facts, config, trials, steps=20, run_steps=never).value == "off"


def test_compiled_code_that_trains_wrongly_is_off_for_good(auto, facts, config, trials):
    def wrong(dtype, compiled, num_steps):
        return [4.7] * num_steps if compiled else steps_like_fp32(dtype, compiled, num_steps)

    choice = settled_compile(auto, facts, config, trials, run_steps=wrong)
    assert choice.value == "off" and "it would pay, but compiled bf16 rejected" in choice.reason
    again = settled_compile(auto, facts, config, trials, run_steps=never)
    assert (again.value, again.origin) == ("off", "cached")


def test_a_gate_that_was_killed_is_tried_again_the_next_time(auto, facts, config, trials):
    def killed(dtype, compiled, num_steps):
        raise NoTrial("killed by SIGKILL")

    assert settled_compile(auto, facts, config, trials, run_steps=killed).value == "off"
    assert settled_compile(auto, facts, config, trials).value == "on"


def test_without_a_compiler_auto_is_off_with_the_fix_and_on_is_refused(auto, facts, config, trials):
    bare = dataclasses.replace(facts, cxx=None)
    choice = settled_compile(auto, bare, config, trials, run_steps=never)
    assert choice.value == "off" and choice.reason.endswith("apt install g++ python3-dev")
    with pytest.raises(UserError) as caught:
        settled_compile(asked("on"), bare, config, trials, run_steps=never)
    assert caught.value.fix == "apt install g++ python3-dev"


def test_an_earlier_run_of_these_widths_predicts_the_gain(auto, facts, config, trials):
    key = settle.compile_key(facts, config, "bf16")
    deeper = model_config("modern", depth=3, vocab_size=999, context=200)
    assert key == settle.compile_key(facts, deeper, "bf16")
    compiling.remember(trials, key, eager_step_s=1.0, compiled_step_s=0.98, compile_s=30.0)
    assert settled_compile(auto, facts, config, trials, run_steps=never).value == "off"


def test_device_batch_is_the_fewest_rows_that_fill_the_device(auto, facts):
    config = model_config("modern", depth=2, vocab_size=500, context=256)
    choice = settle.settle_device_batch(auto, facts, config, rows_per_step=48, dtype="bf16", compiled=True)
    assert choice.value == 16  # 4,096 tokens
    assert choice.reason.startswith("4,096 tokens per pass fill the device; about ")


def test_device_batch_divides_the_rows_of_a_step(auto, facts):
    config = model_config("modern", depth=2, vocab_size=500, context=256)
    for rows_per_step, rows in ((36, 18), (7, 7), (1, 1), (44, 22)):
        choice = settle.settle_device_batch(
            auto, facts, config, rows_per_step=rows_per_step, dtype="fp32", compiled=False
        )
        assert choice.value == rows


def test_device_batch_shrinks_to_the_memory_there_is(auto, facts):
    config = model_config("modern", depth=4, vocab_size=8192, context=512)
    tight = dataclasses.replace(facts, memory_available_bytes=int(1.4 * GIB))
    choice = settle.settle_device_batch(auto, tight, config, rows_per_step=64, dtype="fp32", compiled=False)
    assert choice.value < 4
    assert choice.reason.startswith("the most that memory allows: ")
    assert choice.beat[0]["value"] == 8
    assert choice.measured["estimated_bytes"] <= 0.85 * choice.measured["available_bytes"]


def test_a_model_that_cannot_fit_is_refused_with_both_sizes(auto, facts):
    config = model_config("modern", depth=20, vocab_size=32768, context=2048)
    with pytest.raises(UserError, match=r"the model needs .* GiB and 7 GiB are available") as caught:
        settle.settle_device_batch(auto, facts, config, rows_per_step=64, dtype="fp32", compiled=False)
    assert "--depth" in caught.value.fix


def test_unknown_memory_does_not_pretend_to_be_a_limit(auto, facts, config):
    unknown = dataclasses.replace(facts, memory_available_bytes=None)
    choice = settle.settle_device_batch(auto, unknown, config, rows_per_step=64, dtype="fp32", compiled=False)
    assert choice.value == 64 and "of unknown available" in choice.reason


def test_more_rows_than_a_step_has_are_refused(facts, config):
    with pytest.raises(UserError, match="device_batch 12 is more than the 10 rows of a step"):
        settle.settle_device_batch(asked(12), facts, config, rows_per_step=10, dtype="fp32", compiled=False)


def test_free_gpu_memory_counts_and_the_total_only_where_free_is_unknown(facts):
    gpu = dataclasses.replace(facts, device="cuda", gpu_memory_bytes=80 * GIB)
    assert settle.available_bytes(gpu) == 80 * GIB
    assert settle.available_bytes(dataclasses.replace(gpu, gpu_memory_free_bytes=3 * GIB)) == 3 * GIB


@pytest.mark.parametrize(
    ("device_batch", "sizes"),
    [
        (11, (11, 8, 6, 4, 3, 2, 1)),
        (8, (8, 6, 4, 3, 2, 1)),
        (1, (1,)),
        (2, (2, 1)),
        (24, (24, 18, 12, 9, 6, 5, 3, 2, 1)),
    ],
)
def test_fallbacks_go_down_by_quarters_and_halves_to_one_row(device_batch, sizes):
    assert settle.fallbacks(device_batch) == sizes
