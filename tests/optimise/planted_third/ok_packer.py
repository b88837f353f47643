"""Best-fit packing of SFT examples through a table of rows by free room."""
import numpy as np
import torch


class RoomTable:
    """Open rows grouped by free room; a bitmask of the rooms in use finds the tightest fit."""

    def __init__(self, capacity):
        self.capacity = capacity
        self.by_room = [[] for _ in range(capacity + 1)]
        self.used = 0

    def put(self, room, row):
        self.by_room[room].append(row)
        self.used |= 1 << room

    def take(self, n):
        fits = self.used >> n
        if not fits:
            return None
        room = n + (fits & -fits).bit_length() - 1
        row = self.by_room[room].pop()
        if not self.by_room[room]:
            self.used &= ~(1 << room)
        return room, row


def pack(lengths, capacity):
    rows, table = [], RoomTable(capacity)
    for i in np.argsort(-np.asarray(lengths), kind="stable"):
        n = int(lengths[i])
        if n > capacity:
            raise ValueError(f"example {i} has {n} tokens, a row holds {capacity}")
        got = table.take(n)
        if got is None:
            got = capacity, len(rows)
            rows.append([])
        room, row = got
        rows[row].append(int(i))
        if room > n:
            table.put(room - n, row)
    return rows


class PackedExamples(torch.utils.data.Dataset):
    def __init__(self, examples, capacity=4096, eos=0):
        self.examples = examples
        self.capacity = capacity
        self.eos = eos
        self.rows = pack([len(e["ids"]) for e in examples], capacity)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, r):
        ids = torch.full((self.capacity,), self.eos)
        labels = torch.full((self.capacity,), -100)
        segment = torch.zeros(self.capacity, dtype=torch.long)
        position = torch.zeros(self.capacity, dtype=torch.long)
        at = 0
        for s, i in enumerate(self.rows[r], start=1):
            ex = self.examples[i]
            n = len(ex["ids"])
            where = slice(at, at + n)
            ids[where] = torch.as_tensor(ex["ids"])
            labels[where] = torch.as_tensor(ex["labels"])
            labels[at] = -100
            segment[where] = s
            position[where] = torch.arange(n)
            at += n
        return {"ids": ids, "labels": labels, "segment": segment, "position": position}
