"""One process of one job folder: `python -m intone.worker FOLDER` does what config.json says, writes outcome.json.

Several of them train one job together where torchrun starts them; the first one then writes the outcome, after looking
for that of another one which caused it. With --live behind the folder it does the job in blocks, on command, and says
how long each took (blocks.py).
"""

import atexit
import contextlib
import errno
import gc
import os
import re
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from intone.blocks import Exchange
from intone.child import die_with_parent, loading
from intone.dist import World, read_world
from intone.errors import DiskFull, RankLost, UserError
from intone.jobs import EXIT_CODES, LIVE, last_step
from intone.log import human_bytes, say
from intone.paths import FolderLock, read_json, write_atomic
from intone.records import Outcome, read_outcome, write_outcome

# what PyTorch's CPU allocator, the system, CUDA and Python (which cannot map a thread's stack) say
OUT_OF_MEMORY_WORDS = ("can't allocate memory", "cannot allocate memory", "out of memory", "can't start new thread")

JOBS = "train, evaluate or generate"
ECHO_S = 3.0  # a second Ctrl-C of a person comes later than the one that torchrun hands on


class StopFlag:
    """Set by SIGTERM and the first SIGINT: the loop ends after the step it is in. A second SIGINT ends at once.

    at_once: the first signal does, in a job that has nothing to save.
    """

    def __init__(self, *, under_torchrun: bool = False) -> None:
        """under_torchrun: one Ctrl-C arrives twice, from the terminal and handed on by torchrun."""
        self.is_set = self.at_once = False
        self._under_torchrun = under_torchrun
        self._set_s = 0.0

    def listen(self) -> "StopFlag":
        """From here on signals are noticed; in the main thread only, elsewhere nothing happens."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._on_signal)
            signal.signal(signal.SIGINT, self._on_signal)
        return self

    def __call__(self) -> bool:
        return self.is_set

    def _on_signal(self, number: int, _frame: object) -> None:
        is_echo = self._under_torchrun and time.monotonic() - self._set_s < ECHO_S
        if self.at_once or (self.is_set and number == signal.SIGINT and not is_echo):
            raise KeyboardInterrupt
        if not self.is_set:
            self.is_set, self._set_s = True, time.monotonic()
            # who sends SIGTERM holds no Ctrl-C, but torchrun hands on one as the other
            again = "; Ctrl-C again stops at once, from the last save"
            say(f"stopping after this step{again if number == signal.SIGINT or self._under_torchrun else ''}")


def main(argv: list[str]) -> int:
    """Runs the job in the one folder of argv; returns the exit code."""
    if len(argv) not in (1, 2) or argv[1:] not in ([], [LIVE]):
        say(f"usage: python -m intone.worker FOLDER [{LIVE}]")
        return 2
    folder = Path(argv[0]).absolute()
    die_with_parent()
    limit_memory()
    try:
        world = read_world()
    except UserError as error:
        say(str(error))
        return EXIT_CODES["bad_input"]
    stop = StopFlag(under_torchrun=world.size > 1)
    if world.size == 1:
        stop.listen()
    else:  # until it has met the others a process ends at once: waiting for them, it could not look at a flag
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    if world.is_main:
        return run_main(folder, stop, world, Exchange.on_standard_streams() if LIVE in argv else None)
    return run_beside(folder, stop, world)


def run_main(folder: Path, stop: StopFlag, world: World, exchange: Exchange | None) -> int:
    """The one process of a job, or the first: holds the folder's lock and writes the outcome -> exit code."""
    try:
        lock = FolderLock(folder / "lock", what="this job folder")
    except UserError as error:
        say(str(error))
        outcome = Outcome("disk_full" if isinstance(error, DiskFull) else "bad_input", None, error.message, error.fix)
        if exchange is not None:
            exchange.fail(outcome)
        return EXIT_CODES[outcome.outcome]
    with lock:
        outcome = run_guarded(folder, stop, exchange, world)
        if exchange is not None and outcome.outcome != "done":
            exchange.fail(outcome)
        with contextlib.suppress(UserError):  # no room, or read-only: the parent then derives it from the exit status
            write_outcome(folder, outcome)
    # who started us says what comes of memory that ran out: the run may go on
    is_told = outcome.outcome == "out_of_memory" and "INTONE_PARENT" in os.environ
    if outcome.outcome not in ("done", "stopped") and not is_told:
        say(f"{outcome.outcome}: {outcome.message}")
    return EXIT_CODES.get(outcome.outcome, 1)


def run_beside(folder: Path, stop: StopFlag, world: World) -> int:
    """A further process of a job: what went wrong here is left for the first one to read -> exit code."""
    place = rank_folder(folder, world.rank)
    (place / "outcome.json").unlink(missing_ok=True)
    outcome = run_guarded(folder, stop, None, world)
    if outcome.outcome not in ("done", "stopped", "killed"):
        say(f"process {world.rank}: {outcome.outcome}: {outcome.message}")
        with contextlib.suppress(UserError):  # the first process then only knows that this one ended
            write_outcome(place, outcome)
    return EXIT_CODES.get(outcome.outcome, 1)


def rank_folder(folder: Path, rank: int) -> Path:
    """Where a further process of a job leaves its outcome."""
    return folder / "ranks" / str(rank)


def cause_elsewhere(folder: Path, world: World) -> Outcome | None:
    """The outcome that another process left, None where none did: it was killed, or only lost another one itself."""
    for rank in range(1, world.size):
        with contextlib.suppress(UserError):
            found = read_outcome(rank_folder(folder, rank))
            if found is not None:
                return replace(found, message=f"process {rank}: {found.message}")
    return None


def run_guarded(folder: Path, stop: StopFlag, exchange: Exchange | None = None, world: World | None = None) -> Outcome:
    """The job, with every way to fail turned into its one outcome."""
    world = world or World()
    try:
        return run_job(folder, stop, world) if exchange is None else run_live(folder, stop, exchange)
    except DiskFull as error:
        return Outcome("disk_full", last_step(folder), error.message, error.fix)
    except UserError as error:
        return Outcome("bad_input", last_step(folder), error.message, error.fix)
    except KeyboardInterrupt:
        return Outcome("stopped", last_step(folder), "stopped at once; the same command goes on from the last save")
    except Exception as error:  # whatever it is, it must end in one outcome that a person can read
        return unexpected_outcome(folder, error, world)


def unexpected_outcome(folder: Path, error: Exception, world: World) -> Outcome:
    """What an exception that nobody translated means for the job."""
    step = last_step(folder)
    if isinstance(error, RankLost):
        lost = Outcome("killed", step, str(error), "the same command goes on from the last save")
        return (cause_elsewhere(folder, world) if world.is_main else None) or lost
    if is_out_of_memory(error):
        fix = "use a smaller --device-batch, --context or --depth"
        return Outcome("out_of_memory", step, out_of_memory_message(error), fix)
    if is_disk_full(error):
        return Outcome("disk_full", step, short(error), "free some space; the same command goes on from there")
    trace = folder / ("traceback.txt" if world.is_main else f"traceback.rank{world.rank}.txt")
    with contextlib.suppress(UserError):
        write_atomic(trace, traceback.format_exc())
    say(traceback.format_exc())
    return Outcome("error", step, short(error), f"the full trace is in {trace}")


def run_job(folder: Path, stop: StopFlag, world: World) -> Outcome:
    """Dispatches on config.json's "job". The verbs' code is imported here so that a wrong folder fails fast."""
    config, kind = read_config(folder)
    if kind == "train":
        if config.get("rollouts") is not None:
            return run_rollouts(folder, stop, world)
        with loading():
            from intone.train.loop import Trainer, join_team

        team = join_team(folder, world)
        if team.size > 1:
            stop.listen()
        outcome = Trainer(folder, stop, team=team).run()
        team.close()
        return outcome
    if world.size > 1:
        raise UserError(f"a job {kind!r} runs in one process, this is one of {world.size}", value=world.size)
    stop.at_once = True
    if kind in ("evaluate", "generate"):
        from intone.model.native.build import build_to_generate

        build_to_generate(str(config.get("device", "cpu")))  # on one core while the other imports torch
    if kind == "evaluate":
        with loading():
            from intone.evals.job import evaluate_job

        return evaluate_job(folder, config)
    if kind == "generate":
        with loading():
            from intone.engine.job import generate_job

        return generate_job(folder, config)
    raise UserError(f"unknown job {kind!r} in {folder / 'config.json'}", value=kind, fix=JOBS)


def run_rollouts(folder: Path, stop: StopFlag, world: World) -> Outcome:
    """A training that learns from its own answers."""
    if world.size > 1:
        raise UserError(
            f"a reinforcement stage trains in one process, this is one of {world.size}", value=world.size,
            fix=f"start it without torchrun: python -m intone.worker {folder}",
        )  # fmt: skip
    with loading():
        from intone.train.rl import Reinforcer

    return Reinforcer(folder, stop).run()


def read_config(folder: Path) -> tuple[dict[str, Any], Any]:
    """config.json of a folder and the job that it names. Raises UserError."""
    path = folder / "config.json"
    config = read_json(path)
    if not isinstance(config, dict):
        raise UserError(f"{path} is no object of names and values", value=str(folder))
    if "job" not in config:
        raise UserError(f"{path} names no job: key 'job' is missing", value="job", fix=JOBS)
    return config, config["job"]


def run_live(folder: Path, stop: StopFlag, exchange: Exchange) -> Outcome:
    """The job in blocks, on command. Nothing is saved, so a signal ends it at once."""
    stop.at_once = True
    _, kind = read_config(folder)
    if kind == "train":
        with loading():
            from intone.train.live import live_training

        return live_training(folder, exchange)
    if kind == "generate":
        with loading():
            from intone.engine.live import live_generation

        return live_generation(folder, exchange)
    raise UserError(f"job {kind!r} in {folder / 'config.json'} cannot run live", value=kind, fix="train or generate")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that memory ran out, in Python, PyTorch's CPU allocator or on the device."""
    for entry in chain(error):
        text = str(entry)
        if isinstance(entry, MemoryError) or type(entry).__name__ == "OutOfMemoryError":
            return True
        if any(words in text.lower() for words in OUT_OF_MEMORY_WORDS):
            return True
    return False


def out_of_memory_message(error: BaseException) -> str:
    """What a person should read of an out-of-memory error: how much was wanted, where PyTorch says so."""
    found = re.search(r"tried to allocate ([\d.]+) (\w+)", str(error), re.IGNORECASE)
    if found is None:
        return f"memory ran out ({short(error)})"
    size = human_bytes(int(found[1])) if found[2] == "bytes" else f"{found[1]} {found[2]}"
    return f"memory ran out: {size} more could not be had"


def is_disk_full(error: BaseException) -> bool:
    """Whether an exception that nobody translated means that the disk is full."""
    return any(isinstance(entry, OSError) and entry.errno in (errno.ENOSPC, errno.EDQUOT) for entry in chain(error))


def chain(error: BaseException) -> Iterator[BaseException]:
    """The exception and what caused it."""
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__ or current.__context__


def short(error: BaseException) -> str:
    """Type and first line of an exception."""
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"


def limit_memory() -> None:
    """Applies INTONE_LIMIT_DATA (bytes) to this process: allocations beyond it fail cleanly (RLIMIT_DATA)."""
    text = os.environ.get("INTONE_LIMIT_DATA")
    if text:
        resource.setrlimit(resource.RLIMIT_DATA, (int(text), int(text)))


if __name__ == "__main__":
    atexit.register(gc.freeze)  # a last look through all of torch would free nothing that the end does not
    sys.exit(main(sys.argv[1:]))
