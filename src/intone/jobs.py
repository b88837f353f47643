"""The only code that starts workers: a job folder becomes a child process, and however it ends becomes an outcome."""

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from intone.child import PACKAGE_PARENT
from intone.errors import UserError
from intone.paths import FolderLock, disk_errors, read_lines
from intone.pulse import Watch
from intone.records import Outcome, read_choices, read_outcome, write_outcome

# a worker's exit status says what its outcome.json could not where the disk is full; every other outcome: 1
EXIT_CODES = {"done": 0, "bad_input": 2, "disk_full": errno.ENOSPC, "stopped": 130}
LIVE = "--live"  # the worker's flag for blocks on command
GRACE_S = 20.0  # from a polite signal to SIGKILL; guess: several times a save of the largest model a CPU trains
TRIAL_PREFIX = "trial-"
LOOK_EVERY_S = 0.5  # for signs of life
DEFAULT_STALL_S = 1800.0  # guess: several times the longest cold compile, or save, or evaluation between two signs
STALE_TRIAL_S = 3600.0  # guess: no trial takes so long; its folder belongs to a process that was killed


@dataclass(frozen=True)
class Limits:
    """What a job may use. data_bytes: RLIMIT_DATA of the worker; seconds: it is killed after them.

    stall_s: it is killed after so many seconds without a sign of life (pulse.py).
    """

    data_bytes: int | None = None
    seconds: float | None = None
    stall_s: float | None = None


class Job:
    """A running worker. wait() must be called; it returns exactly one outcome, also on disk."""

    def __init__(self, folder: Path, process: subprocess.Popen[bytes], limits: Limits, pipe: int | None) -> None:
        self.folder = folder
        self.process = process
        self._limits = limits
        self._pipe = pipe
        self._oom_kills = kernel_oom_kills()
        self.interrupted = False  # a KeyboardInterrupt came while it was waited for

    def wait(self, wants_end: Callable[[], bool] | None = None) -> Outcome:
        """Blocks until the worker ended -> its outcome, written by the worker or derived from its exit status.

        A KeyboardInterrupt is handed to the worker, which saves and ends; the outcome is then `stopped`. It is raised
        again where the worker ended in another way meanwhile. Where another worker holds the folder, ours did nothing:
        that is the outcome returned, and none is written.

        wants_end is asked every LOOK_EVERY_S; after its first yes the worker is asked to save and end.
        """
        why_killed = None
        try:
            why_killed = self._wait(wants_end)
            if why_killed is not None:
                self._end(signal.SIGKILL)
        except KeyboardInterrupt:
            self.interrupted = True
            self._end(signal.SIGTERM)
        if self._pipe is not None:
            os.close(self._pipe)
        held = lock_problem(self.folder) if self.process.returncode == EXIT_CODES["bad_input"] else None
        if held is not None:
            return Outcome("bad_input", None, held.message, held.fix)
        outcome = read_outcome(self.folder)
        if outcome is None:
            outcome = self._derived(why_killed)
            if self.interrupted:
                outcome = Outcome("stopped", outcome.step, "stopped; the same command goes on from the last save")
            with contextlib.suppress(UserError):  # a full disk must not hide how the worker ended
                write_outcome(self.folder, outcome)
        if self.interrupted and outcome.outcome != "stopped":
            raise KeyboardInterrupt
        return outcome

    def stop(self) -> None:
        """Asks the worker to save and end; wait() still has to be called."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)
        try:
            self.process.wait(GRACE_S)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            self.process.kill()
            self.process.wait()

    def _wait(self, wants_end: Callable[[], bool] | None) -> str | None:
        """Waits for the end of the worker -> None, or why it has to be killed."""
        limits, watch, begin_s = self._limits, Watch(self.folder), time.monotonic()
        if limits.stall_s is None and wants_end is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(limits.seconds)
                return None
            return f"the worker did not end within {limits.seconds:g} s and was killed"
        while True:
            left_s = float("inf") if limits.seconds is None else begin_s + limits.seconds - time.monotonic()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(max(0.0, min(LOOK_EVERY_S, left_s)))
                return None
            if left_s <= LOOK_EVERY_S:
                return f"the worker did not end within {limits.seconds:g} s and was killed"
            if limits.stall_s is not None and watch.silent_s() > limits.stall_s:
                return f"the worker gave no sign of life for {limits.stall_s:g} s and was killed"
            if wants_end is not None and wants_end():
                self.stop()
                wants_end = None

    def _derived(self, why_killed: str | None) -> Outcome:
        step = last_step(self.folder)
        code = self.process.returncode
        if why_killed is not None:
            return Outcome("killed", step, why_killed)
        if code < 0:
            return ended_by_signal(-code, step, "the worker", oom_kills_before=self._oom_kills)
        if code == EXIT_CODES["disk_full"]:
            fix = "free some space, or set INTONE_HOME to a larger disk; the same command goes on from the last save"
            return Outcome("disk_full", step, f"no space left on the disk of {self.folder}", fix)
        return Outcome("error", step, f"the worker ended with exit code {code} and wrote no outcome")


def ended_by_signal(number: int, step: int | None, who: str, *, oom_kills_before: int) -> Outcome:
    """The outcome of a job whose process was ended by a signal; oom_kills_before: kernel_oom_kills() at its start."""
    if kernel_oom_kills() > oom_kills_before:
        return Outcome(
            "out_of_memory", step, f"the kernel killed {who} because the machine's memory ran out",
            "close other programs, or use a smaller --device-batch, --context or --depth",
        )  # fmt: skip
    return Outcome("killed", step, f"{who} was ended by {signal.Signals(number).name}")


def may_want_memory(outcome: Outcome) -> bool:
    """Whether a job was ended as by a kernel that does not say why, or by a library that aborts where memory runs out.

    safetensors does so when it writes a save [measured: "memory allocation of 1048576 bytes failed", then SIGABRT].
    """
    names = tuple(f" {number.name}" for number in (signal.SIGKILL, signal.SIGABRT))
    return outcome.outcome == "killed" and outcome.message.endswith(names)


def devices_of(folder: Path) -> int:
    """How many processes train the job of a folder together, as its plan says; 1 where it has no plan."""
    return int(planned(folder, "devices", 1))


def planned(folder: Path, name: str, default: Any) -> Any:
    """What a folder's plan says of a setting; the default where it says nothing, or cannot be read."""
    with contextlib.suppress(UserError):
        settings = read_choices(folder).settings
        if name in settings:
            return settings[name].value
    return default


def start(folder: Path, env: Mapping[str, str] | None = None, limits: Limits | None = None) -> Job:
    """Starts the worker of a job folder with env added to this process's variables; its output goes to our stderr.

    Where the plan says several devices, torchrun starts as many workers (launch.py) and Job stands for all of them.
    An outcome.json of an earlier try is removed: a job has one outcome, that of its last try.
    """
    return _start(folder, env, limits or Limits(), live=False)


def start_live(folder: Path, env: Mapping[str, str] | None = None, limits: Limits | None = None) -> Job:
    """Starts a worker that does the job in blocks on command: Job.process has pipes at stdin and stdout.

    prove/live.py speaks with it. Its stderr goes to FOLDER/live.log. limits.seconds counts from wait() on.
    """
    return _start(folder, env, limits or Limits(), live=True)


def _start(folder: Path, env: Mapping[str, str] | None, limits: Limits, *, live: bool) -> Job:
    with disk_errors(folder):
        (folder / "outcome.json").unlink(missing_ok=True)
    variables = {**os.environ, **(env or {}), "INTONE_PARENT": str(os.getpid())}
    search = [str(PACKAGE_PARENT), variables.get("PYTHONPATH", "")]
    variables["PYTHONPATH"] = os.pathsep.join(part for part in search if part)
    if limits.data_bytes is not None:
        variables["INTONE_LIMIT_DATA"] = str(limits.data_bytes)
    ours: int | None = None
    theirs: tuple[int, ...] = ()
    if sys.platform != "linux":
        read_end, ours = os.pipe()
        variables["INTONE_PARENT_PIPE"] = str(read_end)
        theirs = (read_end,)
    devices = 1 if live else devices_of(folder)
    module = ["intone.worker", str(folder)] if devices == 1 else ["intone.launch", str(folder), str(devices)]
    command = [sys.executable, "-P", "-m", *module]  # -P: no module from where the person stands
    if live:
        with disk_errors(folder), open(folder / "live.log", "ab") as log:
            process = subprocess.Popen(
                [*command, LIVE], env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
                pass_fds=theirs,
            )  # fmt: skip
    else:
        process = subprocess.Popen(
            command,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr.fileno() if has_stderr() else subprocess.DEVNULL,
            stderr=None if has_stderr() else subprocess.DEVNULL,
            pass_fds=theirs,
            # torchrun hands signals on: a Ctrl-C in the terminal must not reach its workers by two ways
            start_new_session=devices > 1,
        )
    for descriptor in theirs:
        os.close(descriptor)
    return Job(folder, process, limits, ours)


def has_stderr() -> bool:
    """False where stderr is no real file (captured in a test or closed)."""
    try:
        sys.stderr.fileno()
    except (AttributeError, OSError, ValueError):
        return False
    return True


@contextlib.contextmanager
def trial_folder(parent: Path) -> Iterator[Path]:
    """A throw-away job folder below parent, deleted at the end; and those that killed processes left an hour ago."""
    parent.mkdir(parents=True, exist_ok=True)
    for path in parent.glob(f"{TRIAL_PREFIX}*"):
        if is_stale(path):
            shutil.rmtree(path, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=TRIAL_PREFIX, dir=parent) as name:
        yield Path(name)


def is_stale(trial: Path) -> bool:
    """Whether nothing in a trial's folder changed for an hour and no worker holds it."""
    try:
        newest_s = max(path.stat().st_mtime for path in (trial, *trial.iterdir()))
    except OSError:
        return False  # it is going away
    return time.time() - newest_s > STALE_TRIAL_S and lock_problem(trial) is None


def lock_problem(folder: Path) -> UserError | None:
    """Why a worker cannot have this folder: another one holds it, or its lock cannot be made; None: it can."""
    try:
        FolderLock(folder / "lock", what="this job folder").close()
    except UserError as error:
        return error
    return None


def last_step(folder: Path) -> int | None:
    """The last optimizer step in the job's log, None where there is none."""
    with contextlib.suppress(UserError):
        steps = [row["step"] for row in read_lines(folder / "log.jsonl") if row.get("kind") == "step"]
        return steps[-1] if steps else None
    return None


def kernel_oom_kills() -> int:
    """How many processes the kernel has killed for want of memory since boot; 0 where it does not tell."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0
