"""The sandbox from inside: a process that locks itself in, then runs the code on its standard input.

Started by box.py as a program of its own, as `python child.py PLAN`; only the standard library, so no torch.
Order matters: namespaces, files, user, limits, and the system call filter last, as it forbids most of the former.
"""

import ast
import contextlib
import json
import os
import resource
import select
import signal
import sys
from typing import Any, NoReturn

if __name__ == "__main__":
    # the package's folder is found by this file's place: the interpreter runs without site-packages
    sys.path.append(os.path.abspath(os.path.join(os.path.dirname(__file__), *[os.pardir] * 3)))

from intone.engine.sandbox import files, filter, kernel

_PRIVATE = kernel.CLONE_NEWNS | kernel.CLONE_NEWPID | kernel.CLONE_NEWNET | kernel.CLONE_NEWIPC | kernel.CLONE_NEWUTS
# processor's time and memory go to everybody else first
_NICENESS = 10
_FIRST_TO_KILL = "1000"
BROKEN = 97  # exit status of a sandbox that could not lock itself in


def main() -> None:
    """Reads the plan (box.py) and the code, locks itself in, says so on standard error, runs the code."""
    plan = json.loads(sys.argv[1])
    sys.path.pop()  # the code sees the standard library only
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored by some parents, and then there is no status to wait for
    kernel.die_with_parent()
    if os.getppid() != plan["parent"]:
        os._exit(BROKEN)
    code = sys.stdin.buffer.read().decode()
    try:
        has_keeper = _lock_in(plan)
    except (OSError, ValueError) as error:
        os.write(2, json.dumps({"failed": str(error)}).encode())
        os._exit(BROKEN)
    os.write(2, json.dumps({"keeper": has_keeper}).encode())
    os.dup2(1, 2)
    _run(code)


def _lock_in(plan: dict[str, Any]) -> bool:
    """-> whether another process waits for this one as its keeper. Raises OSError, ValueError."""
    os.nice(_NICENESS)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write(_FIRST_TO_KILL)  # a courtesy that some containers do not allow
    folders = files.library_folders()
    has_namespaces, is_other_user = _leave_namespaces(plan)
    if has_namespaces:
        _go_on_as_first_process()
    uid, gid = plan["uid"] or os.getuid(), plan["uid"] or os.getgid()
    _hide_files(plan, folders, has_namespaces, uid, gid)
    if plan["uid"] is not None and not is_other_user:
        _become(plan["uid"])
    if has_namespaces:
        kernel.drop_capabilities()
    kernel.die_with_parent()  # undone by the change of user
    _limit(plan, counts_own_threads=has_namespaces or plan["uid"] is not None)
    kernel.forbid_new_privileges()
    kernel.install_filter(filter.program())
    return has_namespaces


def _leave_namespaces(plan: dict[str, Any]) -> tuple[bool, bool]:
    """Own network, processes, mounts and names where the system allows it -> (is allowed, user is changed already).

    root does so as root; where root may not (in a container), and for everybody else, a user namespace may help.
    """
    if plan["uid"] is not None:
        try:
            kernel.unshare(_PRIVATE)
            return True, False
        except OSError:
            _become(plan["uid"])
            kernel.own_proc_files()
    uid, gid = os.getuid(), os.getgid()
    try:
        kernel.unshare(_PRIVATE | kernel.CLONE_NEWUSER)
    except OSError:
        return False, True
    for name, line in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(line)
    return True, True


def _go_on_as_first_process() -> None:
    """Forks: the child is process 1 of the new namespace, all of which dies with it. The parent waits as its keeper."""
    reading, writing = os.pipe()
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    child = os.fork()
    if child:
        _keep(child, reading)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    os.close(writing)
    kernel.die_with_parent()
    # the parent may have died just before that line: its end of the pipe tells
    poll = select.poll()
    poll.register(reading, 0)
    if poll.poll(0):
        os._exit(BROKEN)
    os.close(reading)


def _keep(child: int, *inherited: int) -> NoReturn:
    """Waits for the child and ends as it does; kills it first when told to end (SIGTERM)."""

    def kill(*_: object) -> None:
        os.kill(child, signal.SIGKILL)

    # the reader of the output must not wait for this process
    for descriptor in (0, 1, 2, *inherited):
        os.close(descriptor)
    signal.signal(signal.SIGTERM, kill)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    _, status = os.waitpid(child, 0)
    os._exit(128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status))


def _hide_files(plan: dict[str, Any], folders: list[str], has_namespaces: bool, uid: int, gid: int) -> None:
    reason = "no namespaces"
    if has_namespaces:
        try:
            files.enter_private_root(plan["mount_point"], folders, uid=uid, gid=gid, disk_bytes=plan["disk_bytes"])
            return
        except OSError as error:
            reason = str(error)
    try:
        os.chdir(plan["mount_point"])
        files.landlock(folders)
    except OSError as error:
        raise OSError(f"files cannot be hidden: {reason}; {error}") from None


def _become(uid: int) -> None:
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    kernel.die_with_parent()


def _limit(plan: dict[str, Any], *, counts_own_threads: bool) -> None:
    """Soft and hard limits alike. Threads are limited where the kernel does not count those of other processes too."""
    limits = {
        resource.RLIMIT_CPU: plan["cpu_s"],
        resource.RLIMIT_AS: plan["memory_bytes"],
        resource.RLIMIT_DATA: plan["memory_bytes"],
        resource.RLIMIT_FSIZE: plan["disk_bytes"],
        resource.RLIMIT_NOFILE: plan["num_files"],
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
    }
    if counts_own_threads:
        limits[resource.RLIMIT_NPROC] = plan["num_threads"]
    for kind, value in limits.items():
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


def _run(code: str) -> None:
    """Runs code as a notebook would: the value of a last expression is printed, of an error the last line."""
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # what was printed before an end by force
    sys.unraisablehook = lambda _: None  # an error that nobody can catch says nothing to whoever wrote the code
    names: dict[str, Any] = {"__name__": "__main__"}
    try:
        tree = ast.parse(code)
        last = tree.body[-1] if tree.body else None
        if isinstance(last, ast.Expr):
            tree.body.pop()
        exec(compile(tree, "<tool>", "exec"), names)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), "<tool>", "eval"), names)
            if value is not None:
                print(repr(value))
    except SystemExit:
        pass
    except BaseException as error:
        print(_summary(error))


def _summary(error: BaseException) -> str:
    """NAME: MESSAGE, with the line of the code where it is known."""
    import traceback

    places = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == "<tool>"]
    line = error.lineno if isinstance(error, SyntaxError) else places[-1] if places else None
    text = traceback.format_exception_only(error)[-1].strip()
    return f"{text} (line {line})" if line is not None else text


if __name__ == "__main__":
    main()
