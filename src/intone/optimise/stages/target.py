"""Our own jobs as a target: a training, a generation or both, the worker that runs them, and what is changed so far"""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from intone import jobs
from intone.child import PACKAGE_PARENT
from intone.config import TrainJob
from intone.errors import UserError
from intone.paths import read_json, write_json
from intone.prove.live import LineChild, WorkerChild
from intone.prove.trial import TIMEOUT_S
from intone.records import Choices, Outcome, read_choices, read_outcome, write_choices

Part = Literal["train", "generate"]
PARTS: tuple[Part, ...] = ("train", "generate")
WORKER = "intone.worker"
SWITCHES = "--switches"  # asks a worker of another name for settings of its own
ASK_S = 60.0
# what a change can touch: fields of the plan's segment, the worker's variables, switches of a worker of another name,
# keys of a generate job, options of its engine
PLACES = ("segment", "environment", "switches", "generate", "engine")
State = Mapping[str, Mapping[str, Any]]  # place -> name -> value; what is not in it is as it was at the start


@dataclass(frozen=True)
class Switch:
    """A setting that a worker of another name has beside ours: what it is now, and the value that mends it."""

    name: str
    part: Part
    detector: str  # whose finding it answers
    now: Any
    mended: Any
    title: str
    hypothesis: str
    risk: str


@dataclass(frozen=True)
class Target:
    """Job folders below one folder, train/ and generate/, which are only read; and what runs copies of them.

    worker: a module whose main(argv) runs a job folder as intone.worker's does. environment: variables of generation
    (a training has its own in choices.json). switch_file: where that worker reads its switches in a job folder.
    """

    folder: Path
    worker: str = WORKER
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    switches: tuple[Switch, ...] = ()
    switch_file: str = ""

    @property
    def parts(self) -> tuple[Part, ...]:
        """Those that there are."""
        return tuple(part for part in PARTS if (self.folder / part / "config.json").exists())

    def job(self) -> TrainJob:
        return TrainJob.from_json(read_json(self.folder / "train" / "config.json"))

    @property
    def writes(self) -> bool:
        """Whether the training writes the answers that it learns from."""
        return "train" in self.parts and self.job().rollouts is not None

    @property
    def block_command(self) -> dict[str, Any]:
        """What goes with every measured block of the training.

        Answers take as long as they are: every block writes those of the first steps, so that all do the same.
        """
        return {"restart": True} if self.writes else {}

    def choices(self, state: State) -> Choices:
        """The plan of the training, as changed."""
        choices = read_choices(self.folder / "train")
        segments = tuple(dataclasses.replace(entry, **state.get("segment", {})) for entry in choices.segments)
        return dataclasses.replace(
            choices, segments=segments, environment={**choices.environment, **state.get("environment", {})}
        )

    def generation(self, state: State) -> dict[str, Any]:
        """config.json of the generation, as changed."""
        config = {**read_json(self.folder / "generate" / "config.json"), **state.get("generate", {})}
        return config | {"engine": {**config.get("engine", {}), **state.get("engine", {})}}

    def variables(self, part: Part, state: State) -> dict[str, str]:
        """Environment variables that a part's worker gets."""
        if part == "train":
            return dict(self.choices(state).environment)
        return {**self.environment, **state.get("environment", {})}

    # --- job folders ----------------------------------------------------------------------------------------------

    def write(self, part: Part, state: State, folder: Path, **changes: Any) -> Path:
        """A part's job as changed, in a folder that is made; changes: fields of the job, keys of the config."""
        folder.mkdir(parents=True, exist_ok=True)
        if part == "train":
            write_choices(folder, self.choices(state))
            write_json(folder / "config.json", dataclasses.replace(self.job(), **changes).as_json())
        else:
            write_json(folder / "config.json", self.generation(state) | changes)
        if self.switch_file:
            values = {entry.name: entry.now for entry in self.switches}
            write_json(folder / self.switch_file, values | dict(state.get("switches", {})))
        return folder

    def run(self, folder: Path, env: Mapping[str, str], *, timeout_s: float = TIMEOUT_S) -> Outcome:
        """Runs a job folder to its end. Raises KeyboardInterrupt where it was stopped."""
        if self.worker == WORKER:
            outcome = jobs.start(folder, env, jobs.Limits(seconds=timeout_s)).wait()
            if outcome.outcome == "stopped":
                raise KeyboardInterrupt
            return outcome
        (folder / "outcome.json").unlink(missing_ok=True)
        with open(folder / "worker.log", "ab") as log:
            words = [sys.executable, "-P", "-m", self.worker, str(folder)]
            try:
                done = subprocess.run(
                    words, env=child_variables(env), stdout=log, stderr=log, timeout=timeout_s, check=False
                )
            except subprocess.TimeoutExpired:
                return Outcome("killed", None, f"{self.worker} did not end within {timeout_s:g} s and was killed")
        return read_outcome(folder) or Outcome("error", None, f"{self.worker} ended with exit code {done.returncode}")

    def child(self, part: Part, state: State, folder: Path, *, name: str, **changes: Any) -> LineChild:
        """A live worker of a part in a folder of its own."""
        self.write(part, state, folder, **changes)
        env = self.variables(part, state)
        if self.worker == WORKER:
            return WorkerChild(folder, env, name=name)
        words = [sys.executable, "-P", "-m", self.worker, str(folder), jobs.LIVE]
        return LineChild(words, {"PYTHONPATH": str(PACKAGE_PARENT), **env}, name=name)

    # --- on disk --------------------------------------------------------------------------------------------------

    def as_json(self) -> dict[str, Any]:
        return {
            "worker": self.worker, "environment": dict(self.environment), "switch_file": self.switch_file,
            "switches": [dataclasses.asdict(entry) for entry in self.switches],
        }  # fmt: skip

    @staticmethod
    def from_json(folder: Path, value: Mapping[str, Any]) -> "Target":
        switches = tuple(Switch(**entry) for entry in value["switches"])
        return Target(folder, value["worker"], value["environment"], switches, value["switch_file"])


def with_worker(target: Target, worker: str) -> Target:
    """The target run by a module of another name, with the switches that it says it has. Raises UserError."""
    if worker == WORKER:
        return target
    words = [sys.executable, "-P", "-m", worker, SWITCHES]
    done = subprocess.run(
        words, env=child_variables({}), capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=ASK_S,
        check=False,
    )  # fmt: skip
    answer: dict[str, Any] = {}
    with contextlib.suppress(ValueError, IndexError):
        answer = json.loads(done.stdout.splitlines()[-1])
    if done.returncode or not isinstance(answer, dict) or "switches" not in answer:
        last = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]
        raise UserError(
            f"{worker} does not say which switches it has: {last}", value=worker,
            fix=f"name a module whose main(argv) runs job folders and answers {SWITCHES} with a line of JSON",
        )  # fmt: skip
    switches = tuple(Switch(**entry) for entry in answer["switches"])
    return dataclasses.replace(target, worker=worker, switches=switches, switch_file=answer["file"])


def child_variables(env: Mapping[str, str]) -> dict[str, str]:
    """The variables of a child process that finds this package and dies with us."""
    search = [str(PACKAGE_PARENT), os.environ.get("PYTHONPATH", "")]
    path = os.pathsep.join(part for part in search if part)
    return {**os.environ, **env, "PYTHONPATH": path, "INTONE_PARENT": str(os.getpid())}


def merged(*states: State) -> dict[str, dict[str, Any]]:
    """States laid over one another, the last one on top."""
    found: dict[str, dict[str, Any]] = {}
    for state in states:
        for place, values in state.items():
            assert place in PLACES, f"a change touches {place!r}, which is none of {PLACES}"
            found.setdefault(place, {}).update(values)
    return found


def words_of(change: State) -> str:
    """A change in words: device_batch 8, compiled True."""
    return ", ".join(f"{name} {value}" for values in change.values() for name, value in values.items())
