"""One process of one job folder: `python -m intone.worker FOLDER` does what config.json says, writes outcome.json.

With --live behind the folder it does the job in blocks, on command, and says how long each took (blocks.py).
"""

import contextlib
import errno
import os
import re
import resource
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from intone.blocks import Exchange
from intone.child import die_with_parent
from intone.errors import DiskFull, UserError
from intone.jobs import EXIT_CODES, LIVE, last_step
from intone.log import human_bytes, say
from intone.paths import FolderLock, read_json, write_atomic
from intone.records import Outcome, write_outcome

# what PyTorch's CPU allocator, the system, CUDA and Python (which cannot map a thread's stack) say
OUT_OF_MEMORY_WORDS = ("can't allocate memory", "cannot allocate memory", "out of memory", "can't start new thread")


class StopFlag:
    """Set by SIGTERM and the first SIGINT: the loop ends after the step it is in. A second SIGINT ends at once.

    at_once: the first signal does, in a job that has nothing to save.
    """

    def __init__(self) -> None:
        self.is_set = self.at_once = False
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._on_signal)
            signal.signal(signal.SIGINT, self._on_signal)

    def __call__(self) -> bool:
        return self.is_set

    def _on_signal(self, number: int, _frame: object) -> None:
        if self.at_once or (self.is_set and number == signal.SIGINT):
            raise KeyboardInterrupt
        self.is_set = True
        say("stopping after this step; Ctrl-C again stops at once, from the last save")


def main(argv: list[str]) -> int:
    """Runs the job in the one folder of argv; returns the exit code."""
    if len(argv) not in (1, 2) or argv[1:] not in ([], [LIVE]):
        say(f"usage: python -m intone.worker FOLDER [{LIVE}]")
        return 2
    folder = Path(argv[0]).absolute()
    die_with_parent()
    limit_memory()
    stop = StopFlag()
    exchange = Exchange.on_standard_streams() if LIVE in argv else None
    try:
        lock = FolderLock(folder / "lock", what="this job folder")
    except UserError as error:
        say(str(error))
        outcome = Outcome("disk_full" if isinstance(error, DiskFull) else "bad_input", None, error.message, error.fix)
        if exchange is not None:
            exchange.fail(outcome)
        return EXIT_CODES[outcome.outcome]
    with lock:
        outcome = run_guarded(folder, stop, exchange)
        if exchange is not None and outcome.outcome != "done":
            exchange.fail(outcome)
        with contextlib.suppress(DiskFull):  # the parent then derives the outcome from the exit status
            write_outcome(folder, outcome)
    if outcome.outcome not in ("done", "stopped"):
        say(f"{outcome.outcome}: {outcome.message}")
    return EXIT_CODES.get(outcome.outcome, 1)


def run_guarded(folder: Path, stop: StopFlag, exchange: Exchange | None = None) -> Outcome:
    """The job, with every way to fail turned into its one outcome."""
    try:
        return run_job(folder, stop) if exchange is None else run_live(folder, stop, exchange)
    except DiskFull as error:
        return Outcome("disk_full", last_step(folder), error.message, error.fix)
    except UserError as error:
        return Outcome("bad_input", last_step(folder), error.message, error.fix)
    except KeyboardInterrupt:
        return Outcome("stopped", last_step(folder), "stopped at once; the same command goes on from the last save")
    except Exception as error:  # whatever it is, it must end in one outcome that a person can read
        step = last_step(folder)
        if is_out_of_memory(error):
            fix = "use a smaller --device-batch, --context or --depth"
            return Outcome("out_of_memory", step, out_of_memory_message(error), fix)
        if is_disk_full(error):
            return Outcome("disk_full", step, short(error), "free some space; the same command goes on from there")
        with contextlib.suppress(UserError):
            write_atomic(folder / "traceback.txt", traceback.format_exc())
        say(traceback.format_exc())
        return Outcome("error", step, short(error), f"the full trace is in {folder / 'traceback.txt'}")


def run_job(folder: Path, stop: StopFlag) -> Outcome:
    """Dispatches on config.json's "job". The verbs' code is imported here so that a wrong folder fails fast."""
    config: dict[str, Any] = read_json(folder / "config.json")
    kind = config.get("job")
    if kind == "train":
        from intone.train.loop import Trainer

        return Trainer(folder, stop).run()
    stop.at_once = True
    if kind == "evaluate":
        from intone.evals.job import evaluate_job

        return evaluate_job(folder, config)
    if kind == "generate":
        from intone.engine.job import generate_job

        return generate_job(folder, config)
    raise UserError(f"unknown job {kind!r} in {folder / 'config.json'}", value=kind, fix="train, evaluate or generate")


def run_live(folder: Path, stop: StopFlag, exchange: Exchange) -> Outcome:
    """The job in blocks, on command. Nothing is saved, so a signal ends it at once."""
    stop.at_once = True
    kind = read_json(folder / "config.json").get("job")
    if kind == "train":
        from intone.train.live import live_training

        return live_training(folder, exchange)
    if kind == "generate":
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
    sys.exit(main(sys.argv[1:]))
