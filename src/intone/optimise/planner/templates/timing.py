"""A profiling hook for our training: seconds of a step's forward, backward and optimizer parts, off by default."""

import re
from pathlib import Path

from intone.errors import UserError
from intone.optimise.planner.document import Decision, FeaturePlan
from intone.optimise.planner.templates.template import Template, Written, create, place_of, replace_once

STEP, LOOP = "src/intone/train/step.py", "src/intone/train/loop.py"
CONFIG, SETTINGS, PLANNING = "src/intone/config.py", "src/intone/settings.py", "src/intone/planning.py"
PARTS, TESTS_OF_PARTS = "src/intone/train/parts.py", "tests/train/test_parts.py"
TESTS = (TESTS_OF_PARTS, "tests/train/test_step.py")
ASKED = re.compile(r"profil|\btim(e|er|ers|ing|ings)\b|hook", re.I)
ABOUT = re.compile(r"train|step|forward|backward|optimi[sz]er|part|hook", re.I)


def match(text: str, root: Path) -> Template | None:
    """The template for a text that asks for a profile of training. Raises UserError where there is one already."""
    if not (ASKED.search(text) and ABOUT.search(text) and (root / STEP).is_file()):
        return None
    if (root / PARTS).exists():
        raise UserError(f"the parts of a step are timed already: {PARTS}", value=text,
                        fix="switch it on with --time-parts-every N")  # fmt: skip
    return Template(plan_of(text, root), write)


def plan_of(text: str, root: Path) -> FeaturePlan:
    return FeaturePlan(
        text=text, root=str(root), kind="profiling hook",
        read=(
            place_of(root, STEP, "part, _ = self._model("), place_of(root, STEP, ".backward()"),
            place_of(root, STEP, "self._optimizer.step("), place_of(root, LOOP, "runner = TrainStep("),
            place_of(root, LOOP, "self.line.show(row)"), place_of(root, "src/intone/records.py", "class EventRow"),
            place_of(root, PLANNING, "deterministic=settings.deterministic"),
        ),
        decided=(
            Decision("Which parts?", "forward, backward, optimizer", "They are the three calls of a step; the rest of "
                     "a step's time (data, checks, logs) is its whole time in the step row minus these"),
            Decision("Where is it written?", "an event row 'parts' of log.jsonl", "Reports and people read that file"),
            Decision("How is it switched on?", "--time-parts-every N; none, the default, times nothing",
                     "A part's end is known only after waiting for the device, which costs time itself"),
            Decision("Which steps?", "every N-th that a process makes", "A worker that goes on counts from its start"),
            Decision("torch.profiler?", "no", "Its trace is for single steps by hand; this one may stay on for a run"),
        ),
        tasks=("add the setting and hand it to the job", "time the three parts of a step", "write the event row",
               "test that losses are the same with it and that nothing is timed without it"),
        files=(SETTINGS, CONFIG, PLANNING, STEP, LOOP, PARTS, TESTS_OF_PARTS),
        interfaces=("intone train ... --time-parts-every 100", "TrainJob.time_parts_every: int | None",
                    'a row of log.jsonl: {"kind": "event", "event": "parts", "message": "forward 12.0 ms, ..."}'),
        risks=("a timed step waits for the device three times per micro-batch: it is slower than others and not for a "
               "speed comparison", "config.json gets a key that older versions refuse by name"),
        tests=TESTS, gates=("G1 the same losses bit by bit on a CPU", "G2 the tests", "G4a no slower while it is off"),
        effect="no speed; where a step's time goes is known while it trains. What it costs is not measured yet",
    )  # fmt: skip


def write(root: Path) -> Written:
    """Makes the change in a copy of our code base. Raises UserError where the code is not as known."""
    replace_once(
        root, SETTINGS, "    # bitwise repeatable on a GPU too, slower\n    deterministic: bool = False\n",
        "    # bitwise repeatable on a GPU too, slower\n    deterministic: bool = False\n"
        "    # time the parts of every so many steps, which waits for the device; none: never\n"
        "    time_parts_every: int | None = setting(None, least=1)\n",
    )  # fmt: skip
    replace_once(
        root, CONFIG, "    deterministic: bool = False  # on CUDA; a CPU always is\n",
        "    deterministic: bool = False  # on CUDA; a CPU always is\n"
        "    time_parts_every: int | None = None  # steps; None: the parts of a step are not timed\n",
    )  # fmt: skip
    replace_once(
        root, PLANNING, "seed=settings.seed, deterministic=settings.deterministic,",
        "seed=settings.seed, deterministic=settings.deterministic,\n"
        "        time_parts_every=settings.time_parts_every,",
    )  # fmt: skip
    replace_once(root, STEP, "from dataclasses import dataclass\n",
                 "import contextlib\nfrom contextlib import AbstractContextManager\n"
                 "from dataclasses import dataclass\n")  # fmt: skip
    replace_once(root, STEP, "from intone.team import ALONE, Team\n",
                 "from intone.team import ALONE, Team\nfrom intone.train.parts import PartTimes\n")  # fmt: skip
    replace_once(root, STEP, "        self.good_steps = 0  # since the loss scale last changed\n",
                 "        self.good_steps = 0  # since the loss scale last changed\n"
                 "        self.parts: PartTimes | None = None  # where the parts of steps are timed\n")  # fmt: skip
    replace_once(
        root, STEP, '        """One step over the rows of batch, which is a team\'s share of the step.'
        ' Does not wait for the device."""\n',
        '        """One step over the rows of batch, which is a team\'s share of the step.\n\n'
        '        Does not wait for the device, but for a step whose parts are timed.\n        """\n'
        "        if self.parts is not None:\n            self.parts.begin()\n",
    )  # fmt: skip
    replace_once(
        root, STEP,
        "            with fused_kernels(self._device):\n"
        "                part, _ = self._model(ids, targets, documents, *more)\n"
        "            (part * factor).backward()\n",
        '            with self._part("forward"), fused_kernels(self._device):\n'
        '                part, _ = self._model(ids, targets, documents, *more)\n'
        '            with self._part("backward"):\n                (part * factor).backward()\n',
    )  # fmt: skip
    replace_once(
        root, STEP, "        self._optimizer.step(scale, finite)\n",
        '        with self._part("optimizer"):\n            self._optimizer.step(scale, finite)\n',
    )  # fmt: skip
    replace_once(
        root, STEP, "    def note_finite(self, applied: bool) -> None:\n",
        "    def _part(self, name: str) -> AbstractContextManager[None]:\n"
        "        return contextlib.nullcontext() if self.parts is None else self.parts.part(name)\n\n"
        "    def note_finite(self, applied: bool) -> None:\n",
    )  # fmt: skip
    replace_once(root, LOOP, "from intone.train.plan import check_kernels",
                 "from intone.train.parts import PartTimes\nfrom intone.train.plan import check_kernels")  # fmt: skip
    replace_once(
        root, LOOP, "        if segment.dtype == \"fp16\" and self.progress.loss_scale > 1.0:\n",
        "        if self.job.time_parts_every is not None:\n"
        "            runner.parts = PartTimes(self.device, self.job.time_parts_every)\n"
        "        if segment.dtype == \"fp16\" and self.progress.loss_scale > 1.0:\n",
    )  # fmt: skip
    replace_once(
        root, LOOP, "            self.line.show(row)\n        if self.on_step",
        "            self.line.show(row)\n"
        "        found = runner.parts.finished() if runner.parts is not None else None\n"
        "        if found is not None and self.team.is_main:\n"
        '            self._note("parts", found.text, seconds=found.total_s)\n'
        "        if self.on_step",
    )  # fmt: skip
    create(root, PARTS, MODULE)
    create(root, TESTS_OF_PARTS, TEST_MODULE)
    return Written("Time the parts of a training step on request",
                   "Which part of a step to work on was known only from a profiler by hand.", TESTS)  # fmt: skip


MODULE = '''"""Seconds of the parts of a training step, where asked for: each timed part waits for the device."""

import contextlib
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class StepParts:
    """Seconds by part of one step, all its micro-batches together."""

    seconds: dict[str, float]

    @property
    def total_s(self) -> float:
        """All parts together."""
        return sum(self.seconds.values())

    @property
    def text(self) -> str:
        """For people: forward 12.0 ms, backward 25.1 ms."""
        return ", ".join(f"{name} {1000 * spent_s:.1f} ms" for name, spent_s in self.seconds.items())


class PartTimes:
    """Times every so many steps. Per step: begin(), any number of part(), and once it is finished finished()."""

    def __init__(self, device: torch.device, every: int) -> None:
        """every: steps from one timed step to the next, the first included."""
        self._device = device
        self._every = every
        self._num_begun = 0
        self._steps: deque[dict[str, float] | None] = deque()  # begun and not finished; None: not timed

    def begin(self) -> None:
        """A step begins."""
        self._steps.append({} if self._num_begun % self._every == 0 else None)
        self._num_begun += 1

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Adds what happens inside to a part of the step that began last; waits for the device at both ends."""
        seconds = self._steps[-1]
        if seconds is None:
            yield
            return
        self._sync()
        begin_s = time.perf_counter()
        yield
        self._sync()
        seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - begin_s

    def finished(self) -> StepParts | None:
        """The parts of the oldest step that was begun, which is over now; None where it was not timed."""
        seconds = self._steps.popleft()
        return StepParts(seconds) if seconds else None

    def _sync(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        elif self._device.type == "mps":
            torch.mps.synchronize()
'''

TEST_MODULE = '''"""The parts of a step are timed where asked for, and training is the same."""

import pytest
import torch
from tests.tiny_jobs import losses, write_job

from intone.records import read_log
from intone.train.loop import Trainer
from intone.train.parts import PartTimes


def events(folder):
    return [row for row in read_log(folder / "log.jsonl", "event") if row["event"] == "parts"]


@pytest.fixture(scope="module")
def folders(tiny_job, tmp_path_factory):
    """The same job without timing, and with every fourth of its nine steps timed."""
    place = tmp_path_factory.mktemp("parts")
    made = []
    for every in (None, 4):
        folder = place / str(every)
        folder.mkdir()
        write_job(folder, tiny_job, time_parts_every=every, keep=0)
        assert Trainer(folder, lambda: False).run().outcome == "done"
        made.append(folder)
    yield made
    torch.use_deterministic_algorithms(False)


def test_nothing_is_timed_by_default(folders):
    assert events(folders[0]) == []


def test_every_fourth_step_says_where_its_time_went(folders):
    rows = events(folders[1])
    assert [row["step"] for row in rows] == [1, 5, 9]
    steps = {row["step"]: row["step_s"] for row in read_log(folders[1] / "log.jsonl", "step")}
    for row in rows:
        assert [part.split()[0] for part in row["message"].split(", ")] == ["forward", "backward", "optimizer"]
        assert 0 < row["seconds"] <= steps[row["step"]]


def test_losses_are_the_same_bit_by_bit(folders):
    assert losses(folders[0]) == losses(folders[1])


def test_steps_that_finish_later_keep_their_own_parts():
    times = PartTimes(torch.device("cpu"), every=2)
    for number in range(3):
        times.begin()
        with times.part(f"part {number}"):
            pass
    found = [times.finished() for _ in range(3)]
    assert [list(one.seconds) if one else None for one in found] == [["part 0"], None, ["part 2"]]
'''
