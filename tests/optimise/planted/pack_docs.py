"""Put documents into rows of fixed length."""
import torch


def fullest_first(docs, width):
    """Take the largest document that still fits."""
    rows = []
    waiting = sorted(docs, key=len)
    while waiting:
        row, room = [], width
        while True:
            best = -1
            for i, d in enumerate(waiting):
                if len(d) <= room and (best < 0 or len(d) > len(waiting[best])):
                    best = i
            if best < 0:
                break
            d = waiting.pop(best)
            row.extend(d)
            room -= len(d)
        rows.append(row + [0] * room)
    return rows


class Bin:
    def __init__(self, width):
        self.room = width
        self.items = []

    def put(self, doc):
        self.items.append(doc)
        self.room -= len(doc)


def first_fit(docs, width):
    bins = []
    for doc in docs:
        target = next((b for b in bins if b.room >= len(doc)), None)
        if target is None:
            target = Bin(width)
            bins.append(target)
        target.put(doc)
    return bins


def concatenate(docs, width):
    """All documents end to end, cut in rows."""
    flat = torch.empty(0, dtype=torch.long)
    for doc in docs:
        flat = torch.cat([flat, torch.as_tensor(doc)])
    rows = len(flat) // width
    return flat[:rows * width].view(rows, width)
