"""The processes that train together: what they tell each other, and how each of them learns that another is lost."""

import contextlib
import datetime
import json
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from intone.dist import World
from intone.errors import RankLost, UserError

# how long a process waits for the others at one place: the longest they may lawfully be apart is a cold compile or an
# evaluation of the first of them; half an hour is a guess at several times either
PATIENCE_S = 1800.0


class Waiting:
    """A collective under way. wait() returns what it makes, or raises RankLost."""

    def __init__(self, work: Any, result: Tensor) -> None:
        self._work, self._result = work, result

    def wait(self) -> Tensor:
        with telling_of_others():
            self._work.wait()
        return self._result


class Team:
    """One process among all that train together. Every method must be called by all of them in the same order.

    Of one process alone every method is what it would be with nobody else, and needs no set-up.
    """

    def __init__(self, world: World | None = None) -> None:
        self.world = world or World()

    @property
    def is_main(self) -> bool:
        return self.world.is_main

    @property
    def size(self) -> int:
        return self.world.size

    @property
    def rank(self) -> int:
        return self.world.rank

    @classmethod
    def join(cls, world: World, device: torch.device, *, patience_s: float = PATIENCE_S) -> "Team":
        """Meets the others at the address in the environment, as torchrun wrote it. Raises RankLost, UserError.

        Small numbers go through gloo on the CPU, so that they never wait for the queue of a GPU; tensors through
        NCCL where the device is one.
        """
        if world.size == 1:
            return cls(world)
        if device.type not in ("cpu", "cuda"):
            raise UserError(
                f"several processes cannot train together on device {device.type}",
                value=device.type,
                fix="use --devices 1, or --device cpu",
            )
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        with telling_of_others():
            dist.init_process_group(backend, timeout=datetime.timedelta(seconds=patience_s))
        return cls(world)

    def close(self) -> None:
        """Leaves the others. Not for the way out of an error: it may wait for a process that is no more."""
        if self.size > 1 and dist.is_initialized():
            with contextlib.suppress(RuntimeError):
                dist.destroy_process_group()

    # --- small things, on the host --------------------------------------------------------------------------------

    def sums(self, *numbers: int) -> tuple[int, ...]:
        """The sum of each number over all processes."""
        if self.size == 1:
            return numbers
        tensor = torch.tensor(numbers, dtype=torch.int64)
        with telling_of_others():
            dist.all_reduce(tensor)
        return tuple(tensor.tolist())

    def anyone(self, *answers: bool) -> tuple[bool, ...]:
        """Whether somebody says yes, to each question."""
        return tuple(total > 0 for total in self.sums(*map(int, answers)))

    def everyone_says(self, value: Any) -> list[Any]:
        """What each process says, in the order of ranks; anything that JSON can hold."""
        if self.size == 1:
            return [value]
        text = json.dumps(value).encode()
        longest = max(self._lengths(len(text)))
        mine = torch.zeros(longest, dtype=torch.uint8)
        mine[: len(text)] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        gathered = [torch.empty_like(mine) for _ in range(self.size)]
        with telling_of_others():
            dist.all_gather(gathered, mine)
        return [json.loads(bytes(tensor.tolist()).rstrip(b"\0")) for tensor in gathered]

    def main_says(self, value: Any) -> Any:
        """What the first process says; the value of the others does not count."""
        return self.everyone_says(value if self.is_main else None)[0]

    def _lengths(self, length: int) -> list[int]:
        numbers = [0] * self.size
        numbers[self.rank] = length
        return list(self.sums(*numbers))

    @contextlib.contextmanager
    def all_or_none(self) -> Iterator[None]:
        """The block succeeds in all processes, or raises in all: its own error where it failed, RankLost elsewhere."""
        try:
            yield
        except RankLost:
            raise
        except BaseException:
            self.anyone(True)
            raise
        if self.anyone(False)[0]:
            raise RankLost("another process of the run failed")

    # --- tensors, on the device -----------------------------------------------------------------------------------

    def sum_(self, tensor: Tensor) -> None:
        """tensor becomes its sum over all processes, in place."""
        if self.size > 1:
            with telling_of_others():
                dist.all_reduce(tensor)

    def spread_(self, tensors: Sequence[Tensor]) -> None:
        """The tensors become those of the first process, in place."""
        if self.size > 1:
            with telling_of_others():
                for tensor in tensors:
                    dist.broadcast(tensor, 0)

    def reduce_scatter(self, parts: Tensor) -> Waiting:
        """parts (size, ...) -> the sum over all processes of part number rank."""
        mine = torch.empty_like(parts[0])
        with telling_of_others():
            return Waiting(_scatter(mine, parts, async_op=True), mine)

    def all_gather(self, mine: Tensor, parts: Tensor) -> Waiting:
        """Writes mine of every process into parts (size, ...), in the order of ranks -> parts."""
        with telling_of_others():
            return Waiting(_gather(parts, mine, async_op=True), parts)


ALONE = Team()


def _scatter(mine: Tensor, parts: Tensor, *, async_op: bool) -> Any:
    """reduce_scatter over the first dimension; torch 2.13 renamed the function."""
    function = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
    return function(mine.view(-1), parts.view(-1), async_op=async_op)


def _gather(parts: Tensor, mine: Tensor, *, async_op: bool) -> Any:
    """all_gather over the first dimension; torch 2.13 renamed the function."""
    function = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    return function(parts.view(-1), mine.view(-1), async_op=async_op)


@contextlib.contextmanager
def telling_of_others() -> Iterator[None]:
    """What torch raises where another process is gone becomes RankLost; memory that ran out here stays what it is."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error):
            raise
        words = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RankLost(f"another process of the run ended or did not answer ({words})") from error

