"""Starts a program that works in blocks on command, speaks with it, and notices when it dies, hangs or talks nonsense.

The protocol is described in blocks.py. Our workers speak it (WorkerChild), and so may any other program (LineChild).
"""

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from intone import jobs
from intone.child import PACKAGE_PARENT
from intone.errors import OUTCOMES
from intone.records import Outcome

READY_S = 900.0  # a cold compile on a busy machine takes minutes; ten times the slowest we have seen, 90 s
BLOCK_S = 600.0
QUIT_S = 10.0  # from "quit", or the end of its output, to SIGKILL
SHOWN = 120  # letters of a strange line that an error repeats
# runs a foreign program so that the kernel kills it when we die: prctl's setting survives exec
EXEC = """
import os, sys
sys.path.insert(0, sys.argv[1])
from intone.child import die_with_parent
os.environ["INTONE_PARENT"] = sys.argv[2]
die_with_parent()
del os.environ["INTONE_PARENT"]
try:
    os.execvpe(sys.argv[3], sys.argv[3:], os.environ)
except OSError as error:
    sys.exit(f"{sys.argv[3]}: {error.strerror}")
"""


class LiveFailed(Exception):
    """A live child ended in another way than on request; outcome says how, in words for a person."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome.message)
        self.outcome = outcome


@dataclass(frozen=True)
class Ready:
    """What a child says once, before the first block."""

    first_s: float  # of its first step or pass, compiling included
    warm_s: float  # of the warming up behind it
    facts: Mapping[str, Any]


class LineChild:
    """A program that answers lines of JSON; close it after use, or use it in a with statement.

    Its stderr goes to a temporary file, whose last line is quoted where it fails. Every way to end too early, to
    hang or to answer nonsense raises LiveFailed once, after which the child is dead. Not safe for two threads at once.
    """

    def __init__(
        self, argv: Sequence[str], env: Mapping[str, str] | None = None, cwd: Path | None = None, *,
        name: str = "the program",
    ) -> None:  # fmt: skip
        """env is added to our variables. Raises LiveFailed at the first question where argv cannot be started."""
        log = tempfile.NamedTemporaryFile(prefix="intone-live-", suffix=".log")  # noqa: SIM115  closed in close()
        process = subprocess.Popen(
            [sys.executable, "-I", "-c", EXEC, str(PACKAGE_PARENT), str(os.getpid()), *argv],
            env={**os.environ, **(env or {})}, cwd=cwd, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
            start_new_session=True,
        )  # fmt: skip
        self._take(process, name, log)

    def _take(self, process: subprocess.Popen[bytes], name: str, log: IO[bytes] | None) -> None:
        assert process.stdin is not None and process.stdout is not None, "a live child has pipes"
        self.name = name
        self._process = process
        self._log = log
        self._unread = b""
        self._failure: LiveFailed | None = None
        os.set_blocking(process.stdout.fileno(), False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(process.stdout, selectors.EVENT_READ)

    @property
    def pid(self) -> int:
        """The process to look at for its processor time and memory."""
        return self._process.pid

    def wait_ready(self, timeout_s: float = READY_S) -> Ready:
        """Blocks until the child can be measured. Raises LiveFailed."""
        answer = self._read(timeout_s, "did not get ready")
        if answer.get("ready") is not True:
            raise self._fail(Outcome("error", None, f"{self.name} answered {shown(answer)} instead of being ready"))
        first_s, warm_s = (self._number(answer, name) for name in ("first_s", "warm_s"))
        return Ready(first_s, warm_s, dict(answer.get("facts") or {}))

    def block(self, *, timeout_s: float = BLOCK_S, **command: Any) -> dict[str, Any]:
        """One block -> its answer, with "seconds" above 0. command: steps=, plan=, requests= and the like.

        Raises LiveFailed.
        """
        self._write({"do": "block", **command})
        answer = self._read(timeout_s, "did not finish a block")
        if self._number(answer, "seconds") <= 0:
            raise self._fail(Outcome("error", None, f"{self.name} says that a block took {answer['seconds']} s"))
        return answer

    def close(self) -> None:
        """Asks the child to end, and kills it and its own children where it does not; harmless when called twice."""
        if self._process.poll() is None and self._failure is None:
            with contextlib.suppress(OSError, ValueError):
                self._send({"do": "quit"})
        self._end()
        self._selector.close()
        with contextlib.suppress(OSError):
            self._process.stdout.close()  # type: ignore[union-attr]
        if self._log is not None:
            self._log.close()

    def __enter__(self) -> "LineChild":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- lines ----------------------------------------------------------------------------------------------------

    def _send(self, value: Mapping[str, Any]) -> None:
        stdin = self._process.stdin
        assert stdin is not None, "a live child has pipes"
        stdin.write(json.dumps(value).encode() + b"\n")
        stdin.flush()

    def _write(self, value: Mapping[str, Any]) -> None:
        if self._failure is not None:
            raise self._failure
        # a child that has ended says why in its last line or by its exit status: _read tells
        with contextlib.suppress(BrokenPipeError):
            self._send(value)

    def _read(self, timeout_s: float, otherwise: str) -> dict[str, Any]:
        """The next line as an object. Raises LiveFailed where none comes in time, it is no object, or says an error."""
        if self._failure is not None:
            raise self._failure
        line = self._read_line(timeout_s, otherwise)
        try:
            answer = json.loads(line)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise self._fail(Outcome(
                "error", None, f"{self.name} printed {shown(line.decode(errors='replace'))} where an answer was due",
                "its stdout is for answers only: print everything else to stderr",
            ))  # fmt: skip
        if "error" in answer:
            word = answer.get("outcome")
            outcome = word if word in OUTCOMES and word != "done" else "error"
            said = Outcome(outcome, None, f"{self.name}: {answer['error']}", answer.get("fix"))
            raise self._fail(said, grace_s=QUIT_S)
        return answer

    def _read_line(self, timeout_s: float, otherwise: str) -> bytes:
        stdout = self._process.stdout
        assert stdout is not None, "a live child has pipes"
        end_s = time.monotonic() + timeout_s
        while b"\n" not in self._unread:
            if not self._selector.select(max(0.0, end_s - time.monotonic())):
                raise self._fail(Outcome("killed", None, f"{self.name} {otherwise} within {timeout_s:g} s"))
            piece = os.read(stdout.fileno(), 1 << 16)
            if not piece:
                raise self._fail(None)
            self._unread += piece
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def _number(self, answer: Mapping[str, Any], name: str) -> float:
        value = answer.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or value != value or value < 0:
            raise self._fail(Outcome("error", None, f"{self.name} gave no number for {name}: {shown(answer)}"))
        return float(value)

    # --- ends -----------------------------------------------------------------------------------------------------

    def _fail(self, outcome: Outcome | None, *, grace_s: float = 0.0) -> LiveFailed:
        """Ends the child -> the exception to raise, now and ever after. None: it is ending by itself, say how."""
        self._end(grace_s=QUIT_S if outcome is None else grace_s)
        outcome = outcome or self._derived()
        self._failure = LiveFailed(outcome)
        return self._failure

    def _derived(self) -> Outcome:
        """How a child ended that said nothing."""
        code, last = self._process.returncode, self._last_words()
        if code < 0:
            return Outcome("killed", None, f"{self.name} was ended by {signal.Signals(-code).name}{last}")
        return Outcome("error", None, f"{self.name} ended with exit code {code}{last}")

    def _last_words(self) -> str:
        """What stands last in its log, for the end of a message."""
        if self._log is None:
            return ""
        size = os.fstat(self._log.fileno()).st_size
        text = os.pread(self._log.fileno(), 4096, max(0, size - 4096)).decode(errors="replace").strip()
        return f": {text.splitlines()[-1].strip()}" if text else ""

    def _end(self, *, grace_s: float = QUIT_S) -> None:
        with contextlib.suppress(OSError):
            self._process.stdin.close()  # type: ignore[union-attr]
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(grace_s)
        self._kill()
        self._process.wait()

    def _kill(self) -> None:
        """The whole group: a program's own children must not go on computing."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)


class WorkerChild(LineChild):
    """A worker of ours in a job folder. Its log is FOLDER/live.log; FOLDER/outcome.json says how it ended."""

    def __init__(
        self, folder: Path, env: Mapping[str, str] | None = None, limits: jobs.Limits | None = None, *,
        name: str = "the worker",
    ) -> None:  # fmt: skip
        self._job = jobs.start_live(folder, env, limits)
        self._take(self._job.process, name, None)

    def _derived(self) -> Outcome:
        outcome = self._job.wait()
        return Outcome(outcome.outcome, outcome.step, f"{self.name}: {outcome.message}", outcome.fix)

    def _kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()

    def close(self) -> None:
        """As for every live child; the job then has its one outcome on disk."""
        super().close()
        self._job.wait()


def shown(value: object) -> str:
    """A value as an error repeats it, cut where it is long."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return repr(text if len(text) <= SHOWN else text[:SHOWN] + "…")
