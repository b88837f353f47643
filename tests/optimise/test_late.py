"""What is looked for behind the profile: constants made anew, sizes that do not fit, work done twice."""

import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.utils.checkpoint
from torch._higher_order_ops.cond import cond_op

from intone.optimise.detect.catalogue import detect
from intone.optimise.late import late_signals
from intone.optimise.program import check_program, look_at
from intone.optimise.signals import Signals
from tests.bench.test_casestudy import FACTS
from tests.optimise.test_program import loaded

SEEN = {"constants": [], "twins": [], "exchanges": 0, "team": {}, "swaps": {}}


@pytest.fixture
def in_one_thread():
    """Passes of this process on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# --- constants -------------------------------------------------------------------------------------------------------


def constants_of(extra):
    """What is found in a training whose loss takes extra(number of the step, activations (3, 64), weight) too."""
    weight = torch.nn.Parameter(torch.ones(64, 64))
    optimizer = torch.optim.AdamW([weight], lr=0.1)
    probe = SimpleNamespace(torch=torch, optimizers={0: optimizer}, notes=[], sync=lambda: None)
    constants = loaded("intone_probe_constant").Constants(probe, loaded("intone_probe_look").place_of)
    assert constants.begin()
    is_over = []
    for number in range(3):
        x = torch.randn(3, 64) @ weight
        (x.square().mean() + extra(number, x, weight).mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
        is_over.append(constants.step())
    assert is_over == [False, False, True]
    return constants.found()


KEPT = torch.ones(64, 64).tril()
ROWS = torch.ones(32, 64), torch.zeros(32, 64)
FROZEN = torch.nn.Linear(64, 64).requires_grad_(False)


def masked(number, x, weight):
    return x @ torch.ones(64, 64).tril()


def cast(number, x, weight):
    return x @ FROZEN.weight.to(torch.float64).float()


@pytest.mark.parametrize(("extra", "operators"), [(masked, "ones, tril"), (cast, "_to_copy")])
def test_what_every_step_computes_alike_is_found_with_its_line_and_time(extra, operators):
    ((seconds, names, path, line),) = constants_of(extra)
    assert (names, path, line) == (operators, __file__, extra.__code__.co_firstlineno + 1)
    assert 0 < seconds < 0.1


OTHERS = {
    "kept": lambda number, x, weight: x @ KEPT,
    "drawn": lambda number, x, weight: x @ torch.rand(64, 64).tril(),
    "another size": lambda number, x, weight: x.sum() * torch.ones(64, 64 + number).tril(),
    "another number": lambda number, x, weight: x @ torch.full((64, 64), float(number)).tril(),
    "written over": lambda number, x, weight: torch.zeros(3, 64).add_(x.detach()).tril() + x,
    "written over in part": lambda number, x, weight: into_rows(torch.zeros(3, 64), x),
    "rows in another order": lambda number, x, weight: x @ torch.cat([ROWS[number % 2], ROWS[1 - number % 2]]),
    "by functions": lambda number, x, weight: x + cond_op(KEPT[0, 0] > number, torch.sin, torch.cos, (x.detach(),)),
    "only looked at": lambda number, x, weight: x @ KEPT.t()[:, :64].unsqueeze(0),
    "of trained weights": lambda number, x, weight: x.detach() @ weight.detach().double().float(),
}


def into_rows(buffer, x):
    buffer[1].copy_(x.detach()[1])
    return buffer.tril() + x


@pytest.mark.parametrize("name", OTHERS)
def test_what_differs_between_steps_or_is_kept_already_is_no_constant(name):
    assert constants_of(OTHERS[name]) == []


# --- sizes -----------------------------------------------------------------------------------------------------------


def test_products_of_odd_sizes_are_timed_beside_padded_ones_and_the_rest_is_left_alone(tmp_path, monkeypatch):
    module = loaded("intone_probe_twin")

    def op(name, *shapes, strides=None, dtype="float"):
        args = {"Input Dims": list(shapes), "Input type": [dtype] * len(shapes)}
        args |= {"Input Strides": strides} if strides else {}
        return {"name": name, "cat": "cpu_op", "args": args}

    events = [
        op("aten::mm", [64, 96], [96, 1001], strides=[[96, 1], [1, 96]]), op("aten::mm", [64, 96], [96, 1024]),
        op("aten::addmm", [33], [64, 40], [40, 33], dtype="c10::BFloat16"), op("aten::bmm", [5, 7, 64], [5, 64, 3]),
        op("aten::mm", [64, 96], [96, 1001], dtype="int"), {"name": "aten::mm", "cat": "cpu_op"},
    ]  # fmt: skip
    (tmp_path / "trace").write_text(json.dumps({"traceEvents": events * 2}))
    asked = []

    def compared(_torch, entry, twin, device):
        asked.append((entry, twin, device))
        return 0.010, 0.008

    monkeypatch.setattr(module, "compared", compared)
    found = module.twins(torch, tmp_path / "trace", 2, 0.1, "cpu")
    assert asked == [
        (((1, 64, 96, 1001), "float32", (False, True)), (1, 64, 96, 1024), "cpu"),
        (((1, 64, 40, 33), "bfloat16", (False, False)), (1, 64, 40, 40), "cpu"),
    ]
    assert found[0] == {
        "sizes": [1, 64, 96, 1001], "dtype": "float32", "twin": [1, 64, 96, 1024], "share": pytest.approx(0.1),
        "gain": pytest.approx(1.25),
    }  # fmt: skip
    assert module.twins(torch, tmp_path / "trace", 2, 10.0, "cpu") == [], "a thousandth of a step is not worth it"
    signals = Signals(**late_signals({**SEEN, "twins": found}, 0.1, 20, tmp_path))
    assert signals.odd_product[0] == "64 x 96 x 1,001 in fp32, beside 64 x 96 x 1,024"
    (finding,) = detect(signals)
    assert finding.detector == "D15" and finding.bound == pytest.approx(1 / (1 - 0.1 * 0.2))


def test_matrices_lie_as_they_did_in_the_program_and_are_timed(in_one_thread):
    module = loaded("intone_probe_twin")
    left, right = module.made(torch, (3, 5, 7, 9), "bfloat16", (True, False), "cpu")
    assert left.shape == (3, 5, 7) and left.stride()[1:] == (1, 5) and right.stride()[1:] == (9, 1)
    assert left.dtype == torch.bfloat16 and module.is_turned([35, 1, 5]) and not module.is_turned([7, 1])
    module.BLOCK_S, module.ROUNDS = 0.001, 2
    plain, twin = module.compared(torch, ((1, 9, 300, 300), "float32", (False, True)), (1, 90, 300, 3000), "cpu")
    assert 0 < plain < twin, "a hundred times as much to compute takes longer"


# a head for 5,003 tokens beside one for 5,056: on a CPU of AVX2 the smaller one took 1.3 times as long
HEAD = """
import torch, torch.nn.functional as F
torch.manual_seed(0)
torch.set_num_threads(1)
head = torch.nn.Linear(256, 5003, bias=False)
opt = torch.optim.SGD(head.parameters(), lr=0.1)
for step in range(100000):
    x, goals = torch.randn(512, 256), torch.randint(0, 5003, (512,))
    F.cross_entropy(head(x), goals).backward()
    opt.step(); opt.zero_grad()
"""


@pytest.mark.long
def test_a_vocabulary_that_does_not_fit_this_cpu_is_found_in_a_program_that_has_one(tmp_path: Path):
    (tmp_path / "train.py").write_text(HEAD)
    signals, raw = look_at(check_program([sys.executable, "train.py"], tmp_path), tmp_path / "look", steps=10)
    assert {tuple(one["sizes"][1:]) for one in raw["twins"]} == {(512, 256, 5003), (5003, 512, 256)}
    assert all(0.05 < one["share"] < 1 for one in raw["twins"])
    assert "D15" in {one.detector for one in detect(signals)}


# --- computed again --------------------------------------------------------------------------------------------------


class Again(torch.nn.Module):
    """A block that is computed again on the way back; its pass forward also waits: planted."""

    def __init__(self, is_again):
        super().__init__()
        self.is_again = is_again
        self.block = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.GELU(), torch.nn.Linear(64, 32))

    def wait(self, x):
        time.sleep(0.006)
        return self.block(x)

    def forward(self, x):
        if not self.is_again:
            return self.wait(x)
        return torch.utils.checkpoint.checkpoint(self.wait, x, use_reentrant=False)


@pytest.mark.parametrize("is_again", [True, False])
def test_activations_that_are_computed_again_are_kept_once_and_timed_and_counted(monkeypatch, in_one_thread, is_again):
    module, checkpoint = loaded("intone_probe_swap"), torch.utils.checkpoint
    monkeypatch.setattr(checkpoint, "checkpoint", checkpoint.checkpoint)  # to be put back
    probe = SimpleNamespace(
        torch=torch, notes=[], sync=lambda: None, on_cuda=lambda: False, is_compiling=lambda: False
    )
    swaps = module.Swaps(probe, {})
    swaps.install(torch)
    module.BLOCK_S = 0.02
    model, x = Again(is_again), torch.randn(8, 32)
    model(x).mean().backward()
    swaps.keep(model, (x,), {}, 8)
    found = swaps.measure()
    signals = Signals(**late_signals({**SEEN, "swaps": found}, None, 0, Path(".")), peak_bytes=1000)
    if not is_again:
        assert "kept" not in found
        return
    gain, more = found["kept"]
    assert gain > 1.3 and checkpoint.checkpoint(lambda: 5, use_reentrant=False) == 5
    assert 2 * 8 * 64 * 4 <= more <= 2 * 8 * 64 * 4 + 8 * 32 * 4, "of both linear layers, and what goes into the first"
    assert [one.detector for one in detect(replace(signals, memory_bytes=2**30))] == ["D25"]
    assert detect(replace(signals, memory_bytes=2000 + more)) == [], "there is no memory to keep them in"


# blocks that wait, and are computed again by a name that was imported; a mask that is made in every pass
WASTE = """
import time, torch
from torch.utils.checkpoint import checkpoint
torch.manual_seed(0)
torch.set_num_threads(1)
class Block(torch.nn.Sequential):
    def forward(self, x):
        time.sleep(0.004)
        return super().forward(x)
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(64, 128)
        self.blocks = torch.nn.ModuleList(
            Block(torch.nn.Linear(128, 512), torch.nn.GELU(), torch.nn.Linear(512, 128)) for _ in range(4)
        )
    def forward(self, ids):
        mask = torch.ones(2048, 2048).tril()
        x = self.table(ids) * mask[-1, -1]
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False)
        return x
net = Net()
opt = torch.optim.AdamW(net.parameters(), lr=1e-3)
for step in range(100000):
    net(torch.randint(0, 64, (16, 32))).square().mean().backward()
    opt.step(); opt.zero_grad()
"""


@pytest.mark.long
def test_work_that_a_program_does_twice_or_again_is_found_in_it(tmp_path: Path):
    (tmp_path / "train.py").write_text(WASTE)
    program = check_program([sys.executable, "train.py"], tmp_path)
    signals, _ = look_at(program, tmp_path / "look", steps=10, facts=replace(FACTS, cores_physical=1))
    found = {one.detector: one for one in detect(signals)}
    assert {"D25", "D28"} <= set(found) and "D15" not in found
    assert found["D28"].place == "train.py:18"
    # of four blocks what goes into GELU and out of it, and into the first layer
    assert 4 * 512 * (512 + 512) * 4 <= signals.kept_bytes <= 4 * 512 * (512 + 512 + 128) * 4
