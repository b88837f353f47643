import contextlib
import errno
import json
import os
import platform
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

import intone
from intone.engine.sandbox import filter, kernel
from intone.engine.sandbox.box import MAX_CODE_BYTES, Limits, Sandbox
from intone.engine.sandbox.probe import weakness

SOURCE = Path(intone.__file__).parent
NOBODY = 61_007  # an unused user, and none of those that the sandbox itself takes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the Python tool is off without Linux")

# ways to weaken the sandbox: a file of it, a text in there, and what stands in its place
NO_FILTER = ("child.py", "    kernel.install_filter(filter.program())\n", "")
NO_HIDING = ("child.py", "    _hide_files(plan, folders, has_namespaces, uid, gid)\n", "")
NO_LIMITS = ("child.py", '    _limit(plan, counts_own_threads=has_namespaces or plan["uid"] is not None)\n', "")
NO_CLOCK = ("box.py", "deadline = time.monotonic() + self._limits.wall_s", "deadline = time.monotonic() + 60")
# as where the system does not let root, or anybody, leave a namespace, mount, or use Landlock
NOT_AS_ROOT = ("child.py", "            kernel.unshare(_PRIVATE)\n", "            raise OSError\n")
NO_NAMESPACES = ("child.py", "kernel.unshare(_PRIVATE | kernel.CLONE_NEWUSER)", "raise OSError")
NO_MOUNTS = ("files.py", "    quiet = kernel", "    raise OSError('no mounts')\n    quiet = kernel")
NO_LANDLOCK = ("files.py", "    version = kernel", "    raise OSError('no Landlock')\n    version = kernel")
OLD_LANDLOCK = ("files.py", "    if version < _TRUNCATE", "    version = 2\n    if version < _TRUNCATE")


@pytest.fixture(scope="module")
def sandbox():
    # generous: this machine may be busy, and how long things take is not what is tested here
    box = Sandbox(Limits(wall_s=30.0, cpu_s=30))
    yield box
    box.close()


@pytest.fixture
def fresh():
    """Makes sandboxes with limits of their own and closes them after the test."""
    with contextlib.ExitStack() as stack:
        yield lambda limits=None: stack.enter_context(contextlib.closing(Sandbox(limits)))


def run(sandbox, code):
    return sandbox.prepared(code).wait()


def interpreter():
    """A Python that an unprivileged user can start: where tests run as root, ours may lie in root's own folder."""
    if os.geteuid() != 0:
        return sys.executable
    for path in (sys.executable, "/usr/bin/python3"):
        check = [path, "-c", "import ctypes, sys; sys.exit(sys.version_info < (3, 11))"]
        with contextlib.suppress(OSError):
            if subprocess.run(check, cwd="/", capture_output=True, user=NOBODY).returncode == 0:
                return path
    pytest.skip("no Python 3.11 that an unprivileged user can start")


class Machine:
    """A copy of the sandbox that everybody can read, weakened by edits, driven from a process of its own."""

    def __init__(self, folder, user, edits=()):
        if user == "root" and os.geteuid() != 0:
            pytest.skip("not started as root")
        self.folder = folder
        self.user = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if user != "root" == whoami() else {}
        modules = [f"engine/sandbox/{path.name}" for path in (SOURCE / "engine/sandbox").glob("*.py")]
        for path in ("__init__.py", "engine/__init__.py", *modules):
            (folder / "intone" / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(SOURCE / path, folder / "intone" / path)
        for name, before, after in edits:
            path = folder / "intone/engine/sandbox" / name
            assert path.read_text().count(before) == 1, before
            path.write_text(path.read_text().replace(before, after))
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o755)
        folder.chmod(0o777)

    def start(self, code):
        program = f"from intone.engine.sandbox import box, probe\n{code}"
        return subprocess.Popen(
            [interpreter(), "-c", program], env={"PYTHONPATH": str(self.folder), "TMPDIR": str(self.folder)},
            stdout=subprocess.PIPE, text=True, cwd="/", **self.user,
        )  # fmt: skip

    def drive(self, code):
        process = self.start(f"import json\nsandbox = box.Sandbox()\nprint(json.dumps({code}))\nsandbox.close()")
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0
        return json.loads(output)


def whoami():
    return "root" if os.geteuid() == 0 else "user"


@pytest.fixture
def folder():
    # not tmp_path: that lies in a folder which only its owner may enter
    with tempfile.TemporaryDirectory(prefix="intone-machine-") as path:
        yield Path(path)


def test_every_attempt_to_break_out_fails(fresh):
    assert weakness(fresh()) is None


@pytest.mark.parametrize(
    "user, edits, place",
    [
        ("root", (NOT_AS_ROOT,), "/work"),
        ("root", (NO_MOUNTS,), "intone-sandbox"),
        ("root", (NOT_AS_ROOT, NO_NAMESPACES), "intone-sandbox"),
        ("user", (), "/work"),
        ("user", (NO_MOUNTS,), "intone-sandbox"),
        ("user", (NO_NAMESPACES,), "intone-sandbox"),
    ],
    ids=["root in a container", "root with Landlock", "root with nothing but Landlock", "user", "user with Landlock",
         "user with nothing but Landlock"],
)  # fmt: skip
def test_every_attempt_fails_also_with_fewer_barriers(folder, user, edits, place):
    machine = Machine(folder, user, edits)
    where, found = machine.drive(
        '[sandbox.prepared("import os\\nprint(os.getcwd(), os.getuid())").wait().text, probe.weakness(sandbox)]'
    )
    if "files cannot be hidden" in where:
        pytest.skip(f"this machine lacks what is left: {where}")
    assert place in where and not where.endswith(" 0")
    assert found is None


@pytest.mark.parametrize(
    "user, edits, reason",
    [
        ("root", (NO_FILTER,), "could start processes"),
        ("user", (NO_FILTER,), "could start processes"),
        ("root", (NO_HIDING,), "could read a file outside"),
        ("user", (NO_HIDING,), "could read a file outside"),
        ("user", (NO_LIMITS,), "could take more memory than allowed"),
        ("user", (NO_NAMESPACES, NO_HIDING, NO_FILTER), "could"),
        ("user", (NO_NAMESPACES, NO_LANDLOCK), "files cannot be hidden: no namespaces; no Landlock"),
        ("user", (NO_NAMESPACES, OLD_LANDLOCK), "Landlock version 2 is too old, 3 is needed"),
        ("user", (NO_MOUNTS, NO_LANDLOCK), "files cannot be hidden: no mounts; no Landlock"),
    ],
)
def test_a_weaker_sandbox_is_found_out_and_not_trusted(folder, user, edits, reason):
    assert reason in Machine(folder, user, edits).drive("probe.weakness(sandbox)")


def test_a_sandbox_without_a_clock_is_found_out(folder):
    found = Machine(folder, whoami(), (NO_CLOCK,)).drive("probe.weakness(box.Sandbox(box.Limits(cpu_s=1)))")
    assert "not stopped by time" in found


# the network is barred twice, by its namespace and by the filter, and so are signals: each must do alone
BARRED_TWICE = """
import os, socket
try:
    socket.create_connection(("127.0.0.1", %d), timeout=5)
    print("connected")
except OSError:
    print("no network")
try:
    os.kill(%d, 0)
    print("reached")
except OSError:
    print("nobody there")
"""


@pytest.mark.parametrize("edits", [(NO_FILTER,), (NO_NAMESPACES,)], ids=["namespaces", "filter"])
def test_either_barrier_alone_holds_back_connections_and_signals(folder, edits):
    code = f"""(lambda listener: (listener.listen(), sandbox.prepared({BARRED_TWICE!r} % (
        listener.getsockname()[1], __import__("os").getpid())).wait().text)[1]
    )((lambda s: (s.bind(("127.0.0.1", 0)), s)[1])(__import__("socket").socket()))"""
    text = Machine(folder, "user", edits).drive(code)
    if "files cannot be hidden" in text:
        pytest.skip(text)
    assert text == "no network\nnobody there"


def test_a_processor_or_system_without_a_filter_is_refused_with_its_name(fresh, monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "mips64")
    with pytest.raises(OSError, match="no system call numbers for the processor mips64"):
        filter.program()
    monkeypatch.setattr(sys, "platform", "darwin")
    assert weakness(fresh()) == "it needs the system call filter of Linux, this is darwin"


@pytest.mark.parametrize(
    "code, text",
    [
        ("print(6 * 7)", "42"),
        ("6 * 7", "42"),
        ("'a' + 'b'", "'ab'"),
        ("x = 3\nx + 1", "4"),
        ("print(1)\nNone", "1"),
        ("", ""),
        ("x = 1", ""),
        ("def twice(x):\n    return 2 * x\n\ntwice(twice(4))", "16"),
        ("import math, re, json, random, datetime, collections, itertools, decimal, fractions, statistics, typing\n"
         "json.dumps([math.gcd(12, 18), datetime.date(2024, 2, 29).isoformat()])", '\'[6, "2024-02-29"]\''),
        ("open('notes', 'w').write('hello')\nprint(open('notes').read())", "hello"),
        ("import threading\nt = threading.Thread(target=print, args=(5,))\nt.start(); t.join()", "5"),
        ("'é日😀'", "'é日😀'"),
        ("print(1)\n1/0", "1\nZeroDivisionError: division by zero (line 2)"),
        ("def f():\n    return nothing\n\n\nf()", "NameError: name 'nothing' is not defined (line 2)"),
        ("x = 1\nx = (", "SyntaxError: '(' was never closed (line 2)"),
        ("def f(n): return f(n + 1)\nf(0)", "RecursionError: maximum recursion depth exceeded (line 1)"),
        ("print(1)\nimport sys\nsys.exit(3)", "1"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt (line 1)"),
        ("input()", "EOFError: EOF when reading a line (line 1)"),
        ("bytearray(1 << 40)", "MemoryError (line 1)"),
        ("print('so far')\nimport ctypes\nctypes.string_at(0)", "so far\n[crashed]"),
        ("import torch", "ModuleNotFoundError: No module named 'torch' (line 1)"),
    ],
)  # fmt: skip
def test_code_answers_as_in_a_notebook(sandbox, code, text):
    assert run(sandbox, code).text == text


def test_sets_print_alike_in_every_run_and_nothing_of_the_environment_comes_in(sandbox, monkeypatch):
    monkeypatch.setenv("SECRET_KEY", "hunter2")
    code = "import os\nprint(list({'a', 'b', 'c', 'd', 'e'}))\nprint(dict(os.environ), os.listdir('.'))"
    first, second = run(sandbox, code).text, run(sandbox, code).text
    assert first == second
    assert "hunter2" not in first and first.endswith("[]")


def test_open_files_of_the_parent_are_not_inherited(sandbox, tmp_path):
    with open(tmp_path / "secret", "w+") as file:
        os.set_inheritable(file.fileno(), True)
        code = (
            "import os\n"
            "def is_open(n):\n    try:\n        return bool(os.fstat(n))\n    except OSError:\n        return False\n"
            "[n for n in range(1000) if is_open(n)]"
        )
        assert run(sandbox, code).text == "[0, 1, 2]"


def test_a_fork_bomb_makes_no_process(sandbox):
    code = """
import os
made = 0
for attempt in range(500):
    try:
        if os.fork() == 0:
            while True:
                os.fork()
        made += 1
    except OSError:
        pass
made
"""
    assert run(sandbox, code).text == "0"


def test_threads_are_limited(sandbox):
    code = """
import threading
threads, hold = [], threading.Event()
try:
    for number in range(500):
        threads.append(threading.Thread(target=hold.wait))
        threads[-1].start()
except RuntimeError:
    threads.pop()
hold.set()
0 < len(threads) < 20
"""
    assert run(sandbox, code).text == "True"


def test_files_are_limited_in_size_number_and_sum(sandbox):
    code = """
def write(name, size):
    try:
        with open(name, "wb") as file:
            file.write(bytes(size))
        return True
    except OSError as error:
        return error.strerror
print(write("large", 9 << 20))
written = [write(f"file{number}", 1 << 20) for number in range(12)]
print(written.count(True) < 9, written[-1])
import os
for name in os.listdir("."):
    os.remove(name)
made = [write(f"small{number}", 0) for number in range(2000)]
print(made.count(True) < 1001, made[-1])
"""
    first, second, third = run(sandbox, code).text.splitlines()
    assert first == "File too large"
    assert second == third == "True No space left on device"


ENDLESS = "print('on and on')\nwhile True:\n    pass"


def test_code_without_an_end_is_stopped_and_keeps_what_it_printed(fresh):
    result = run(fresh(Limits(wall_s=0.2)), ENDLESS)
    assert (result.ended, result.text) == ("time", "on and on\n[stopped: out of time]")
    result = run(fresh(Limits(wall_s=0.2)), "import time\ntime.sleep(1000)")
    assert result.text == "[stopped: out of time]"


def test_code_that_uses_several_processors_is_stopped_by_processor_time(fresh):
    code = "import threading\ndef work():\n    while True: pass\nthreading.Thread(target=work).start()\nwork()"
    result = run(fresh(Limits(wall_s=100.0, cpu_s=1)), code)
    assert (result.ended, result.text) == ("killed", "[stopped: too much memory or processor time]")


def test_output_is_cut(sandbox):
    result = run(sandbox, "while True:\n    print('é' * 50)")
    assert result.ended == "output"
    # 2: half a letter at the end becomes U+FFFD
    assert len(result.output.encode()) <= sandbox.limits.output_bytes + 2
    assert result.text.endswith("\n[stopped: too much output]")
    assert run(sandbox, f"print('x' * {sandbox.limits.output_bytes - 1})").ended == "done"


def test_output_that_is_closed_or_handed_on_does_not_keep_the_reader(fresh, sandbox):
    box = fresh(Limits(wall_s=0.2))
    assert run(box, "import os\nos.close(1); os.close(2)\nwhile True: pass").ended == "time"
    assert run(sandbox, "import os\nos.dup2(1, 9)\nos.close(1)\nos._exit(0)").ended == "done"


def test_code_that_is_too_long_is_not_run(sandbox):
    result = run(sandbox, "#" * (MAX_CODE_BYTES + 1))
    assert result.text == "[not run: 65,537 bytes of code, at most 65,536 are allowed]"
    assert run(sandbox, "#" * (MAX_CODE_BYTES - 2) + "\n7").text == "7"


def test_a_run_is_killed_from_another_thread_and_leaves_nobody(sandbox):
    run = sandbox.prepared(ENDLESS)
    results = []
    waiting = threading.Thread(target=lambda: results.append(run.wait()))
    waiting.start()
    while b"on and on" not in run._output:
        threading.Event().wait(0.01)
    run.kill()
    waiting.join()
    assert results[0].ended == "cancelled"
    with pytest.raises(ProcessLookupError):
        os.killpg(run.process_group, 0)
    run.kill()
    never = sandbox.prepared("print(1)")
    never.kill()
    assert (never.wait().ended, never.process_group) == ("cancelled", None)


def test_runs_at_the_same_time_do_not_meet(sandbox):
    code = """
import os, time
open("mine", "w").write("%d")
time.sleep(0.1)
print(open("mine").read(), os.listdir("."))
"""
    texts = {}
    threads = [
        threading.Thread(target=lambda n=n: texts.update({n: run(sandbox, code % n).text})) for n in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == {n: f"{n} ['mine']" for n in range(6)}


def test_nothing_is_left_behind():
    box = Sandbox()
    run(box, "print(1)")
    before = set(os.listdir("/proc/self/fd"))
    for _ in range(3):
        run(box, "open('file', 'w').write('x')")
    folder = box.mount_point()
    assert set(os.listdir("/proc/self/fd")) == before
    assert os.listdir(folder) == [] and folder not in Path("/proc/mounts").read_text()
    box.close()
    assert not os.path.exists(folder)
    box.close()


def test_code_dies_with_the_process_that_asked_for_it(folder):
    machine = Machine(folder, whoami())
    process = machine.start(
        "import threading\nlimits = box.Limits(wall_s=300, cpu_s=300)\n"
        "run = box.Sandbox(limits).prepared('print(1)\\nwhile True: pass')\n"
        "threading.Thread(target=run.wait, daemon=True).start()\n"
        "while not run._output: threading.Event().wait(0.01)\n"
        "print(run.process_group, flush=True)\nthreading.Event().wait()"
    )
    group = int(process.stdout.readline())
    os.killpg(group, 0)
    process.kill()
    process.communicate()
    for _ in range(2000):  # until the kernel has delivered it: at once, on an idle machine
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            break
        threading.Event().wait(0.01)
    else:
        os.killpg(group, signal.SIGKILL)
        pytest.fail("it lives on")


# --- the filter, also of the processor that this machine does not have


def decision(program, number, *, arguments=(0,) * 6, architecture):
    """What the kernel would do: a reading of the four instructions that the filter consists of."""
    data = struct.pack("=IIQ6Q", number, architecture, 0, *arguments)
    code = [struct.unpack_from("=HBBI", program, place) for place in range(0, len(program), 8)]
    accumulator, place = 0, 0
    while True:
        operation, if_true, if_false, value = code[place]
        place += 1
        if operation == 0x20:
            (accumulator,) = struct.unpack_from("=I", data, value)
        elif operation == 0x54:
            accumulator &= value
        elif operation == 0x15:
            place += if_true if accumulator == value else if_false
        else:
            assert operation == 0x06
            return value


ALLOW, KILL = 0x7FFF0000, 0x80000000


def refused(number):
    return 0x50000 | number


@pytest.mark.parametrize("column, machine", list(enumerate(kernel.MACHINES)))
def test_the_filter_lets_through_what_is_listed_and_nothing_else(monkeypatch, column, machine):
    monkeypatch.setattr(platform, "machine", lambda: machine)
    program, architecture = filter.program(), filter._ARCHITECTURES[column]

    def decide(number, *arguments):
        padded = (*arguments, *[0] * 6)[:6]
        return decision(program, number, arguments=padded, architecture=architecture)

    listed = {pair[column] for pair in filter.ALLOWED.values()} - {None}
    forbidden = {pair[column] for pair in filter.REFUSED.values()} - {None}
    special = {filter.LIMITED["fcntl"][0][column], filter.LIMITED["prlimit64"][0][column], filter.CLONE[column],
               filter._IOCTL[column]}  # fmt: skip
    assert len(listed) > 90 and not listed & forbidden and not special & (listed | forbidden)
    for number in set(range(600)) - special:
        expected = ALLOW if number in listed else refused(errno.EPERM if number in forbidden else errno.ENOSYS)
        assert decide(number) == expected, number
    fcntl, prlimit, clone, ioctl = (
        filter.LIMITED["fcntl"][0][column], filter.LIMITED["prlimit64"][0][column], filter.CLONE[column],
        filter._IOCTL[column],
    )  # fmt: skip
    assert [decide(fcntl, 0, command) for command in (1, 8, 10, 15, 1030)] == [
        ALLOW, *[refused(errno.EPERM)] * 3, ALLOW,
    ]  # fmt: skip
    assert (decide(prlimit, 0), decide(prlimit, 1)) == (ALLOW, refused(errno.EPERM))
    thread = 0x3D0F00  # what glibc asks for a thread
    assert decide(clone, thread) == ALLOW
    for flags in (17, thread | 0x10000000, thread & ~0x10000):
        assert decide(clone, flags) == refused(errno.EPERM)
    assert decide(ioctl, 0, 0x5412) == refused(errno.ENOTTY)
    assert decide(0x40000000 | 1) == refused(errno.ENOSYS)  # x32's numbering
    assert decision(program, 1, architecture=0x40000003) == KILL  # a 32-bit program


@pytest.mark.parametrize(
    "column, header", [(0, "x86_64-linux-gnu/asm/unistd_64.h"), (1, "asm-generic/unistd.h")], ids=kernel.MACHINES
)
def test_the_numbers_are_those_of_the_kernels_headers(column, header):
    path = Path("/usr/include") / header
    if not path.exists():
        pytest.skip(f"no {path} here")
    found = {name: int(number) for name, number in re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", path.read_text())}
    found |= {"newfstatat": found["fstatat"]} if "fstatat" in found else {}
    tables = filter.ALLOWED | filter.REFUSED | kernel.NUMBERS | {name: row[0] for name, row in filter.LIMITED.items()}
    tables |= {"clone": filter.CLONE, "ioctl": filter._IOCTL}
    for name, pair in tables.items():
        assert found.get(name) == pair[column], name
