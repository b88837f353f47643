"""The step at which a plan goes over to compiled code: waits until the process that compiles it meanwhile is done"""

import time
from collections.abc import Callable
from pathlib import Path

from intone.errors import DiskFull, UserError
from intone.paths import FolderLock
from intone.pulse import beat

LOCK = "compiling.lock"  # in a job folder; held as long as somebody compiles for the job (tune/background.py)
LOOK_EVERY_S = 0.2


def is_compiling(folder: Path) -> bool:
    """Whether a process is compiling code for the job in folder."""
    if not (folder / LOCK).exists():
        return False
    try:
        FolderLock(folder / LOCK, what="the code of this job").close()
    except DiskFull:
        return False
    except UserError:
        return True
    return False


def waited_for_code(folder: Path, should_stop: Callable[[], bool]) -> bool:
    """Blocks while code is compiled for the job in folder, with signs of life; False where it was told to stop."""
    while is_compiling(folder):
        if should_stop():
            return False
        beat(folder)
        time.sleep(LOOK_EVERY_S)
    return True
