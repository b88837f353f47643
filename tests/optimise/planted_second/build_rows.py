from typing import Iterable, Iterator, List, Optional, Sequence, Tuple

import torch

Document = Sequence[int]


class RowBuilder:
    """Fills rows of `capacity` tokens with whole documents, longest fitting document first."""

    def __init__(self, capacity: int, pad_id: int = 0):
        self.capacity = capacity
        self.pad_id = pad_id

    def _clip(self, docs: Iterable[Document]) -> List[Document]:
        return [d[: self.capacity] for d in docs if len(d) > 1]

    def plan(self, docs: Iterable[Document]) -> Iterator[List[Document]]:
        waiting = self._clip(docs)
        while waiting:
            room, row = self.capacity, []
            while True:
                best: Optional[Document] = max(
                    (d for d in waiting if len(d) <= room), key=len, default=None
                )
                if best is None:
                    break
                waiting.remove(best)
                row.append(best)
                room -= len(best)
            yield row

    def tensors(self, docs: Iterable[Document]) -> Iterator[Tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        for row in self.plan(docs):
            ids = torch.full((self.capacity,), self.pad_id, dtype=torch.long)
            seg = torch.full((self.capacity,), -1, dtype=torch.long)
            pos = torch.zeros(self.capacity, dtype=torch.long)
            at = 0
            for number, doc in enumerate(row):
                stop = at + len(doc)
                ids[at:stop] = torch.as_tensor(doc)
                seg[at:stop] = number
                pos[at:stop] = torch.arange(len(doc))
                at = stop
            yield ids, seg, pos


def fill_rate(builder: RowBuilder, docs: Sequence[Document]) -> float:
    rows = list(builder.plan(docs))
    used = sum(len(d) for row in rows for d in row)
    return used / (len(rows) * builder.capacity)
