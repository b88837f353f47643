"""Asks a child process of this package one question in JSON, so that torch, crashes and hangs stay out of ours."""

import contextlib
import ctypes
import gc
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

PACKAGE_PARENT = Path(__file__).resolve().parents[1]
PR_SET_PDEATHSIG = 1  # prctl(2)
START = """
import atexit, gc, runpy, sys
from intone.child import die_with_parent
die_with_parent()
atexit.register(gc.freeze)
runpy.run_module(sys.argv[1], run_name="__main__", alter_sys=True)
"""


class ChildFailed(Exception):
    """The child gave no answer; the text says why in words for a reason or a log line."""


def ask_child(
    module: str, question: dict[str, Any], *, timeout_s: float, environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The answer of `python -m module`, which reads question from stdin and prints one JSON object as its last line.

    environment is added to ours. The child has its own process group, which is killed after timeout_s, and when
    we are interrupted; on Linux it dies with us. Raises ChildFailed where it ends with an error, a signal, too late
    or without an answer.
    """
    variables = {**os.environ, **(environment or {})}
    search = [str(PACKAGE_PARENT), variables.get("PYTHONPATH", "")]
    variables["PYTHONPATH"] = os.pathsep.join(part for part in search if part)
    variables["INTONE_PARENT"] = str(os.getpid())
    variables.pop("INTONE_PARENT_PIPE", None)
    child = subprocess.Popen(
        [sys.executable, "-P", "-c", START, module],  # -P: no module comes from where the person stands
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=variables,
        start_new_session=True,
    )
    try:
        output, errors = child.communicate(json.dumps(question).encode(), timeout=timeout_s)
    except subprocess.TimeoutExpired:
        raise ChildFailed(f"no answer within {timeout_s:g} s") from None
    finally:
        end_group(child)
    if child.returncode < 0:
        raise ChildFailed(f"ended by {signal.Signals(-child.returncode).name}")
    if child.returncode > 0:
        raise ChildFailed(last_line(errors) or f"ended with exit code {child.returncode}")
    try:
        answer = json.loads(last_line(output))
    except ValueError:
        raise ChildFailed("its answer was not JSON") from None
    assert isinstance(answer, dict), "a child answers with one JSON object"
    return answer


@contextlib.contextmanager
def loading() -> Iterator[None]:
    """For what a process imports once and keeps: the garbage collector never looks at what is alive at the end of it.

    Importing and leaving takes 2.6 s in place of 3.2 s of a core for the code that trains, most of it torch [measured].
    gc.freeze just before the end, as START has it, gives a part of that where nobody knows when imports are done.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_on:
            gc.enable()


def die_with_parent() -> None:
    """Makes the kernel kill this process when the one that started it dies; elsewhere a thread watches a pipe.

    The process that starts another one puts its own id into INTONE_PARENT, and, where that is no Linux, the reading
    end of a pipe that it never writes to into INTONE_PARENT_PIPE. A process started by hand belongs to its shell.
    """
    parent = os.environ.get("INTONE_PARENT")
    if parent is None:
        return
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != int(parent):
            os._exit(1)  # it died before the call above
    elif pipe := os.environ.get("INTONE_PARENT_PIPE"):
        threading.Thread(target=_exit_at_end_of, args=(int(pipe),), daemon=True).start()


def _exit_at_end_of(pipe: int) -> None:
    os.read(pipe, 1)  # nothing is ever written: this returns when the parent's end closes
    os._exit(1)


def end_group(child: subprocess.Popen[bytes]) -> None:
    """Kills what is left of the child and its own children, and waits for it."""
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGKILL)
        child.communicate()


def last_line(output: bytes) -> str:
    """The last line that is not empty, decoded; empty where there is none."""
    lines = output.decode(errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else ""
