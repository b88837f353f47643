"""Leaves sandboxed Python its standard library and an empty folder: by a root of its own, or by Landlock.

Imported in the sandbox's own process: only the standard library.
"""

import ctypes
import os
import struct
import sys

from intone.engine.sandbox import kernel

WORK = "/work"  # where code runs, inside a root of its own
_SYSTEM_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64")

# linux/landlock.h
_QUERY_VERSION = 1
_RULE_PATH_BENEATH = 1
_READ = (1 << 0) | (1 << 2) | (1 << 3)  # execute (map a library), read a file, list a folder
_TRUNCATE_VERSION = 3  # before it, files outside could be emptied: not enough
# what each version can forbid: bits for files, for the network, for signals and abstract sockets
_FORBIDDEN = {3: (15, 0, 0), 4: (15, 2, 0), 5: (16, 2, 0), 6: (16, 2, 2)}


def library_folders() -> list[str]:
    """Folders this interpreter loads modules and shared objects from, none inside another, absolute."""
    found = {os.path.dirname(os.__file__), *sys.path, *_SYSTEM_LIBRARIES, *_mapped_folders()}
    kept: list[str] = []
    for folder in sorted(folder for folder in found if os.path.isabs(folder) and os.path.isdir(folder)):
        if not any(folder.startswith(f"{other.rstrip('/')}/") for other in kept):
            kept.append(folder)
    return kept


def _mapped_folders() -> set[str]:
    """Where the shared objects lie that are loaded already: their neighbours may be needed next."""
    with open("/proc/self/maps") as file:
        paths = [line.split(maxsplit=5)[5].strip() for line in file if line.count("/")]
    return {os.path.dirname(path) for path in paths if ".so" in os.path.basename(path)}


def enter_private_root(mount_point: str, folders: list[str], *, uid: int, gid: int, disk_bytes: int) -> None:
    """Makes folders, read-only, and an empty WORK of disk_bytes in memory all there is of the file system.

    Needs a mount namespace of its own and the right to mount in it. mount_point: any existing folder.
    Raises OSError.
    """
    quiet = kernel.MS_NOSUID | kernel.MS_NODEV
    kernel.mount(None, "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    kernel.mount("tmpfs", mount_point, "tmpfs", quiet, "mode=755,size=1m")
    for folder in folders:
        os.makedirs(mount_point + folder, mode=0o755)
        kernel.mount(folder, mount_point + folder, None, kernel.MS_BIND | kernel.MS_REC)
    os.mkdir(mount_point + WORK, mode=0o755)
    kernel.make_read_only(mount_point)
    kernel.mount(
        "tmpfs", mount_point + WORK, "tmpfs", quiet, f"mode=700,uid={uid},gid={gid},size={disk_bytes},nr_inodes=1000"
    )
    kernel.enter_root(mount_point)
    os.chdir(WORK)


def landlock(folders: list[str]) -> None:
    """Lets this process read folders and nothing else, and write nowhere. Raises OSError where that is not possible.

    Names, sizes and times of other files stay visible, their content does not. Forbids new privileges on the way.
    """
    version = kernel.call("landlock_create_ruleset", None, 0, _QUERY_VERSION)
    if version < _TRUNCATE_VERSION:
        raise OSError(f"Landlock version {version} is too old, {_TRUNCATE_VERSION} is needed (Linux 6.2)")
    counts = _FORBIDDEN[min(version, max(_FORBIDDEN))]
    attributes = struct.pack("=QQQ", *((1 << count) - 1 for count in counts))
    # the kernel takes a longer structure than it knows only where the rest is zero: cut to this version's length
    size = 8 if version < 4 else 16 if version < 6 else 24
    rules = kernel.call("landlock_create_ruleset", ctypes.create_string_buffer(attributes, len(attributes)), size, 0)
    for folder in folders:
        opened = os.open(folder, os.O_PATH | os.O_CLOEXEC)
        rule = ctypes.create_string_buffer(struct.pack("=Qi", _READ, opened), 12)
        kernel.call("landlock_add_rule", rules, _RULE_PATH_BENEATH, rule, 0)
        os.close(opened)
    kernel.forbid_new_privileges()
    kernel.call("landlock_restrict_self", rules, 0)
    os.close(rules)
