"""Best-fit packing of tokenised dialogues, with document boundaries kept."""
from bisect import bisect_right, insort
from collections import defaultdict, deque

import torch


class LengthBuckets:
    """Documents by length; finds the longest one that fits in O(log L)."""

    def __init__(self, docs):
        self.by_length = defaultdict(deque)
        for doc in docs:
            self.by_length[len(doc)].append(doc)
        self.lengths = sorted(self.by_length)

    def add(self, doc):
        bucket = self.by_length[len(doc)]
        if not bucket:
            insort(self.lengths, len(doc))
        bucket.append(doc)

    def take(self, room):
        at = bisect_right(self.lengths, room) - 1
        if at < 0:
            return None
        length = self.lengths[at]
        bucket = self.by_length[length]
        doc = bucket.popleft()
        if not bucket:
            del self.lengths[at]
        return doc

    def __bool__(self):
        return bool(self.lengths)


def pack(docs, row_len):
    """Returns a list of rows, each a list of whole documents."""
    too_long = sum(len(d) > row_len for d in docs)
    if too_long:
        raise ValueError(f"{too_long} documents are longer than {row_len}; split them first")
    buckets = LengthBuckets(d for d in docs if len(d))
    rows = []
    while buckets:
        row, room = [], row_len
        while (doc := buckets.take(room)) is not None:
            row.append(doc)
            room -= len(doc)
        rows.append(row)
    return rows


def to_tensors(rows, row_len, fill_id):
    """Token ids, document numbers (for the block mask) and positions."""
    ids = torch.full((len(rows), row_len), fill_id, dtype=torch.long)
    doc = torch.full((len(rows), row_len), -1, dtype=torch.long)
    pos = torch.zeros((len(rows), row_len), dtype=torch.long)
    for r, row in enumerate(rows):
        at = 0
        for d, tokens in enumerate(row):
            end = at + len(tokens)
            ids[r, at:end] = torch.as_tensor(tokens)
            doc[r, at:end] = d
            pos[r, at:end] = torch.arange(len(tokens))
            at = end
    return ids, doc, pos


def labels_for(ids, doc, ignore=-100):
    """Next-token labels that never cross from one document into the next."""
    labels = torch.full_like(ids, ignore)
    same = (doc[:, 1:] == doc[:, :-1]) & (doc[:, 1:] >= 0)
    labels[:, :-1] = torch.where(same, ids[:, 1:], ignore)
    return labels
