"""What the decode suite says of the step kernels: that they fail where they do, and what each takes of a step."""

import time

import pytest
import torch

from intone.bench.gpu_suites.bench import Bench
from intone.bench.gpu_suites.decode_kernels import filled_model, kernel_table, kernels_run
from intone.config import model_config


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here: the check would not fail")
def test_a_check_that_fails_is_said_and_the_suite_can_go_on(tmp_path, capsys):
    bench = Bench(
        out=tmp_path, prefix="h200", device="cuda", command="c", machine={}, machine_folder=tmp_path, code="abc",
        end_s=time.monotonic() + 60, scratch=tmp_path,
    )  # fmt: skip
    assert not kernels_run(bench)
    said = capsys.readouterr().err
    assert "Traceback" in said and "cuda" in said.lower()
    assert said.splitlines()[-1] == "THE STEP KERNELS DO NOT WORK HERE: everything below is PyTorch's"


def test_kernels_are_listed_by_what_they_take_of_a_step():
    lines = kernel_table(["short", "long", "short", "long", "once"], [1.0, 5.0, 3.0, 7.0, 0.5], 2)
    assert [line.split() for line in lines[1:]] == [
        ["6.00", "6.00", "1.00", "long"], ["2.00", "2.00", "1.00", "short"], ["0.25", "0.50", "0.50", "once"],
    ]  # fmt: skip


def test_a_filled_model_hides_no_block():
    model = filled_model(model_config("modern", depth=2, vocab_size=64, context=16), torch.device("cpu"))
    assert all(weight.abs().max() > 0.01 for weight in model.parameters())
