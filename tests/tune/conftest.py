"""What the tuning tests share: a known machine, a small model, settings left to tuning."""

import pytest

from intone.config import ModelConfig, model_config
from intone.hardware import Facts
from intone.resolving import Resolved
from intone.tune.trials import Trials

GIB = 2**30


@pytest.fixture
def facts() -> Facts:
    """A quiet four-core machine on which bf16 products are twice as fast."""
    return Facts(
        fingerprint="ab" * 8, torch_version="2.13.0+cpu", libc="glibc 2.36", cores_logical=8, cores_physical=4,
        busy_cores=0.0, cxx="/usr/bin/g++", cc="/usr/bin/gcc", python_header="/usr/include/Python.h", device="cpu",
        memory_bytes=8 * GIB, memory_available_bytes=7 * GIB, fp32_flops_per_s=100e9, bf16_flops_per_s=200e9,
    )  # fmt: skip


@pytest.fixture
def trials(facts, home) -> Trials:
    """An empty store of trials."""
    return Trials(facts)


@pytest.fixture
def config() -> ModelConfig:
    return model_config("modern", depth=3, vocab_size=501, context=96)


@pytest.fixture
def auto() -> Resolved:
    return Resolved("auto", "default", "left to tuning")
