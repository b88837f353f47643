"""Long drills: `kill` pulls the plug on a run again and again and checks that nothing was lost or changed."""

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from intone.child import PACKAGE_PARENT
from intone.errors import EXIT_CHECK_FAILED
from intone.log import say, table
from intone.model.checkpoint import list_checkpoints
from intone.paths import read_json, read_lines
from intone.peak import process_tree
from intone.records import read_log

COMMAND = "python -m intone.bench.drills"
NAME, TWIN = "drill", "undisturbed"
# when to strike: after a new save (the run gets on), after new steps (work is lost), while it starts
MOMENTS = ("save", "step", "step", "start")
TARGETS = ("supervisor", "worker", "group")
WAIT_S = 240.0  # for the next save or step; a start with planning takes under 60 s
DELAY_S = 4.0  # the longest random wait after it
ORPHAN_S = 5.0  # a worker must be gone this long after its supervisor


@dataclass(frozen=True)
class Strike:
    """One kill: what was hit and where the run stood."""

    number: int
    at_s: float  # since the drill began
    target: str
    moment: str
    stage: str
    step: int


class Drill:
    """One run under attack, in a home of its own."""

    def __init__(self, home: Path, command: Sequence[str], rng: random.Random, *, delay_s: float) -> None:
        """command: the words after intone. delay_s: the longest random wait after the moment that was waited for."""
        self.home = home
        self.folder = home / "runs" / NAME
        self._command = [*command, "--name", NAME]
        self._rng = rng
        self._delay_s = delay_s
        self._began_s = time.monotonic()
        self._process: subprocess.Popen[bytes] | None = None

    def strike(self, number: int) -> Strike | None:
        """Starts the run where it is not at work, waits for a moment, kills; None where the run ended before.

        A run that gave up after several kills without a new save is started again, once, as a person would. Raises
        TimeoutError where a worker outlives its supervisor.
        """
        process = self._running()
        moment = self._rng.choice(MOMENTS)
        if not self._wait_for(moment, process):
            if process.returncode != EXIT_CHECK_FAILED:
                return None
            process = self._running()
            if not self._wait_for(moment, process):
                return None
        at_s = time.monotonic() - self._began_s
        target = self._rng.choice(TARGETS)
        workers = process_tree(process.pid)[1:]
        stage, step = self.place()
        if target == "worker" and workers:
            kill(workers[0])
            time.sleep(0.5)  # the supervisor notices and starts another
        elif target == "group":
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        else:
            target = "supervisor"
            kill(process.pid)
            process.wait()
        if target != "worker":
            wait_until(lambda: not any(map(is_alive, workers)), ORPHAN_S, "a worker outlived its supervisor")
        return Strike(number, round(at_s, 1), target, moment, stage, step)

    def finish(self) -> int:
        """Lets the run end -> its exit code."""
        if self._process is not None and self._process.poll() == 0:
            return 0  # it ended before the last strike
        return self._running().wait()

    def place(self) -> tuple[str, int]:
        """The stage at work and its last logged step."""
        place = ("planning", 0)
        for stage in stages_of(self.folder):
            steps = last_steps(self.folder / stage)
            if steps:
                place = (stage, steps)
        if (self.folder / "eval" / "lock").exists():
            place = ("evaluation", 0)
        return place

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self._process = start(self.home, self._command)
        return self._process

    def _wait_for(self, moment: str, process: subprocess.Popen[bytes]) -> bool:
        """False where the run ended while waiting."""
        before = (newest_saves(self.folder), self.place())
        early_s = self._rng.uniform(0.5, 0.5 + 1.5 * self._delay_s)
        deadline_s = time.monotonic() + (early_s if moment == "start" else WAIT_S)
        while time.monotonic() < deadline_s:
            if process.poll() is not None:
                return False
            now = (newest_saves(self.folder), self.place())
            if (moment == "save" and now[0] != before[0]) or (moment == "step" and now[1] != before[1]):
                time.sleep(self._rng.uniform(0.0, self._delay_s))
                return process.poll() is None
            time.sleep(0.05)
        return process.poll() is None


def start(home: Path, words: Sequence[str]) -> subprocess.Popen[bytes]:
    """`intone WORDS` in its own process group, output to home/drill.log."""
    environment = {**os.environ, "INTONE_HOME": str(home)}
    search = [str(PACKAGE_PARENT), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(part for part in search if part)
    with open(home / "drill.log", "ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "intone", *words],
            env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip


def kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def is_alive(pid: int) -> bool:
    """Whether a process still runs; one that only waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(holds: Callable[[], bool], seconds: float, otherwise: str) -> None:
    """Raises TimeoutError with the given words where it does not hold in time."""
    deadline_s = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline_s:
            raise TimeoutError(otherwise)
        time.sleep(0.05)


def last_steps(folder: Path) -> int:
    """The last step in a stage's log; 0 where there is none. The log may be in the middle of being written."""
    rows = read_lines(folder / "log.jsonl")
    return next((row["step"] for row in reversed(rows) if row.get("kind") == "step"), 0)


def stages_of(run_folder: Path) -> list[str]:
    """The stages of a run in their order; none where the run has not been made yet."""
    path = run_folder / "run.json"
    return list(read_json(path)["stages"]) if path.exists() else []


def newest_saves(run_folder: Path) -> list[str]:
    """The newest complete save of every stage that has one."""
    return [saves[-1].name for stage in stages_of(run_folder) if (saves := list_checkpoints(run_folder / stage))]


def differences(folder: Path, twin: Path) -> list[str]:
    """What is not as it must be: a step logged not exactly once, or a number or weight unlike the twin's."""
    found = []
    for stage in stages_of(folder):
        rows, others = (read_log(place / stage / "log.jsonl", "step") for place in (folder, twin))
        steps = [row["step"] for row in rows]
        wanted = list(range(1, read_json(folder / stage / "config.json")["steps"] + 1))
        if steps != wanted:
            found.append(f"{stage}: {len(steps):,} step rows, not each of {len(wanted):,} once")
        losses = [(row["step"], row["loss"]) for row in rows]
        if losses != [(row["step"], row["loss"]) for row in others]:
            pairs = zip(losses, ((row["step"], row["loss"]) for row in others), strict=False)
            at = next((a[0] for a, b in pairs if a != b), 0)
            found.append(f"{stage}: losses differ from the undisturbed run, first at step {at:,}")
        for name in ("model.safetensors", "optimizer.rank0.safetensors"):
            if weights(folder / stage, name) != weights(twin / stage, name):
                found.append(f"{stage}: {name} differs from the undisturbed run's")
    return found


def weights(folder: Path, name: str) -> str:
    """Checksum of a file of the last save."""
    manifest = read_json(list_checkpoints(folder)[-1] / "manifest.json")
    return str(manifest["files"][name]["sha256"])


def kill_drill(
    home: Path, verb: Sequence[str], settings: Sequence[str], *, rounds: int, seed: int, delay_s: float = DELAY_S
) -> dict[str, Any]:
    """Strikes rounds times, lets the run finish, runs its twin and compares -> a report as JSON holds it.

    verb: run, or train and its stage; settings: the flags behind it, which the twin takes from the run.
    """
    home.mkdir(parents=True, exist_ok=True)
    drill = Drill(home, [*verb, *settings], random.Random(seed), delay_s=delay_s)
    strikes: list[Strike] = []
    problems = []
    began_s = time.monotonic()
    try:
        while len(strikes) < rounds and (struck := drill.strike(len(strikes) + 1)) is not None:
            strikes.append(struck)
            say(f"kill {struck.number} of {rounds}: {struck.target}, {struck.stage} step {struck.step}")
    except TimeoutError as problem:
        problems.append(str(problem))
    code = drill.finish()
    if code:
        problems.append(f"the run ended with exit code {code}, see {home / 'drill.log'}")
    if len(strikes) < rounds:
        problems.append(f"the run ended after {len(strikes)} of {rounds} kills: give it more --minutes")
    seconds = time.monotonic() - began_s
    if code == 0:
        say("finished; now the same plan undisturbed")
        twin_code = start(home, [*verb, "--like", NAME, "--name", TWIN]).wait()
        if twin_code:
            problems.append(f"the undisturbed run ended with exit code {twin_code}")
        else:
            problems += differences(drill.folder, home / "runs" / TWIN)
    return {
        "format": 1, "kills": [vars(entry) for entry in strikes], "seconds": seconds, "problems": problems,
        "passed": not problems,
    }  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a drill; exit 1 where it found a problem."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("drill", choices=["kill"])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--minutes", type=float, default=3.0, help="of the run that is attacked")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--home", type=Path, help="INTONE_HOME of the drill; default: a temporary folder")
    parser.add_argument("--threads", type=int, help="CPU threads of the run; default: auto")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args(argv)
    arguments = ["--minutes", str(asked.minutes), "--compile", "off", "--save-every-s", "10"]
    if asked.threads:
        arguments += ["--threads", str(asked.threads)]
    with tempfile.TemporaryDirectory(prefix="intone-drill-") as temporary:
        home = (asked.home or Path(temporary)).absolute()
        report = kill_drill(home, ["run"], arguments, rounds=asked.rounds, seed=asked.seed)
    rows = [
        [str(k["number"]), f"{k['at_s']:.1f} s", k["target"], k["moment"], k["stage"], str(k["step"])]
        for k in report["kills"]
    ]
    print(table(rows, header=["kill", "at", "target", "waited for", "stage", "step"]))
    for problem in report["problems"]:
        print(problem)
    word = "passed: finished, one row per step, bitwise those of the undisturbed run" if report["passed"] else "FAILED"
    print(f"{len(rows)} kills in {report['seconds']:.0f} s: {word}")
    if asked.json:
        print(json.dumps(report))
    return 0 if report["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
