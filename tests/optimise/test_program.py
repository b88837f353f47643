"""Somebody else's program is looked at and measured without a change to it."""

import ast
import importlib.util
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from intone.errors import UserError
from intone.optimise.detect.catalogue import detect
from intone.optimise.program import PROBE, check_program, look_at, program_side, token_times
from intone.optimise.program_gates import judge_losses, judge_times, judge_tokens, judge_training
from intone.optimise.trace import product_flops, union
from intone.prove.live import LiveFailed
from intone.prove.measure import Measured
from intone.prove.noise import Signals as Noise
from intone.prove.rounds import Block, Round
from tests.bench.test_casestudy import FACTS

# a wait of 6 ms per batch beside steps of about 2 ms: planted, in a function that the report must name
TRAIN = """
import sys, time, torch, torch.nn.functional as F
torch.manual_seed(0)
torch.set_num_threads(1)
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.head = torch.nn.Embedding(64, 16), torch.nn.Linear(16, 64)
    def forward(self, ids, targets):
        return F.cross_entropy(self.head(self.table(ids)).view(-1, 64), targets.view(-1), ignore_index=-1)
def get_batch():
    time.sleep(0.006)
    ids = torch.randint(1, 64, (4, 12))
    targets = ids.roll(-1, 1)
    ids[:, 8:], targets[:, 8:] = 0, -1
    return ids, targets
net = Net()
opt = torch.optim.AdamW(net.parameters(), lr=1e-3)
for step in range(int(sys.argv[1])):
    for _ in range(2):
        (net(*get_batch()) / 2).backward()
    opt.step(); opt.zero_grad()
"""


@pytest.fixture
def in_one_thread():
    """Passes of this process on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("theirs")
    (place / "train.py").write_text(TRAIN)
    # their own start-up file must run as if we were not there
    (place / "sitecustomize.py").write_text("import os; open('theirs.txt', 'w').write('ran')\n")
    return place


def test_the_time_the_batches_and_the_waiting_line_are_found(folder: Path, tmp_path: Path):
    program = check_program([sys.executable, "train.py", "100000"], folder)
    program = type(program)(program.words, folder, {"PYTHONPATH": str(folder)})
    signals, raw = look_at(program, tmp_path / "look", steps=25, facts=replace(FACTS, cores_physical=1))
    assert (folder / "theirs.txt").read_text() == "ran"
    assert (signals.kind, signals.device_batch, signals.micro_steps, signals.num_shapes) == ("train", 4, 2.0, 1)
    assert signals.pad_share == pytest.approx(4 / 12) and signals.masked_rows == 0
    assert signals.parts["data"] > 0.3 and sum(signals.parts.values()) == pytest.approx(1.0, abs=0.02)
    assert signals.matmul_dtypes == {"fp32": 1.0} and signals.threads == 1
    assert signals.logits_bytes == 4 * 12 * 64 * 4
    weights = 4 * (64 * 16 + 64 * 16 + 64)
    kinds = signals.memory_kinds
    assert kinds["weights"] == kinds["gradients"] == weights
    assert kinds["optimizer"] == 2 * weights + 3 * 4, "two moments, and a count of steps for each of three"
    assert sum(kinds.values()) == signals.peak_bytes and kinds["code"] > 2**20
    # per step two passes of 48 positions: forward, and backward to the weights and to the table's rows
    flops = 2 * 3 * 2 * 48 * 16 * 64
    assert signals.flop_share == pytest.approx(flops / signals.step_s / FACTS.fp32_flops_per_s)
    found = {entry.detector: entry for entry in detect(signals)}
    assert "D16" in found and found["D6"].place == "train.py:12"
    assert not {"D5", "D18", "D22", "D23"} & set(found), "nothing of the kind is planted"
    assert signals.elasticity > 1.05 and "D1" in found, "passes of 48 positions wait for Python, not for products"
    assert signals.threads_gain is None and signals.best_dtype is None, "no other is there, or known to be faster"
    assert len(raw["losses"]) >= 2 * 25


# equal rows, rows that teach nothing, 120 parameters updated one by one, pauses of its own that grow
FAULTY = """
import time, torch, torch.nn.functional as F
torch.manual_seed(0)
torch.set_num_threads(1)
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.head = torch.nn.Embedding(64, 16), torch.nn.Linear(16, 64)
        self.many = torch.nn.ParameterList(torch.zeros(16) for _ in range(120))
    def forward(self, ids, targets):
        x = self.table(ids) + sum(self.many)
        return F.cross_entropy(self.head(x).view(-1, 64), targets.view(-1), ignore_index=-1)
net = Net()
opt = torch.optim.AdamW(net.parameters(), lr=1e-3, foreach=False)
for step in range(100_000):
    ids = torch.randint(1, 64, (4, 12))
    ids[1] = ids[0]
    targets = ids.roll(-1, 1)
    targets[3] = -1
    net(ids, targets).backward()
    opt.step(); opt.zero_grad()
    time.sleep(0.00005 * step * step)
"""


@pytest.mark.long
def test_what_is_planted_in_a_program_is_found_in_it(tmp_path: Path):
    (tmp_path / "train.py").write_text(FAULTY)
    signals, _ = look_at(check_program([sys.executable, "train.py"], tmp_path), tmp_path / "look", steps=30)
    found = {entry.detector: entry for entry in detect(signals)}
    assert {"D2", "D18", "D22", "D23", "D27"} <= set(found)
    assert found["D18"].place == "train.py:21" and found["D22"].is_fault and found["D23"].is_fault
    assert signals.duplicate_rows >= signals.rows_looked_at // 4 and signals.masked_rows >= signals.rows_looked_at // 4


def test_it_is_measured_in_blocks_of_its_own_steps(folder: Path, tmp_path: Path):
    program = check_program([sys.executable, "train.py", "100000"], folder)
    with program_side("A", program, tmp_path / "blocks").start() as child:
        child.wait_ready()
        first, second = child.block(steps=3), child.block(steps=4)
    assert (first["steps"], second["steps"]) == (3, 4)
    assert second["first_step"] == first["first_step"] + 3
    assert len(first["losses"]) == 6 and first["seconds"] > 3 * 0.012
    assert [step for step, _ in second["early"]] == [number // 2 for number in range(2 * (5 + 3 + 4))]
    assert [loss for _, loss in second["early"]][10:16] == first["losses"]


def test_a_program_that_ends_too_early_says_so(folder: Path, tmp_path: Path):
    program = check_program([sys.executable, "train.py", "7"], folder)
    with program_side("A", program, tmp_path / "blocks").start() as child:
        child.wait_ready()
        with pytest.raises(LiveFailed, match="exit code 0"):
            child.block(steps=50)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("raise SystemExit('no data here')", "no data here"),
        ("print('hello')", "without ever importing torch"),
        ("import torch\nprint(torch.ones(1))", "without an optimizer step"),
    ],
)
def test_a_program_that_teaches_us_nothing_is_refused_with_its_own_words(tmp_path: Path, code: str, message: str):
    (tmp_path / "a.py").write_text(code)
    with pytest.raises(UserError, match=message):
        look_at(check_program([sys.executable, "a.py"], tmp_path), tmp_path / "look")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no program"), (["no-such-program"], "was not found"), (["python3", "-I", "a.py"], "keeps the probe out"),
        (["python3", "missing.py"], "no missing.py"),
    ],
)  # fmt: skip
def test_a_command_that_cannot_work_is_refused_before_it_runs(tmp_path: Path, words: list[str], message: str):
    with pytest.raises(UserError, match=message):
        check_program(words, tmp_path)


def test_generation_without_a_cache_shows_by_its_times():
    without = [(1, 10 + i, 0.001 * (10 + i)) for i in range(600)]
    early, late = token_times(without)
    assert early is not None and late is not None and late[1] / early[1] > 5
    early, late = token_times([(1, 10, 0.05)] + [(1, 1, 0.002)] * 600)
    assert early is not None and late is not None and late[1] / early[1] < 1.2
    assert token_times([(1, 10, 0.1)] * 100) == (None, None)


# a model that is called token by token with its whole text, as a script without a cache does
WRITE = """
import sys, torch
torch.manual_seed(int(sys.argv[2]))
torch.set_num_threads(1)
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.head = torch.nn.Embedding(64, 16), torch.nn.Linear(16, 64)
    def forward(self, ids):
        return self.head(self.table(ids).cumsum(1))
net = Net()
with torch.no_grad():
    for text in range(int(sys.argv[1])):
        ids = torch.full((2, 1), text % 64)
        for _ in range(60):
            ids = torch.cat([ids, net(ids)[:, -1].softmax(-1).multinomial(1)], 1)
"""


def test_a_generating_program_is_looked_at_until_enough_is_seen(tmp_path: Path):
    (tmp_path / "write.py").write_text(WRITE)
    signals, raw = look_at(check_program([sys.executable, "write.py", "100000", "0"], tmp_path), tmp_path / "look")
    assert signals.kind == "generate" and signals.step_s is not None and signals.num_steps == 0
    assert 1024 <= len(raw["calls"]) < 1100


def test_a_generating_program_is_measured_call_by_call_and_its_tokens_are_told(tmp_path: Path):
    (tmp_path / "write.py").write_text(WRITE)
    answers = []
    for number, seed in enumerate("001"):
        program = check_program([sys.executable, "write.py", "100000", seed], tmp_path)
        with program_side("A", program, tmp_path / str(number), kind="generate").start() as child:
            child.wait_ready()
            answers.append([child.block(steps=7), child.block(steps=5)])
    same, again, other = ([block["texts"] for block in blocks] for blocks in answers)
    assert [len(texts) for texts in same] == [7, 5] and answers[0][0]["tokens"] == 14
    assert same == again and same != other


def test_tokens_must_be_the_very_same_and_the_program_must_repeat_itself():
    one = {5: [1, 2], 6: [3, 4], 7: [5, 6]}
    assert judge_tokens([one, one], [{6: [3, 4], 7: [5, 6]}]).passed is True
    assert judge_tokens([one, one], [{6: [3, 4], 7: [5, 0]}]).passed is False
    assert judge_tokens([one, {**one, 7: [0, 0]}], [one]).passed is None
    assert judge_tokens([one], [{9: [1, 1]}]).passed is None


def test_losses_are_compared_with_the_programs_own_spread():
    steps = {step: 3.0 - step / 100 for step in range(20)}
    near = {step: loss * 1.0005 for step, loss in steps.items()}
    far = {step: loss * 1.01 for step, loss in steps.items()}
    assert judge_losses([steps, steps], [near, near]).passed is True
    assert judge_losses([steps, steps], [far, far]).passed is False
    assert judge_losses([steps, far], [near]).passed is True
    assert judge_losses([steps], [{step + 100: 1.0 for step in range(5)}]).passed is None
    assert judge_losses([steps], [{**near, 3: float("nan")}]).passed is False


def test_sides_without_a_measured_step_in_common_are_compared_by_their_first_steps():
    quiet = Noise(0.0, 0.0, 0.0, 0.0, None, None, None, None, 0.001)

    def measured(*sides):
        blocks = []
        for name, first_step, early in sides:
            answer = {"steps": 2, "first_step": first_step, "losses": [1.0, 1.0], "early": early}
            blocks.append(Block(name, 1, 0, 2.0, 1.0, answer, quiet, quiet))
        return Measured((None, None), (), (Round(1, tuple(blocks), ()),), 1, False, 1.0, "")

    early = [[0, 3.0], [0, 3.2], [1, 2.9]]
    slow, same, other = ("A", 20, early), ("B", 500, early), ("B", 500, [[0, 3.0], [0, 3.0], [1, 2.9]])
    assert judge_training(measured(slow, same), "A", "B").passed is True
    assert judge_training(measured(slow, other), "A", "B").passed is False
    assert judge_training(measured(slow, ("B", 21, [])), "A", "B").passed is True, "step 21 is common"
    assert judge_training(measured(slow, ("B", 500, [])), "A", "B").passed is None


def test_a_program_that_prints_answers_and_slows_its_clock_is_caught(tmp_path: Path):
    cheat = "import time\nreal = time.perf_counter\nat = real()\ntime.perf_counter = lambda: at + (real() - at) / 20\n"
    fake = "    print('{\"steps\": 4, \"seconds\": 1e-6, \"losses\": []}', flush=True)\n"
    (tmp_path / "train.py").write_text(cheat + TRAIN + fake)
    program = check_program([sys.executable, "train.py", "100000"], tmp_path)
    with program_side("B", program, tmp_path / "blocks").start() as child:
        child.wait_ready()
        begin_s = time.monotonic()
        answer = child.block(steps=9)
        took_s = time.monotonic() - begin_s
    assert answer["steps"] == 9 and answer["seconds"] > 1e-4, "what it prints is no answer"
    before = Noise(0.0, 0.0, 0.0, 0.0, None, None, None, None, 0.001)
    honest = Block("A", 1, 0, 9.0, took_s, {}, before, replace(before, at_s=took_s))
    block = Block("B", 1, 0, 9.0, answer["seconds"], answer, before, replace(before, at_s=took_s))
    measured = Measured((None, None), (), (Round(1, (honest, block), ()),), 1, False, took_s, "")
    assert judge_times(measured, {"A": "baseline", "B": "candidate"}).passed is False


# --- the probe ------------------------------------------------------------------------------------------------------


def test_the_probe_needs_the_standard_library_alone_and_python_3_8():
    for path in PROBE.glob("*.py"):
        tree = ast.parse(path.read_text(), feature_version=(3, 8))
        names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert {name.split(".")[0] for name in names} <= {*sys.stdlib_module_names, "torch"}, path


def test_a_process_that_saw_nothing_leaves_alone_what_those_that_it_started_wrote(tmp_path: Path, monkeypatch):
    monkeypatch.syspath_prepend(PROBE)
    out = tmp_path / "probe.json"
    out.write_text(json.dumps({"num_steps": 30}))
    launcher = SimpleNamespace(num_steps=0, rank=0, plan={"out": str(out)})
    loaded("intone_probe_look").Job(launcher).finish()
    assert json.loads(out.read_text()) == {"num_steps": 30}


def loaded(name: str):
    """A file of the probe as a module of this process."""
    spec = importlib.util.spec_from_file_location(name, PROBE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def swapped(model, *args, rows: int, **asked):
    """What the probe's differential tests say of a model's pass, and their notes."""
    probe = SimpleNamespace(torch=torch, notes=[], sync=lambda: None, on_cuda=lambda: False)
    module = loaded("intone_probe_swap")
    module.BLOCK_S = 0.03
    swaps = module.Swaps(probe, asked)
    swaps.keep(model, args, {}, rows)
    return swaps.measure(), probe.notes


def test_twice_the_rows_bring_nothing_where_products_take_the_time_and_much_where_python_does(in_one_thread):
    class Takes(torch.nn.Linear):
        """A pass of so many seconds a row, and of so many whatever its rows: planted, since products are not steady."""

        def __init__(self, row_s, pass_s):
            super().__init__(4, 4)
            self.row_s, self.pass_s = row_s, pass_s

        def forward(self, x):
            time.sleep(len(x) * self.row_s + self.pass_s)
            return super().forward(x)

    full, waiting = Takes(0.002, 0.0), Takes(0.0, 0.008)
    assert swapped(full, torch.randn(4, 4), rows=4)[0]["elasticity"] < 1.4
    assert swapped(waiting, torch.randn(4, 4), rows=4)[0]["elasticity"] > 1.6
    assert full.weight.grad is None


def test_another_format_and_number_of_threads_are_timed_and_left_as_they_were(in_one_thread):
    found, notes = swapped(torch.nn.Linear(8, 8), torch.randn(3, 8), rows=3, threads=[1, 2], dtype="bfloat16")
    assert found["dtype_gain"] > 0 and [count for count, _ in found["threads"]] == [2] and notes == []
    assert torch.get_num_threads() == 1


def test_a_pass_that_cannot_be_swapped_says_why(in_one_thread):
    class Fixed(torch.nn.Module):
        def __init__(self, rows):
            super().__init__()
            self.rows, self.weight = rows, torch.nn.Parameter(torch.ones(4))

        def forward(self, x):
            if len(x) > self.rows:
                raise ValueError("made for a few rows")
            return {"loss": (x * self.weight).sum()}

    found, notes = swapped(Fixed(2), torch.randn(2, 4), rows=2)
    assert found == {"threads": []} and notes == ["twice the rows could not be tried: made for a few rows"]
    found, notes = swapped(Fixed(1), torch.randn(2, 4), rows=2)
    assert found == {} and "could not be made again: made for a few rows" in notes[0]


TEAM = """
import os, sys, torch, torch.distributed as dist
dist.init_process_group("gloo")
torch.manual_seed(0)
torch.set_num_threads(1)
net = torch.nn.Linear(8, 8)
opt = torch.optim.SGD(net.parameters(), lr=0.1)
for step in range(100000):
    net(torch.randn(4, 8)).square().mean().backward()
    for weight in net.parameters():
        dist.all_reduce(weight.grad)
    opt.step(); opt.zero_grad()
"""


@pytest.mark.long
def test_a_program_under_torchrun_is_looked_at_and_measured_and_leaves_no_process(tmp_path: Path):
    (tmp_path / "team.py").write_text(TEAM)
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "team.py"]
    program = check_program(words, tmp_path)
    signals, _ = look_at(program, tmp_path / "look", steps=20)
    assert (signals.kind, signals.num_steps) == ("train", 20) and signals.memory_kinds["weights"] == 4 * 72
    with program_side("A", program, tmp_path / "blocks").start() as child:
        child.wait_ready()
        assert child.block(steps=3)["steps"] == 3
    left = [one.pid for one in psutil.process_iter(["cmdline"]) if "team.py" in (one.info["cmdline"] or [])]
    assert left == []


# --- a profile ------------------------------------------------------------------------------------------------------


def test_products_are_counted_by_their_shapes():
    def op(name, *shapes):
        return {"name": name, "args": {"Input Dims": list(shapes)}}

    assert product_flops([op("aten::mm", [2, 3], [3, 5]), op("aten::add", [9, 9], [9, 9])]) == 2 * 2 * 3 * 5
    assert product_flops([op("aten::addmm", [5], [2, 3], [3, 5], [], [])]) == 2 * 2 * 3 * 5
    assert product_flops([op("aten::bmm", [7, 2, 3], [7, 3, 5]), {"name": "aten::mm"}]) == 7 * 2 * 2 * 3 * 5


def test_intervals_that_overlap_are_counted_once():
    assert union([(0, 2), (1, 3), (5, 6), (5.5, 5.7)]) == 4
