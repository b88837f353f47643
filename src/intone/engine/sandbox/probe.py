"""Whether the sandbox holds on this machine: real attempts to break out, and a bait outside that would show it."""

import contextlib
import os
import secrets
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from intone.engine.sandbox.box import SETUP_S, Result, Run, Sandbox

# how long the code that never ends may go on (guess: what a person does not notice)
ENDLESS_S = 0.3
_PROOF = "this runs"

# each attempt is a function whose name is what is reported; where one succeeds it must do no harm
_ATTEMPTS = '''
import ctypes, math, os, signal, socket, subprocess, sys, threading

def read_a_file_outside():
    return open(BAIT["secret"]).read()

def read_a_file_outside_by_a_link():
    os.symlink(BAIT["secret"], "link")
    return open("link").read()

def read_the_memory_or_environment_of_the_parent():
    for name in ("environ", "mem", "maps", "cwd/x", "root/etc/passwd"):
        with open(f"/proc/{BAIT['parent']}/{name}", "rb") as file:
            return file.read(1)

def write_a_file_outside():
    open(BAIT["folder"] + "/written", "w").close()

def overwrite_a_file_outside():
    open(BAIT["secret"], "w").close()

def empty_a_file_outside():
    os.truncate(BAIT["secret"], 0)

def change_the_mode_of_a_file_outside():
    os.chmod(BAIT["secret"], 0o600)

def connect_to_a_port():
    socket.create_connection(("127.0.0.1", BAIT["port"]), timeout=5)

def connect_to_a_local_socket():
    for address in (BAIT["socket"], BAIT["abstract"]):
        socket.socket(socket.AF_UNIX).connect(address)

def start_processes():
    if os.fork() == 0:
        os._exit(0)

def start_a_program():
    subprocess.run([sys.executable, "-c", ""], check=True)

def send_a_signal_to_the_parent():
    os.kill(BAIT["parent"], 0)

def have_the_kernel_send_a_signal_to_the_parent():
    import fcntl
    fcntl.fcntl(0, 8, BAIT["parent"])  # F_SETOWN

def change_the_limits_of_the_parent():
    import resource
    resource.prlimit(BAIT["parent"], resource.RLIMIT_NOFILE)

def become_root():
    os.setuid(0)

def trace_a_process():
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.ptrace(0x4206, BAIT["parent"], 0, 0) < 0:  # PTRACE_SEIZE: unlike ATTACH it does not stop the parent
        raise OSError(ctypes.get_errno())

def take_more_memory_than_allowed():
    bytearray(2 * BAIT["memory_bytes"])

if math.sqrt(4) == 2:
    print(PROOF)
for attempt in [value for value in list(globals().values()) if type(value) is type(write_a_file_outside)]:
    try:
        attempt()
        print("could " + attempt.__name__.replace("_", " "))
    except (OSError, MemoryError):
        pass
'''

_ENDLESS = '''
import os, signal
for number in range(1, 65):
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
for _ in range(2):
    try:
        if os.fork() == 0:
            os.setsid()
    except OSError:
        pass
while True:
    pass
'''


def weakness(sandbox: Sandbox) -> str | None:
    """Why Python cannot be run safely here, in words; None: every attempt failed. Takes about half a second."""
    if sys.platform != "linux":
        return f"it needs the system call filter of Linux, this is {sys.platform}"
    with _bait() as bait:
        facts = bait.facts | {"memory_bytes": sandbox.limits.memory_bytes}
        patient = replace(sandbox.limits, wall_s=SETUP_S)  # on a busy machine this is no moment to be quick
        result = Run(sandbox, f"BAIT = {facts!r}\nPROOF = {_PROOF!r}\n{_ATTEMPTS}", limits=patient).wait()
        found = _reading(result) or bait.harm(result.output)
    return found or _endless(sandbox)


def _reading(result: Result) -> str | None:
    """What the attempts said of themselves."""
    if result.ended == "broken":
        return f"its process could not be locked in: {result.reason}"
    first, *rest = result.output.splitlines() or [""]
    if first != _PROOF or result.ended != "done":
        return f"not even harmless code runs: {result.text[-200:]}"
    return f"code in it {rest[0]}" if rest else None


def _endless(sandbox: Sandbox) -> str | None:
    """Starts code that will not end and hides from signals; it must be gone in time, with its children."""
    quick = replace(sandbox.limits, wall_s=min(ENDLESS_S, sandbox.limits.wall_s))
    run = Run(sandbox, _ENDLESS, limits=quick)
    result = run.wait()
    if result.ended != "time":
        return f"code that never ends was not stopped by time but ended: {result.text[-200:]}"
    assert run.process_group is not None, "it ran"
    with contextlib.suppress(ProcessLookupError):
        os.killpg(run.process_group, 0)
        return "a process outlived its time"
    return None


@dataclass(frozen=True)
class _Bait:
    """Things outside that code must not reach, and the means to see whether it did."""

    facts: dict[str, object]
    token: str
    secret: Path
    listeners: list[socket.socket]

    def harm(self, output: str) -> str | None:
        """What happened to the bait, whatever the code said."""
        if self.token in output:
            return "code in it read a file outside"
        if sorted(path.name for path in self.secret.parent.iterdir()) != ["secret", "socket"]:
            return "code in it wrote a file outside"
        if self.secret.read_text() != self.token or self.secret.stat().st_mode & 0o777 != 0o644:
            return "code in it changed a file outside"
        for listener in self.listeners:
            with contextlib.suppress(BlockingIOError):
                listener.accept()[0].close()
                return "code in it connected to a socket outside"
        return None


@contextmanager
def _bait() -> Iterator[_Bait]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="intone-bait-")))
        folder.chmod(0o777)  # that another user may not enter must not be what protects it
        secret, token = folder / "secret", secrets.token_hex()
        secret.write_text(token)
        secret.chmod(0o644)
        abstract = f"\0intone-{secrets.token_hex(8)}"
        listeners = [stack.enter_context(socket.socket(family)) for family in (socket.AF_INET, *[socket.AF_UNIX] * 2)]
        for listener, address in zip(listeners, (("127.0.0.1", 0), f"{folder}/socket", abstract), strict=True):
            listener.bind(address)  # type: ignore[arg-type]
            listener.listen()
            listener.setblocking(False)
        os.chmod(f"{folder}/socket", 0o777)
        facts = {
            "secret": str(secret), "folder": str(folder), "socket": f"{folder}/socket", "abstract": abstract,
            "port": listeners[0].getsockname()[1], "parent": os.getpid(),
        }  # fmt: skip
        yield _Bait(facts, token, secret, listeners)
