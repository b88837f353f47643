"""Starts the workers of one job on the devices of this machine through torchrun, and says how they ended.

`python -m intone.launch FOLDER N` is `torchrun --standalone --nproc-per-node N -m intone.worker FOLDER` with a
readable end: one outcome in FOLDER also where the first worker could not write it, and a worker's exit code.
"""

import contextlib
import logging
import os
import shutil
import signal
import sys
import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from intone.child import die_with_parent, loading
from intone.errors import UserError
from intone.jobs import EXIT_CODES, GRACE_S, ended_by_signal, kernel_oom_kills, last_step, lock_problem
from intone.log import say
from intone.records import Outcome, read_outcome, write_outcome


def main(argv: list[str]) -> int:
    """Runs the job in argv[0] on argv[1] devices -> exit code, that of a worker."""
    if len(argv) != 2 or not argv[1].isdigit() or int(argv[1]) < 1:
        say("usage: python -m intone.launch FOLDER DEVICES")
        return EXIT_CODES["bad_input"]
    folder, devices = Path(argv[0]).absolute(), int(argv[1])
    die_with_parent()
    before = kernel_oom_kills()
    if lock_problem(folder) is None:
        shutil.rmtree(folder / "ranks", ignore_errors=True)  # of an earlier try, maybe with more processes
    failures = run_workers(folder, devices)
    return exit_code(folder, devices, failures, oom_kills_before=before)


def run_workers(folder: Path, devices: int) -> Mapping[int, Any]:
    """Waits for the workers to end -> what torchrun says about those that failed, by rank; none where it was stopped.

    A signal that ends us is handed on to the workers, who save and end; GRACE_S later they are killed.
    """
    # torch takes a second to import: a wrong command is answered without it
    with loading():
        from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
        from torch.distributed.elastic.multiprocessing.api import SignalException
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
        from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # how a worker ended is said once, by us
    os.environ["INTONE_PARENT"] = str(os.getpid())  # workers die with us
    os.environ.pop("INTONE_PARENT_PIPE", None)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # torchrun would say so at length; the plan sets threads anyway
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(int(GRACE_S)))
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # the name of this host may lead elsewhere, or nowhere
    with tempfile.TemporaryDirectory(prefix="intone-launch-") as logs:
        config = LaunchConfig(
            min_nodes=1, max_nodes=1, nproc_per_node=devices, run_id=uuid.uuid4().hex, rdzv_backend="c10d",
            rdzv_endpoint="127.0.0.1:0", local_addr="127.0.0.1", max_restarts=0, monitor_interval=0.1,
            logs_specs=DefaultLogsSpecs(log_dir=logs),
        )  # fmt: skip
        try:
            elastic_launch(config, sys.executable)("-P", "-m", "intone.worker", str(folder))
        except ChildFailedError as error:
            return dict(error.failures)
        except SignalException:
            return {}
    return {}


def exit_code(folder: Path, devices: int, failures: Mapping[int, Any], *, oom_kills_before: int) -> int:
    """Sees to it that the folder has its outcome, and returns the exit code that belongs to it."""
    if lock_problem(folder) is not None:  # somebody else's: our first worker said so and ended
        return EXIT_CODES["bad_input"]
    outcome = read_outcome(folder)
    killed = killed_outcome(folder, devices, failures, oom_kills_before=oom_kills_before)
    if killed is not None and (outcome is None or outcome.outcome == "killed"):
        outcome = killed  # who lost another process cannot know how that one ended
        with contextlib.suppress(UserError):  # a full disk must not hide how it ended
            write_outcome(folder, outcome)
    if outcome is not None:
        return EXIT_CODES.get(outcome.outcome, 1)
    codes = [failure.exitcode for failure in failures.values() if failure.exitcode > 0]
    return codes[0] if codes else 1


def killed_outcome(
    folder: Path, devices: int, failures: Mapping[int, Any], *, oom_kills_before: int
) -> Outcome | None:
    """The outcome where a process was ended by a signal that torchrun did not send; None where none was."""
    for rank, failure in sorted(failures.items()):
        number = -failure.exitcode
        if number > 0 and number != signal.SIGTERM:
            who = f"process {rank} of {devices}"
            return ended_by_signal(number, last_step(folder), who, oom_kills_before=oom_kills_before)
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
