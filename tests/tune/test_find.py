"""find_batch for other people's steps: in place without a trace, in a child, by many processes, as the docs show it."""

import copy
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from intone.errors import UserError
from intone.tune import find_batch, inplace
from intone.tune.found import ProbeFailed

REPOSITORY = Path(__file__).resolve().parents[2]
MIB = 2**20
WIDTH = 24

MODULE = '''
import torch
from torch import nn

def build():
    model = nn.Linear(32, 32)
    hoard = []

    def step(rows):
        bytes_each = {row_bytes}
        hoard[:] = [torch.ones(rows * bytes_each // 4)]
        model(torch.ones(rows, 32)).sum().backward()

    return step, model, torch.optim.SGD(model.parameters(), lr=0.1)

def wrong():
    return build

def broken():
    raise ValueError("no data today")
'''


class Net(nn.Module):
    """Dropout draws random numbers, batch norm changes buffers, and one half is in evaluation mode."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.drop = nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.Dropout(0.3)
        self.last = nn.Linear(WIDTH, 1)
        self.last.eval()

    def forward(self, x):
        return self.last(self.drop(self.norm(self.first(x))))


@pytest.fixture
def training():
    torch.manual_seed(3)
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)

    def step(rows):
        x = torch.randn(rows + 1, WIDTH) + np.random.rand() + random.random()  # batch norm needs two
        model(x).square().sum().backward()

    step(4)
    optimizer.step()  # moments are there, and gradients are left lying
    return model, optimizer, step


def everything(model, optimizer):
    """All that must come back."""
    return {
        "tensors": [t.detach().clone() for t in (*model.parameters(), *model.buffers())],
        "grads": [p.grad.clone() for p in model.parameters()],
        "optimizer": copy.deepcopy(optimizer.state_dict()),
        "modes": [module.training for module in model.modules()],
        "torch": torch.get_rng_state(), "numpy": np.random.get_state()[1].copy(), "python": random.getstate(),
    }  # fmt: skip


def is_equal(a, b):
    if isinstance(a, torch.Tensor | np.ndarray):
        return bool((a == b).all())
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(is_equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(is_equal(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def test_a_search_in_place_gives_everything_back_bit_for_bit(training):
    model, optimizer, step = training
    ids = [id(p) for p in model.parameters()] + [id(p.grad) for p in model.parameters()]
    before = everything(model, optimizer)
    choice = find_batch(step, model=model, optimizer=optimizer, rows_per_step=48, budget_s=1.0)
    after = everything(model, optimizer)
    for name in before:
        assert is_equal(before[name], after[name]), name
    assert ids == [id(p) for p in model.parameters()] + [id(p.grad) for p in model.parameters()]
    assert choice.passes * choice.rows >= 48 and len(choice.curve) > 1
    assert f"{choice.rows}*" in str(choice)


def test_moments_that_the_search_made_are_gone_again():
    model = nn.Linear(4, 4)
    optimizer = torch.optim.Adam(model.parameters())
    find_batch(
        lambda rows: model(torch.ones(rows, 4)).sum().backward(), model=model, optimizer=optimizer, rows_per_step=8,
        budget_s=0.5,
    )  # fmt: skip
    assert len(optimizer.state) == 0 and all(p.grad is None for p in model.parameters())


def test_everything_comes_back_also_when_the_step_fails(training):
    model, optimizer, _ = training
    before = everything(model, optimizer)

    def step(rows):
        model(torch.randn(rows + 1, WIDTH)).sum().backward()
        model.eval()
        raise ValueError("no data today")

    with pytest.raises(ValueError, match="no data today"):
        find_batch(step, model=model, optimizer=optimizer, rows_per_step=8)
    after = everything(model, optimizer)
    assert all(is_equal(before[name], after[name]) for name in before)


def test_a_search_in_place_stays_below_80_percent_of_free_memory(monkeypatch):
    free, row_bytes = 100 * MIB, 4 * MIB
    monkeypatch.setattr(inplace, "free_bytes", lambda device: free)
    asked, sizes = [], {"now": 0}
    model = nn.Linear(2, 2)

    def step(rows):
        asked.append(rows)
        sizes["now"] = rows * row_bytes
        model(torch.ones(rows, 2)).sum().backward()

    monkeypatch.setattr(inplace, "reserved_bytes", lambda device: inplace_start + sizes["now"])
    monkeypatch.setattr(inplace, "resident_bytes", lambda device: inplace_start)
    inplace_start = 10 * MIB
    choice = find_batch(step, model=model, rows_per_step=256, budget_s=2.0)
    assert max(asked) * row_bytes <= 0.8 * free
    assert choice.found.free_bytes == int(0.8 * free) and choice.found.num_out_of_memory == 0


def test_memory_that_runs_out_in_place_is_survived(training):
    model, optimizer, _ = training

    def step(rows):
        if rows > 6:
            raise MemoryError
        model(torch.randn(rows + 1, WIDTH)).sum().backward()

    choice = find_batch(step, model=model, optimizer=optimizer, rows_per_step=64, method="bisect")
    assert choice.rows <= 6 and choice.found.num_out_of_memory >= 1


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Makes the folder with somebody's my_training.py the place where we stand."""

    def made(text):
        (tmp_path / "my_training.py").write_text(text)
        monkeypatch.chdir(tmp_path)

    return made


def test_a_child_really_runs_out_of_memory_and_the_search_goes_on(module, monkeypatch):
    module(MODULE.replace("{row_bytes}", str(32 * MIB)))
    monkeypatch.setenv("INTONE_LIMIT_DATA", str(1024 * MIB))
    monkeypatch.setattr("intone.tune.find.ForeignProbe.free_bytes", None)  # nobody tells the search of the limit
    choice = find_batch("my_training:build", rows_per_step=64, method="bisect", budget_s=20.0)
    assert choice.found.num_out_of_memory >= 1
    assert 2 <= choice.rows < 32


def test_a_build_that_cannot_be_used_says_why(module, monkeypatch, tmp_path):
    module(MODULE.replace("{row_bytes}", "4"))
    with pytest.raises(ProbeFailed, match="no data today"):
        find_batch("my_training:broken", rows_per_step=4)
    monkeypatch.syspath_prepend(str(tmp_path))  # what the child does for the others, without its three seconds
    with pytest.raises(UserError, match="has no 'nothing'"):
        inplace.load_build("my_training:nothing")
    with pytest.raises(UserError, match=r"it returned \(function\), not \(step, model, optimizer\)"):
        inplace.load_build("my_training:wrong")
    with pytest.raises(UserError, match="no module 'her_training'"):
        inplace.load_build("her_training:build")
    (tmp_path / "needs_more.py").write_text("import not_installed_here\n")
    with pytest.raises(ModuleNotFoundError, match="not_installed_here"):
        inplace.load_build("needs_more:build")


def test_calls_that_make_no_sense_are_refused():
    with pytest.raises(UserError, match="is no module:function"):
        find_batch("my_training", rows_per_step=4)
    with pytest.raises(UserError, match="needs the model"):
        find_batch(lambda rows: None, rows_per_step=4)
    for rows in (0, 4.0):
        with pytest.raises(UserError, match=f"rows_per_step is {rows}"):
            find_batch("a:b", rows_per_step=rows)
    with pytest.raises(UserError, match="bisect"):
        find_batch("a:b", rows_per_step=4, method="bisection")
    with pytest.raises(UserError, match="budget_s is 0"):
        find_batch("a:b", rows_per_step=4, budget_s=0)
    with pytest.raises(UserError, match="names a file") as caught:
        find_batch("folder/my_training.py:build", rows_per_step=4)
    assert "my_training:build" in caught.value.fix


def test_a_step_without_a_backward_pass_is_refused():
    model = nn.Linear(4, 4)
    with pytest.raises(UserError, match="left no gradients") as caught:
        find_batch(lambda rows: model(torch.ones(rows, 4)), model=model, rows_per_step=8)
    assert "backward()" in caught.value.fix


PROCESS = '''
import sys, time, torch, torch.distributed as dist
from intone.tune import find_batch, inplace

rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
MIB = 2**20
inplace.free_bytes = lambda device: (400 if rank else 100) * MIB
inplace.resident_bytes = lambda device: 10 * MIB
now = [0]
inplace.reserved_bytes = lambda device: 10 * MIB + now[0]
model = torch.nn.Linear(2, 2)

def step(rows):
    now[0] = rows * (2 if rank else 1) * MIB
    time.sleep(0.002 + 0.0002 * rows * (1 if rank else 3))
    model(torch.ones(rows, 2)).sum().backward()

choice = find_batch(step, model=model, rows_per_step=256, budget_s=1.5)
print(choice.rows, choice.found.free_bytes, [(size.rows, size.step_s, size.growth_bytes) for size in choice.curve])
'''


def test_two_processes_with_different_free_memory_take_one_answer(tmp_path):
    (tmp_path / "both.py").write_text(PROCESS)
    command = [sys.executable, str(tmp_path / "both.py")]
    both = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "meeting")], stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    said = [process.communicate(timeout=120)[0].strip() for process in both]
    assert said[0] == said[1] and [process.returncode for process in both] == [0, 0]
    rows, free = (int(word) for word in said[0].split()[:2])
    assert free == int(0.8 * 100 * MIB)  # the least free of both
    assert 2 * rows * MIB <= free  # the fuller process decides what a row takes


def examples():
    """The Python blocks of docs/tune.md, in order."""
    return re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs" / "tune.md").read_text(), re.DOTALL)


def test_the_example_of_a_plain_loop_runs_as_it_stands(capsys):
    plain = examples()[0]
    exec(compile(plain, "docs/tune.md", "exec"), {"__name__": "example"})
    assert "left on the table" in capsys.readouterr().out


@pytest.mark.long
def test_the_example_with_transformers_runs_as_it_stands(module, capsys):
    pytest.importorskip("transformers")
    _, build, use = examples()
    assert build.startswith("# my_training.py")
    module(build)
    exec(compile(use, "docs/tune.md", "exec"), {"__name__": "example"})
    assert "measured" in capsys.readouterr().out
