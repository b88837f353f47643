"""What Linux offers to lock a process in and Python's library does not: by system call number, through ctypes.

Imported in the sandbox's own process: only the standard library, so that it starts in milliseconds.
"""

import ctypes
import os
import platform
import signal
import struct

# constants and numbers of the kernel's headers: linux/{sched,prctl,mount,capability}.h and asm/unistd.h
CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 0x2, 0x4, 0x1000, 0x4000, 0x40000
_MNT_DETACH = 2
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
_SECCOMP_MODE_FILTER = 2
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_MOUNT_ATTR_RDONLY, _MOUNT_ATTR_NOSUID, _MOUNT_ATTR_NODEV = 1, 2, 4
_CAPABILITY_VERSION_3 = 0x20080522

# x86_64, aarch64; from 424 on numbers are the same on every processor
NUMBERS = {
    "capset": (126, 91),
    "pivot_root": (155, 41),
    "mount_setattr": (442, 442),
    "landlock_create_ruleset": (444, 444),
    "landlock_add_rule": (445, 445),
    "landlock_restrict_self": (446, 446),
}
MACHINES = ("x86_64", "aarch64")


def column() -> int:
    """This processor's place in the pairs of numbers. Raises OSError for a processor that is not in MACHINES."""
    if platform.machine() not in MACHINES:
        raise OSError(f"no system call numbers for the processor {platform.machine()}")
    return MACHINES.index(platform.machine())


def call(name: str, *arguments: int | bytes | ctypes.Array[ctypes.c_char] | None) -> int:
    """A system call of NUMBERS -> its result. Raises OSError."""
    values = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    return _checked(name, _libc().syscall(ctypes.c_long(NUMBERS[name][column()]), *values))


def unshare(flags: int) -> None:
    """Leaves the namespaces of the parent. Raises OSError."""
    _checked("unshare", _libc().unshare(ctypes.c_int(flags)))


def mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    """mount(2). Raises OSError."""
    words = [None if word is None else word.encode() for word in (source, target, kind, options)]
    _checked(f"mount {target}", _libc().mount(words[0], words[1], words[2], ctypes.c_ulong(flags), words[3]))


def make_read_only(path: str) -> None:
    """Everything mounted at or below path becomes read-only. Raises OSError, also before Linux 5.12."""
    wanted = _MOUNT_ATTR_RDONLY | _MOUNT_ATTR_NOSUID | _MOUNT_ATTR_NODEV
    attributes = ctypes.create_string_buffer(struct.pack("=QQQQ", wanted, 0, 0, 0), 32)
    call("mount_setattr", _AT_FDCWD, path.encode(), _AT_RECURSIVE, attributes, 32)


def enter_root(path: str) -> None:
    """path, a mount of its own, becomes "/" and the old root disappears. Raises OSError."""
    os.chdir(path)
    call("pivot_root", b".", b".")
    _checked("umount", _libc().umount2(b".", ctypes.c_int(_MNT_DETACH)))
    os.chdir("/")


def drop_capabilities() -> None:
    """Gives up every privilege, those inside an own user namespace too. Raises OSError."""
    header = ctypes.create_string_buffer(struct.pack("=Ii", _CAPABILITY_VERSION_3, 0), 8)
    call("capset", header, ctypes.create_string_buffer(24))


def die_with_parent() -> None:
    """The kernel kills this process when the thread that started it ends. A change of user undoes this: call again."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def own_proc_files() -> None:
    """Makes /proc/self writable again for a process that has changed its user."""
    _prctl(_PR_SET_DUMPABLE, 1)


def forbid_new_privileges() -> None:
    """No program that is started from here on gains anything by set-uid bits."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def install_filter(program: bytes) -> None:
    """Hands the kernel a seccomp filter, 8 bytes an instruction; it holds until the process ends. Raises OSError."""
    instructions = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("@HP", len(program) // 8, ctypes.addressof(instructions))
    buffer = ctypes.create_string_buffer(header, len(header))
    _prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(buffer))


def _prctl(option: int, *arguments: int) -> None:
    padded = [ctypes.c_ulong(value) for value in (*arguments, 0, 0, 0, 0)[:4]]
    _checked(f"prctl {option}", _libc().prctl(ctypes.c_int(option), *padded))


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _checked(name: str, result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result
