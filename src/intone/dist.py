"""Which of the processes of a many-device run this one is, as torchrun says; needs no torch."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from intone.errors import UserError


@dataclass(frozen=True)
class World:
    """This process among all: rank of size, and its place on its own node."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def is_main(self) -> bool:
        """True in the one process that writes logs and checkpoints."""
        return self.rank == 0


def read_world(environment: Mapping[str, str] = os.environ) -> World:
    """The world of RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE; one process where none is set.

    Raises UserError where only some are set, or where they contradict each other.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    found = {name: environment[name] for name in names if name in environment}
    if not found:
        return World()
    fix = "start it with torchrun, or unset " + ", ".join(found)
    for name in names:
        if name not in found:
            raise UserError(f"{name} is not set, but {', '.join(found)} is", value=found, fix=fix)
    try:
        rank, size, local_rank, local_size = (int(found[name]) for name in names)
    except ValueError:
        raise UserError(f"{found} are not whole numbers", value=found, fix=fix) from None
    if not (0 <= rank < size and 0 <= local_rank < local_size <= size):
        raise UserError(f"rank {rank} of {size}, local rank {local_rank} of {local_size}: these contradict each other",
                        value=found, fix=fix)  # fmt: skip
    return World(rank, size, local_rank, local_size)
