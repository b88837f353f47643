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
from intone.log import say, table
from intone.model.checkpoint import list_checkpoints
from intone.paths import read_json, read_lines
from intone.peak import process_tree
from intone.records import read_log

COMMAND = "python -m intone.bench.drills"
NAME, TWIN = "drill", "undisturbed"
STAGES = ("base", "mid", "sft")
# when to strike: after a new save (the run gets on), after new steps (work is lost), while it starts
MOMENTS = ("save", "step", "step", "start")
TARGETS = ("supervisor", "worker", "group")
WAIT_S = 240.0  # for the next save or step; a start with planning takes under 60 s
ORPHAN_S = 5.0  # a worker must be gone this long after its supervisor


@dataclass(frozen=True)
class Strike:
    """One kill: what was hit and where the run stood."""

    number: int
    target: str
    moment: str
    stage: str
    step: int


class Drill:
    """One run under attack, in a home of its own."""

    def __init__(self, home: Path, arguments: Sequence[str], rng: random.Random) -> None:
        self.home = home
        self.folder = home / "runs" / NAME
        self._arguments = ["run", "--name", NAME, *arguments]
        self._rng = rng
        self._process: subprocess.Popen[bytes] | None = None

    def strike(self, number: int) -> Strike | None:
        """Starts the run where it is not at work, waits for a moment, kills; None where the run ended before."""
        process = self._running()
        moment = self._rng.choice(MOMENTS)
        if not self._wait_for(moment, process):
            return None
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
        return Strike(number, target, moment, stage, step)

    def finish(self) -> int:
        """Lets the run end -> its exit code."""
        if self._process is not None and self._process.poll() == 0:
            return 0  # it ended before the last strike
        return self._running().wait()

    def place(self) -> tuple[str, int]:
        """The stage at work and its last logged step."""
        place = ("planning", 0)
        for stage in STAGES:
            steps = last_steps(self.folder / stage)
            if steps:
                place = (stage, steps)
        return place

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self._process = start(self.home, self._arguments)
        return self._process

    def _wait_for(self, moment: str, process: subprocess.Popen[bytes]) -> bool:
        """False where the run ended while waiting."""
        before = (num_saves(self.folder), self.place())
        deadline_s = time.monotonic() + (self._rng.uniform(0.5, 6.0) if moment == "start" else WAIT_S)
        while time.monotonic() < deadline_s:
            if process.poll() is not None:
                return False
            now = (num_saves(self.folder), self.place())
            if (moment == "save" and now[0] != before[0]) or (moment == "step" and now[1] != before[1]):
                time.sleep(self._rng.uniform(0.0, 4.0))
                return process.poll() is None
            time.sleep(0.05)
        return process.poll() is None


def start(home: Path, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
    """`intone ARGUMENTS` in its own process group, output to home/drill.log."""
    environment = {**os.environ, "INTONE_HOME": str(home)}
    search = [str(PACKAGE_PARENT), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(part for part in search if part)
    with open(home / "drill.log", "ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "intone", *arguments],
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


def num_saves(run_folder: Path) -> tuple[str, ...]:
    """The newest complete save of every stage."""
    return tuple(saves[-1].name if (saves := list_checkpoints(run_folder / stage)) else "" for stage in STAGES)


def differences(folder: Path, twin: Path) -> list[str]:
    """What is not as it must be: a step logged not exactly once, or a number or weight unlike the twin's."""
    found = []
    for stage in STAGES:
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


def kill_drill(home: Path, arguments: Sequence[str], *, rounds: int, seed: int) -> dict[str, Any]:
    """Strikes rounds times, lets the run finish, runs its twin and compares -> a report as JSON holds it."""
    home.mkdir(parents=True, exist_ok=True)
    drill = Drill(home, arguments, random.Random(seed))
    strikes: list[Strike] = []
    began_s = time.monotonic()
    while len(strikes) < rounds:
        struck = drill.strike(len(strikes) + 1)
        if struck is None:
            break
        strikes.append(struck)
        say(f"kill {struck.number} of {rounds}: {struck.target}, {struck.stage} step {struck.step}")
    code = drill.finish()
    problems = [] if code == 0 else [f"the run ended with exit code {code}, see {home / 'drill.log'}"]
    if len(strikes) < rounds:
        problems.append(f"the run ended after {len(strikes)} of {rounds} kills: give it more --minutes")
    seconds = time.monotonic() - began_s
    if code == 0:
        say("finished; now the same plan undisturbed")
        twin_code = start(home, ["run", "--like", NAME, "--name", TWIN]).wait()
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
        report = kill_drill(home, arguments, rounds=asked.rounds, seed=asked.seed)
    rows = [[str(k["number"]), k["target"], k["moment"], k["stage"], str(k["step"])] for k in report["kills"]]
    print(table(rows, header=["kill", "target", "waited for", "stage", "step"]))
    for problem in report["problems"]:
        print(problem)
    word = "passed: finished, one row per step, bitwise those of the undisturbed run" if report["passed"] else "FAILED"
    print(f"{len(rows)} kills in {report['seconds']:.0f} s: {word}")
    if asked.json:
        print(json.dumps(report))
    return 0 if report["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
