"""Which system calls sandboxed Python may make: an allow-list as a seccomp program, assembled here.

Imported in the sandbox's own process: only the standard library.
"""

import errno
import struct

from intone.engine.sandbox import kernel

_Pair = tuple[int | None, int | None]  # the number on x86_64 and aarch64; None: has no such call

# what the interpreter, its threads and its files need; numbers of asm/unistd_64.h and asm-generic/unistd.h
ALLOWED: dict[str, _Pair] = {
    "read": (0, 63), "write": (1, 64), "readv": (19, 65), "writev": (20, 66), "pread64": (17, 67), "pwrite64": (18, 68),
    "open": (2, None), "openat": (257, 56), "close": (3, 57), "close_range": (436, 436), "lseek": (8, 62),
    "stat": (4, None), "fstat": (5, 80), "lstat": (6, None), "newfstatat": (262, 79), "statx": (332, 291),
    "access": (21, None), "faccessat": (269, 48), "faccessat2": (439, 439), "getdents64": (217, 61),
    "readlink": (89, None), "readlinkat": (267, 78), "getcwd": (79, 17), "chdir": (80, 49), "fchdir": (81, 50),
    "mkdir": (83, None), "mkdirat": (258, 34), "rmdir": (84, None), "unlink": (87, None), "unlinkat": (263, 35),
    "rename": (82, None), "renameat": (264, 38), "renameat2": (316, 276), "truncate": (76, 45), "ftruncate": (77, 46),
    "link": (86, None), "linkat": (265, 37), "symlink": (88, None), "symlinkat": (266, 36), "umask": (95, 166),
    "fsync": (74, 82), "fdatasync": (75, 83), "fallocate": (285, 47), "fadvise64": (221, 223), "flock": (73, 32),
    "sendfile": (40, 71), "copy_file_range": (326, 285), "dup": (32, 23), "dup2": (33, None), "dup3": (292, 24),
    "pipe": (22, None), "pipe2": (293, 59), "poll": (7, None), "ppoll": (271, 73), "select": (23, None),
    "pselect6": (270, 72), "epoll_create1": (291, 20), "epoll_ctl": (233, 21), "epoll_wait": (232, None),
    "epoll_pwait": (281, 22), "eventfd2": (290, 19),
    "mmap": (9, 222), "mprotect": (10, 226), "munmap": (11, 215), "mremap": (25, 216), "madvise": (28, 233),
    "brk": (12, 214), "membarrier": (324, 283),
    "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "rt_sigpending": (127, 136),
    "rt_sigtimedwait": (128, 137), "rt_sigsuspend": (130, 133), "sigaltstack": (131, 132), "pause": (34, None),
    "alarm": (37, None), "getitimer": (36, 102), "setitimer": (38, 103), "restart_syscall": (219, 128),
    "nanosleep": (35, 101), "clock_nanosleep": (230, 115), "clock_gettime": (228, 113), "clock_getres": (229, 114),
    "gettimeofday": (96, 169), "time": (201, None), "times": (100, 153), "getrusage": (98, 165),
    "futex": (202, 98), "set_robust_list": (273, 99), "get_robust_list": (274, 100), "rseq": (334, 293),
    "set_tid_address": (218, 96), "sched_yield": (24, 124), "sched_getaffinity": (204, 123), "getcpu": (309, 168),
    "getpid": (39, 172), "getppid": (110, 173), "gettid": (186, 178), "getpgrp": (111, None), "getpgid": (121, 155),
    "getsid": (124, 156), "getuid": (102, 174), "geteuid": (107, 175), "getgid": (104, 176), "getegid": (108, 177),
    "getgroups": (115, 158), "getrlimit": (97, 163), "uname": (63, 160), "sysinfo": (99, 179),
    "getrandom": (318, 278), "exit": (60, 93), "exit_group": (231, 94),
}  # fmt: skip

# allowed where the low half of one argument is one of these: (numbers, argument, values)
LIMITED: dict[str, tuple[_Pair, int, tuple[int, ...]]] = {
    # another process of the same user could be starved of its limits: only one's own
    "prlimit64": ((302, 261), 0, (0,)),
    # copies, flags and locks of files; not F_SETOWN and F_SETSIG, which send signals to other processes
    "fcntl": ((72, 25), 1, (0, 1, 2, 3, 4, 5, 6, 7, 1030)),
}
CLONE: _Pair = (56, 220)
_CLONE_THREAD = 0x00010000
_NEW_NAMESPACES = 0x7E020080  # every CLONE_NEW... flag

# programs try these on purpose: "not permitted" tells them more than "not implemented"
REFUSED: dict[str, _Pair] = {
    "fork": (57, None), "vfork": (58, None), "execve": (59, 221), "execveat": (322, 281), "socket": (41, 198),
    "socketpair": (53, 199), "connect": (42, 203), "bind": (49, 200), "kill": (62, 129), "tkill": (200, 130),
    "tgkill": (234, 131), "ptrace": (101, 117), "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53),
    "chown": (92, None), "fchown": (93, 55), "fchownat": (260, 54), "mount": (165, 40), "prctl": (157, 167),
}  # fmt: skip
_IOCTL: _Pair = (16, 29)  # asked of every opened file: "not a terminal"

# linux/audit.h, linux/seccomp.h, linux/bpf_common.h
_ARCHITECTURES = (0xC000003E, 0xC00000B7)
_KILL, _ERRNO, _ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
_LOAD, _AND, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x54, 0x15, 0x06
_NUMBER_AT, _ARCHITECTURE_AT, _ARGUMENTS_AT = 0, 4, 16  # offsets in struct seccomp_data


def program() -> bytes:
    """The filter for this processor, for kernel.install_filter. Raises OSError where its numbers are unknown.

    Everything that is not named above is "not implemented", so that libraries take their older roads; a call in the
    numbering of another processor (32-bit programs on a 64-bit kernel) kills the process.
    """
    column = kernel.column()
    code = [
        _instruction(_LOAD, _ARCHITECTURE_AT),
        _instruction(_JUMP_IF_EQUAL, _ARCHITECTURES[column], skip_if_true=1),
        _instruction(_RETURN, _KILL),
        _instruction(_LOAD, _NUMBER_AT),
    ]
    for pair in ALLOWED.values():
        code += _case(pair[column], [_instruction(_RETURN, _ALLOW)])
    for pair, argument, values in LIMITED.values():
        code += _case(pair[column], _only(argument, values))
    code += _case(CLONE[column], _only(0, (_CLONE_THREAD,), mask=_CLONE_THREAD | _NEW_NAMESPACES))
    for pair in REFUSED.values():
        code += _case(pair[column], [_refusal(errno.EPERM)])
    code += _case(_IOCTL[column], [_refusal(errno.ENOTTY)])
    code.append(_refusal(errno.ENOSYS))
    return b"".join(code)


def _case(number: int | None, body: list[bytes]) -> list[bytes]:
    """body, which must return, for the system call of this number."""
    return [] if number is None else [_instruction(_JUMP_IF_EQUAL, number, skip_if_false=len(body)), *body]


def _only(argument: int, values: tuple[int, ...], *, mask: int = 0xFFFFFFFF) -> list[bytes]:
    """Allows the call where argument & mask is one of values; both processors store the low half first."""
    code = [_instruction(_LOAD, _ARGUMENTS_AT + 8 * argument), _instruction(_AND, mask)]
    for value in values:
        code += [_instruction(_JUMP_IF_EQUAL, value, skip_if_false=1), _instruction(_RETURN, _ALLOW)]
    return [*code, _refusal(errno.EPERM)]


def _refusal(number: int) -> bytes:
    return _instruction(_RETURN, _ERRNO | number)


def _instruction(code: int, value: int, *, skip_if_true: int = 0, skip_if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, skip_if_true, skip_if_false, value)
