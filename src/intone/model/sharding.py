"""Which part of an optimizer group each process of a run updates, and how gradients get there and weights back.

Muon's matrices are dealt out whole, since it needs all of a matrix; AdamW's tensors are cut into flat ranges. A
process adds up and keeps only its own part: gradients are reduce-scattered, updated weights all-gathered.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from intone.team import Team, Waiting


@dataclass(frozen=True)
class Part:
    """Entries begin..end-1 of one tensor of the optimizer's state.

    is_flat: entries are numbers of the flattened tensor (AdamW), else its first dimension (Muon's matrices).
    """

    begin: int
    end: int
    is_flat: bool


def part_of(count: int, team: Team) -> tuple[int, int]:
    """(begin, end) of this process where count entries are cut into equal parts, the last ones shorter or empty."""
    each = -(-count // team.size)
    begin = min(team.rank * each, count)
    return begin, min(begin + each, count)


class GroupShard:
    """The part of one group that this process updates.

    params: what update functions change in place: whole matrices (m, n) for Muon, flat views for AdamW; maybe none.
    """

    def __init__(self, params: Sequence[nn.Parameter], team: Team, *, whole: bool) -> None:
        """whole: the group is dealt out by matrices. All params then have the same shape."""
        self._all, self._team, self._whole = list(params), team, whole
        if whole:
            begin, end = part_of(len(params), team)
            self.parts = [Part(begin, end, is_flat=False)]
            self.params: list[Tensor] = [p.detach() for p in self._all[begin:end]]
        else:
            ranges = [part_of(p.numel(), team) for p in params]
            self.parts = [Part(begin, end, is_flat=True) for begin, end in ranges]
            self.params = [p.detach().view(-1)[a:b] for p, (a, b) in zip(params, ranges, strict=True)]
        self._widths = [1] if whole else [-(-p.numel() // team.size) for p in params]

    @property
    def is_empty(self) -> bool:
        return all(part.begin == part.end for part in self.parts)

    def scatter(self) -> Waiting:
        """Begins to add up the gradients of all processes and frees them; what it makes goes into grads()."""
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._all]
        parts = self._stacked(grads) if self._whole else self._cut(grads)
        for p in self._all:
            p.grad = None
        return self._team.reduce_scatter(parts)

    def grads(self, summed: Tensor) -> list[Tensor]:
        """The summed gradients of params, in their order and shapes."""
        if self._whole:
            return list(summed[: len(self.params)])
        pieces = summed.split(self._widths)
        return [piece[: p.numel()] for piece, p in zip(pieces, self.params, strict=True)]

    def gather(self) -> "Gathering":
        """Begins to hand the updated weights to all processes."""
        size = self._team.size
        if self._whole:
            first, each = self._all[0], -(-len(self._all) // size)
            mine = first.new_zeros(each, *first.shape)
            for i, p in enumerate(self.params):
                mine[i] = p
            return Gathering(self, self._team.all_gather(mine, first.new_empty(size, *mine.shape)))
        mine = self._all[0].new_zeros(sum(self._widths))
        for piece, p in zip(mine.split(self._widths), self.params, strict=True):
            piece[: p.numel()] = p
        aligned = self._aligned()
        parts = mine.new_empty(size, len(mine)) if aligned is None else aligned.detach().view(size, -1)
        return Gathering(self, self._team.all_gather(mine, parts))

    def take(self, parts: Tensor) -> None:
        """The weights of all processes, as gathered, into the parameters."""
        if self._whole:
            for p, new in zip(self._all, parts.flatten(0, 1), strict=False):
                p.copy_(new)
        elif self._aligned() is None:
            for p, piece in zip(self._all, parts.split(self._widths, dim=1), strict=True):
                p.copy_(piece.reshape(-1)[: p.numel()].view_as(p))
        # weights that arrived in place changed behind PyTorch's back: who keeps something made from them must see it
        torch.autograd.graph.increment_version(self._all)

    def _aligned(self) -> nn.Parameter | None:
        """The parameter of a group of one that divides evenly: it needs no copy in between."""
        alone = len(self._all) == 1 and self._all[0].numel() % self._team.size == 0
        return self._all[0] if alone else None

    def _stacked(self, grads: list[Tensor]) -> Tensor:
        """(size, each, m, n), the places behind the last matrix zero."""
        each = -(-len(grads) // self._team.size)
        parts = grads[0].new_zeros(self._team.size, each, *grads[0].shape)
        torch.stack(grads, out=parts.view(-1, *grads[0].shape)[: len(grads)])
        return parts

    def _cut(self, grads: list[Tensor]) -> Tensor:
        """(size, sum of widths): row r holds the r-th range of every gradient."""
        size = self._team.size
        if self._aligned() is not None:
            return grads[0].reshape(size, -1)
        pieces = [
            F.pad(grad.reshape(-1), (0, width * size - grad.numel())).view(size, width)
            for grad, width in zip(grads, self._widths, strict=True)
        ]
        return torch.cat(pieces, dim=1)


@dataclass(frozen=True)
class Gathering:
    """Updated weights on their way to all processes; finish() waits for them and puts them in place."""

    shard: GroupShard
    waiting: Waiting

    def finish(self) -> None:
        self.shard.take(self.waiting.wait())
