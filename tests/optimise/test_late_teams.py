"""Processes that train together: exchanges are counted, left out and timed, and a slow process is named."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from intone.optimise.detect.catalogue import detect
from intone.optimise.late import late_signals, rank_files, with_ranks
from intone.optimise.program import check_program, look_at
from intone.optimise.signals import Signals
from tests.optimise.test_late import SEEN
from tests.optimise.test_program import loaded

# models with processes beside them, kept until this process ends: one that is deleted just behind its last exchange
# waits, holding the interpreter, for a thread of gloo that waits for the interpreter (seen once, torch 2.13)
KEPT: list[torch.nn.Module] = []


@pytest.fixture
def team(tmp_path, monkeypatch):
    """A team of one process, and how often it exchanged gradients by hand."""
    dist = torch.distributed
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    plain, calls = dist.all_reduce, []
    for owner, name in ((torch.nn.parallel.DistributedDataParallel, "__init__"), (torch.Tensor, "backward")):
        monkeypatch.setattr(owner, name, getattr(owner, name))  # to be put back
    monkeypatch.setattr(dist, "all_reduce", lambda *args, **kwargs: (calls.append(1), plain(*args, **kwargs))[1])
    probe = SimpleNamespace(
        torch=torch, optimizers={}, notes=[], sync=lambda: None, is_compiling=lambda: False, rank=0,
        plan={"out": str(tmp_path / "probe.json")},
    )  # fmt: skip
    made = loaded("intone_probe_team").Team(probe)
    made.install(torch)
    yield made, calls
    dist.destroy_process_group()


def plain_passes(model, x):
    for _ in range(3):
        model(x).mean().backward()


def passes_without(model, x):
    for _ in range(2):
        with model.no_sync():
            model(x).mean().backward()
    model(x).mean().backward()


def flagged_passes(model, x):
    for number in range(3):
        model.require_backward_grad_sync = number == 2
        model(x).mean().backward()


def by_hand(model, x):
    for _ in range(3):
        model(x).mean().backward()
    for weight in model.parameters():
        torch.distributed.all_reduce(weight.grad)
    torch.distributed.all_reduce(torch.zeros(1))


def by_hand_each(model, x):
    for _ in range(3):
        model(x).mean().backward()
        torch.distributed.all_reduce(torch.cat([weight.grad.flatten() for weight in model.parameters()]))


STYLES = {plain_passes: 3, passes_without: 1, flagged_passes: 1, by_hand: 1, by_hand_each: 3}


@pytest.mark.parametrize("style", STYLES, ids=lambda style: style.__name__)
def test_exchanges_are_counted_per_step_and_left_out_in_the_steps_between(team, style, tmp_path):
    found, calls = team
    model = torch.nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found.probe.optimizers[0] = optimizer
    if not style.__name__.startswith("by_hand"):
        model = torch.nn.parallel.DistributedDataParallel(model)
        KEPT.append(model)

        def hook(_state, bucket):
            torch.distributed.all_reduce(bucket.buffer())  # as hooks do, and not another exchange
            future = torch.futures.Future()
            future.set_result(bucket.buffer())
            return future

        model.register_comm_hook(None, hook)

    def step():
        before = len(calls)
        style(model, torch.ones(2, 4))
        optimizer.step()
        optimizer.zero_grad()
        found.settle()
        return len(calls) - before

    each = [step() for _ in range(4)]
    assert found.num_exchanges == 4 * STYLES[style] and each == [each[0]] * 4
    assert found.begin()
    behind, is_over = [], False
    while not is_over:
        behind.append(step())
        is_over = found.step()
    others = {by_hand: 1}.get(style, 0)  # what is no gradient is exchanged all the time
    assert behind == [each[0]] * 4 + [others] * 8 + [each[0]] * 4
    assert "require_backward_grad_sync" not in vars(torch.nn.parallel.DistributedDataParallel)
    assert step() == each[0], "the model's own flag is what it was"
    assert found.found()["num_processes"] == 1 and found.found()["with_s"] > 0
    (path,) = rank_files(tmp_path / "probe.json")
    assert json.loads(path.read_text())["own_s"] > 0


def test_a_team_whose_exchange_is_not_known_says_so(team):
    found, _ = team
    assert not found.begin() and "is not known" in found.probe.notes[0] and found.found() == {}


def test_the_own_work_of_all_processes_is_read_and_a_slow_one_is_named(tmp_path):
    out = tmp_path / "probe.json"
    for rank, seconds in enumerate((0.05, 0.08, 0.05)):
        Path(f"{out}.rank{rank}").write_text(json.dumps({"rank": rank, "own_s": seconds}))
    found = with_ranks({**SEEN, "exchanges": 80, "team": {"num_processes": 3, "with_s": 0.1}}, out)
    signals = Signals(**late_signals(found, 0.1, 20, tmp_path))
    assert signals.rank_step_s == (0.05, 0.08, 0.05) and signals.exchange_share == pytest.approx(0.2)
    found = {one.detector: one for one in detect(replace(signals, micro_steps=4.0))}
    assert set(found) == {"D19", "D20", "D21"} and "process 1 of 3 takes 1.60" in found["D21"].evidence[0]
    assert found["D19"].bound == pytest.approx(1 / (1 - 0.2 * 0.75))
    rank_files(out)[0].unlink()
    alone = late_signals(with_ranks(dict(SEEN, team={"num_processes": 3, "with_s": 0.1}), out), 0.1, 20, tmp_path)
    assert set(alone) == {"num_processes", "exchanges_per_step"}, "processes of another machine wrote theirs there"


# four micro-batches that all exchange two million gradients; one process waits 0.2 s in each step
TEAM = """
import time, torch, torch.distributed as dist
dist.init_process_group("gloo")
torch.manual_seed(0)
torch.set_num_threads(1)
net = torch.nn.parallel.DistributedDataParallel(torch.nn.Embedding(40_000, 50))
opt = torch.optim.SGD(net.parameters(), lr=0.1)
for step in range(100000):
    for _ in range(4):
        net(torch.randint(0, 9, (1, 4))).square().mean().backward()
    if dist.get_rank() == 1:
        time.sleep(0.2)
    opt.step(); opt.zero_grad()
"""


@pytest.mark.long
def test_a_team_that_exchanges_too_often_and_waits_for_one_of_its_own_is_found(tmp_path: Path):
    (tmp_path / "team.py").write_text(TEAM)
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "team.py"]
    signals, _ = look_at(check_program(words, tmp_path), tmp_path / "look", steps=10)
    assert (signals.num_processes, signals.exchanges_per_step, signals.micro_steps) == (2, 4.0, 4.0)
    first, second = signals.rank_step_s
    assert second - first == pytest.approx(0.2, rel=0.5)
    found = {one.detector: one for one in detect(signals)}
    assert {"D19", "D21"} <= set(found) and "process 1 of 2" in found["D21"].evidence[0]
    assert 0 < signals.exchange_share < 1
