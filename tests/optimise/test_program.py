"""Somebody else's program is looked at and measured without a change to it."""

import sys
from pathlib import Path

import pytest

from intone.errors import UserError
from intone.optimise.detect.catalogue import detect
from intone.optimise.program import check_program, look_at, program_side, token_times
from intone.optimise.program_gates import judge_losses, judge_tokens
from intone.optimise.trace import union
from intone.prove.live import LiveFailed

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
    signals, raw = look_at(program, tmp_path / "look", steps=25)
    assert (folder / "theirs.txt").read_text() == "ran"
    assert (signals.kind, signals.device_batch, signals.micro_steps, signals.num_shapes) == ("train", 4, 2.0, 1)
    assert signals.pad_share == pytest.approx(4 / 12) and signals.masked_rows == 0
    assert signals.parts["data"] > 0.3 and sum(signals.parts.values()) == pytest.approx(1.0, abs=0.02)
    assert signals.matmul_dtypes == {"fp32": 1.0} and signals.threads == 1
    assert signals.logits_bytes == 4 * 12 * 64 * 4
    found = {entry.detector: entry for entry in detect(signals)}
    assert "D16" in found and found["D6"].place == "train.py:12"
    assert len(raw["losses"]) >= 2 * 25


def test_it_is_measured_in_blocks_of_its_own_steps(folder: Path, tmp_path: Path):
    program = check_program([sys.executable, "train.py", "100000"], folder)
    with program_side("A", program, tmp_path / "blocks").start() as child:
        child.wait_ready()
        first, second = child.block(steps=3), child.block(steps=4)
    assert (first["steps"], second["steps"]) == (3, 4)
    assert second["first_step"] == first["first_step"] + 3
    assert len(first["losses"]) == 6 and first["seconds"] > 3 * 0.012


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


def test_intervals_that_overlap_are_counted_once():
    assert union([(0, 2), (1, 3), (5, 6), (5.5, 5.7)]) == 4
