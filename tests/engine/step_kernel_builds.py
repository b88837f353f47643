"""Run by test_step_kernels.py: the step kernels are built for compute capability 9.0, without a GPU."""

import pytest
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from intone.bench.gpu_suites.decode_kernels import OneStep
from intone.config import model_config
from intone.engine import products
from intone.engine.fused_decoder import HEAD_WIDTHS, FusedDecoder

MOST_SHARED_BYTES = 227 * 1024  # of one program on compute capability 9.0


class NoDevice:
    """What Triton asks a driver for before it builds a kernel."""

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)


@pytest.fixture
def built(monkeypatch):
    """Every launch builds its kernel and does nothing more -> {(name, hash): kernel}."""
    kernels, run = {}, JITFunction.run

    def build(self, *args, grid, warmup, **options):
        kernel = run(self, *args, grid=grid, warmup=True, **options)
        kernels[self.__name__, kernel.hash] = kernel

    driver.set_active(NoDevice())
    monkeypatch.setattr(JITFunction, "run", build)
    monkeypatch.setattr(products, "can_pack", lambda weight: False)
    with torch.inference_mode():
        yield kernels


@pytest.mark.parametrize(("head_width", "overlaps"), [*((width, False) for width in HEAD_WIDTHS), (64, True)])
def test_every_kernel_of_a_step_is_built(built, head_width, overlaps):
    config = model_config("modern", depth=4, vocab_size=300, context=256, head_width=head_width)
    for num_rows in (1, 3, 20) if head_width == 64 else (1,):
        step = OneStep.drawn(config, num_rows, torch.device("cpu"))
        fused = FusedDecoder(step.decoder, step.stores[0], trash=step.trash, scale=1.0, units=132, overlaps=overlaps)
        logits = fused.logits(step.rows, context=256)
        state, stops = torch.zeros((7, num_rows), dtype=torch.int64), torch.zeros((num_rows, 16), dtype=torch.int64)
        out = torch.zeros((3, num_rows), dtype=torch.float64)
        fused.take_likeliest(logits, state, stops, out, (1, 2, 4))
    names = {"embed_kernel", "one_row_kernel", "attention_kernel", "likeliest_kernel"}
    names |= {"few_rows_kernel", "added_kernel", "ending_kernel"} if head_width == 64 else set()
    assert {name for name, _ in built} == names
    for (name, _), kernel in built.items():
        assert len(kernel.asm["cubin"]) and kernel.metadata.shared <= MOST_SHARED_BYTES
        assert ("griddepcontrol.wait" in kernel.asm["ptx"]) == overlaps, name
