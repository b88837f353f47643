"""The choice between PyTorch's operations and our CPU kernels."""

import dataclasses

import pytest

from intone.config import model_config
from intone.errors import UserError
from intone.resolving import Resolved
from intone.tune import kernels
from intone.tune.precision import NoTrial
from intone.tune.trial import TrialResult

CONFIG = model_config("modern", depth=1, vocab_size=300, context=32)
AUTO = Resolved("auto", "default", "")


class Runner:
    """Answers trials from a table of step times; the losses of one kind may differ."""

    def __init__(self, native_s=0.5, factor=1.0, error=None):
        self.native_s, self.factor, self.error = native_s, factor, error

    def run(self, dtype, *, compiled, num_steps, kernels="torch"):
        if self.error and kernels == "native":
            raise NoTrial(self.error)
        losses = [3.0 * (self.factor if kernels == "native" else 1.0)] * num_steps
        return TrialResult(losses, 1.0, self.native_s if kernels == "native" else 1.0, None)


class NoMemory:
    """Trials that remember nothing."""

    def settle(self, name, key, decide):
        return decide()


@pytest.fixture(autouse=True)
def can_be_built(monkeypatch):
    monkeypatch.setattr(kernels.build, "obstacle", lambda variant: None)


def settle(runner, asked=AUTO, compile_asked=AUTO, *, dtype="bf16", device="cpu", config=CONFIG):
    facts = FakeFacts(device)
    return kernels.settle_kernels(asked, compile_asked, facts, config, NoMemory(), dtype=dtype, runner=runner)


class FakeFacts:
    def __init__(self, device):
        self.device = device


@pytest.fixture(autouse=True)
def plain_key(monkeypatch):
    monkeypatch.setattr(kernels, "shape_key", lambda facts, config: {})


def test_faster_kernels_with_the_same_losses_are_taken_and_say_by_how_much():
    choice = settle(Runner(native_s=0.5))
    assert (choice.value, choice.origin) == ("native", "measured")
    assert choice.reason.startswith("2.00x as fast per step as PyTorch's operations; losses within 0.00%")
    assert choice.beat == ({"value": "torch", "why": "our kernels are 2.00x as fast per step"},)


def test_kernels_that_are_not_faster_are_not_taken():
    choice = settle(Runner(native_s=0.99))
    assert (choice.value, choice.reason) == ("torch", "our kernels are not faster here (1.01x)")


def test_kernels_that_train_differently_are_rejected_however_fast():
    choice = settle(Runner(native_s=0.1, factor=1.03))
    assert choice.value == "torch"
    assert choice.reason.startswith("our kernels were rejected: loss 3.09 against 3 at step")


def test_a_trial_that_does_not_run_is_no_finding():
    choice = settle(Runner(error="memory ran out"))
    assert (choice.value, choice.origin) == ("torch", "default")
    assert choice.reason == "our kernels could not be tried: memory ran out"


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"device": "cuda"}, "for CPUs"),
        ({"dtype": "fp16"}, "compute in bf16 or fp32"),
        ({"compile_asked": Resolved("on", "flag", "")}, "compiling was asked for"),
        ({"config": dataclasses.replace(CONFIG, head_width=24)}, "head width that is a multiple of 16"),
        ({"config": dataclasses.replace(CONFIG, width=24)}, "width that is a multiple of 16"),
    ],
)
def test_what_stands_in_the_way_is_the_reason_and_an_error_where_they_were_asked_for(changes, word):
    choice = settle(Runner(), **changes)
    assert (choice.value, choice.origin) == ("torch", "default")
    assert word in choice.reason
    with pytest.raises(UserError) as caught:
        settle(Runner(), Resolved("native", "flag", ""), **changes)
    assert word in caught.value.message


def test_what_was_asked_for_is_not_tried():
    assert settle(Runner(error="must not run"), Resolved("native", "flag", "")).value == "native"
    assert settle(Runner(error="must not run"), Resolved("torch", "flag", "")).value == "torch"


@pytest.mark.parametrize(("dtype", "asked_of"), [("bf16", "avx512_bf16"), ("fp32", "avx2")])
def test_the_processor_is_asked_for_what_the_dtype_needs(monkeypatch, dtype, asked_of):
    monkeypatch.setattr(kernels.build, "obstacle", lambda variant: f"no {variant}")
    assert settle(Runner(), dtype=dtype).reason == f"no {asked_of}"
    assert settle(Runner(), Resolved("torch", "flag", ""), dtype=dtype).value == "torch"
