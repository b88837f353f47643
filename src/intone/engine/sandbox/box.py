"""The sandbox from outside: starts its process, reads what it prints, and ends it in time with all it started."""

import contextlib
import itertools
import json
import os
import pwd
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from typing import Literal

from intone.engine.sandbox import child

# a busy machine may take this long to start an interpreter (guess: 1,000 times what an idle one takes)
SETUP_S = 30.0
MAX_CODE_BYTES = 1 << 16  # as much as a model can write into a context of 16,384 tokens (guess)
# between the ranges of systemd's table of user ids (systemd.io/UIDS-GIDS): nobody hands these out
_FREE_UIDS = range(60_706, 61_184)
_FLAGS = ("-s", "-S", "-P", "-B", "-X", "utf8")  # no site-packages, nothing from the current folder, no .pyc

Ended = Literal["done", "time", "output", "killed", "crashed", "cancelled", "broken"]


@dataclass(frozen=True)
class Limits:
    """What one call may use. wall_s counts from the first line of its code; all are guesses that fit small programs."""

    wall_s: float = 5.0
    cpu_s: int = 6  # for what wall_s does not catch: several threads
    memory_bytes: int = 256 << 20
    disk_bytes: int = 8 << 20  # in memory, and the size of the largest file
    num_files: int = 64
    num_threads: int = 16
    output_bytes: int = 1000  # it goes into the model's context


@dataclass(frozen=True)
class Result:
    """What code printed, and how it ended; reason says more where it could not be run at all."""

    output: str
    ended: Ended
    reason: str = ""

    @property
    def text(self) -> str:
        """The output with a last line that says why it stops where it does; for the model to read."""
        note = {
            "time": "[stopped: out of time]",
            "output": "[stopped: too much output]",
            "killed": "[stopped: too much memory or processor time]",
            "crashed": "[crashed]",
            "cancelled": "[cancelled]",
            "broken": f"[not run: {self.reason}]",
        }.get(self.ended)
        lines = [self.output.rstrip("\n"), note]
        return "\n".join(line for line in lines if line)


class Sandbox:
    """Runs Python code in processes that can reach nothing. Whether that holds on this machine, probe.py finds out.

    Runs of several threads do not meet each other. Close it after use.
    """

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def prepared(self, code: str) -> "Run":
        """A run of code that starts with its wait()."""
        return Run(self, code)

    def command(self, limits: Limits) -> list[str]:
        """The command of one process, its plan included. Raises OSError where there is no user to run it as."""
        uid = _FREE_UIDS[next(self._numbers) % len(_FREE_UIDS)] if os.geteuid() == 0 else None
        if uid is not None and _has_account(uid):
            raise OSError(f"user id {uid} is taken by an account")
        plan = asdict(limits) | {"parent": os.getpid(), "uid": uid, "mount_point": self.mount_point()}
        return [sys.executable, *_FLAGS, child.__file__, json.dumps(plan)]

    def mount_point(self) -> str:
        """An empty folder, the same for all runs: each of them mounts its own file system over it."""
        with self._lock:
            if self._folder is None:
                self._folder = tempfile.TemporaryDirectory(prefix="intone-sandbox-")
                os.chmod(self._folder.name, 0o755)  # another user has to enter it
            return self._folder.name

    def close(self) -> None:
        """Removes the folder, as the end of the process would; harmless when called twice. No run may be going on."""
        with self._lock:
            if self._folder is not None:
                self._folder.cleanup()
                self._folder = None


class Run:
    """One piece of code, run once. kill() may be called from any thread and at any time, also before wait()."""

    def __init__(self, sandbox: Sandbox, code: str, *, limits: Limits | None = None) -> None:
        self._sandbox = sandbox
        self._limits = limits or sandbox.limits
        self._code = code.encode(errors="replace")
        self._output = b""
        self._status = b""
        self._lock = threading.Lock()
        self._is_killed = False
        self._wake: int | None = None  # while it runs: an eventfd that ends it
        self.process_group: int | None = None

    def kill(self) -> None:
        """Ends the run soon; harmless after its end."""
        with self._lock:
            self._is_killed = True
            if self._wake is not None:
                os.eventfd_write(self._wake, 1)

    def wait(self) -> Result:
        """Starts the process, and returns when it and all its children are gone."""
        if len(self._code) > MAX_CODE_BYTES:
            return Result("", "broken", f"{len(self._code):,} bytes of code, at most {MAX_CODE_BYTES:,} are allowed")
        with self._lock:
            if self._is_killed:
                return Result("", "cancelled")
            self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        try:
            process = self._started()
            try:
                ended = self._read(process)
            finally:
                self._end(process)
        except OSError as error:
            return Result("", "broken", str(error))
        finally:
            with self._lock:
                os.close(self._wake)
                self._wake = None
        return self._result(ended, process.returncode)

    def _started(self) -> "subprocess.Popen[bytes]":
        descriptor = os.memfd_create("code")
        try:
            os.write(descriptor, self._code)
            os.lseek(descriptor, 0, os.SEEK_SET)
            process = subprocess.Popen(
                self._sandbox.command(self._limits), stdin=descriptor, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                bufsize=0, env=_environment(), start_new_session=True, cwd="/",
            )  # fmt: skip
        finally:
            os.close(descriptor)
        self.process_group = process.pid
        return process

    def _read(self, process: "subprocess.Popen[bytes]") -> Ended | None:
        """Collects what the process prints -> why it must end now, or None when it has ended."""
        assert process.stdout is not None and process.stderr is not None and self._wake is not None
        exited = os.pidfd_open(process.pid)
        deadline = time.monotonic() + SETUP_S
        open_ends = {process.stdout.fileno(), process.stderr.fileno(), exited}
        try:
            with selectors.DefaultSelector() as selector:
                for descriptor in (*open_ends, self._wake):
                    selector.register(descriptor, selectors.EVENT_READ)
                while open_ends:
                    ready = [key.fd for key, _ in selector.select(max(0.0, deadline - time.monotonic()))]
                    if self._wake in ready:
                        return "cancelled"
                    if not ready:
                        return "time"
                    for descriptor in ready:
                        data = b"" if descriptor == exited else os.read(descriptor, 1 << 16)
                        if descriptor == process.stdout.fileno():
                            self._output += data
                        elif descriptor == process.stderr.fileno():
                            self._status += data
                        if not data:
                            selector.unregister(descriptor)
                            open_ends.remove(descriptor)
                            if descriptor == process.stderr.fileno():  # the set-up is over, the code begins
                                deadline = time.monotonic() + self._limits.wall_s
                    if len(self._output) > self._limits.output_bytes:
                        return "output"
        finally:
            os.close(exited)
        return None

    def _end(self, process: "subprocess.Popen[bytes]") -> None:
        """Returns when nothing of it is left, whether or not it has ended by itself."""
        if self._has_keeper:
            # the keeper kills and awaits the namespace: a kill of both at once would be over before the code is gone
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(SETUP_S)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdout, process.stderr):
            pipe.close()  # type: ignore[union-attr]

    @property
    def _has_keeper(self) -> bool:
        """Whether another process of ours waits for the one that runs the code."""
        return b'"keeper": true' in self._status

    def _result(self, ended: Ended | None, returncode: int) -> Result:
        try:
            status = json.loads(self._status)
        except ValueError:
            status = {"failed": self._status.decode(errors="replace").strip() or f"exit status {returncode}"}
        output = self._output[: self._limits.output_bytes].decode(errors="replace")
        if ended is None and "failed" in status:
            return Result("", "broken", status["failed"])
        if ended is None:
            died_of = returncode - 128 if returncode > 128 else -returncode
            ended = "killed" if died_of == signal.SIGKILL else "crashed" if died_of > 0 else "done"
        return Result(output, ended)


def _environment() -> dict[str, str]:
    """Nothing of ours but where the interpreter finds its libraries; one hash seed, so that sets print alike."""
    fixed = {"PYTHONHASHSEED": "0", "TZ": "UTC0", "LANG": "C.UTF-8", "HOME": "/work"}
    return fixed | {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}


def _has_account(uid: int) -> bool:
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True
