"""Packing in n log n, and a loader that joins documents."""
import bisect
import heapq

import torch


def best_fit(docs, width):
    """Bins by free room in a sorted list; each search is a bisection."""
    rooms, bins = [], []
    for doc in sorted(docs, key=len, reverse=True):
        at = bisect.bisect_left(rooms, (len(doc), -1))
        if at == len(rooms):
            bins.append([doc])
            room, which = width - len(doc), len(bins) - 1
        else:
            room, which = rooms.pop(at)
            bins[which].append(doc)
            room -= len(doc)
        bisect.insort(rooms, (room, which))
    return bins


def worst_fit(docs, width):
    heap, bins = [], []
    for doc in docs:
        if heap and -heap[0][0] >= len(doc):
            room, which = heap[0]
            bins[which].append(doc)
            heapq.heapreplace(heap, (room + len(doc), which))
        else:
            bins.append([doc])
            heapq.heappush(heap, (len(doc) - width, len(bins) - 1))
    return bins


def join(docs, width):
    flat = torch.cat([torch.as_tensor(d) for d in docs])
    rows = len(flat) // width
    return flat[:rows * width].view(rows, width)


def flatten_collate(examples):
    """No padding: one row with lengths for a kernel of variable lengths."""
    ids = torch.cat(examples)
    lengths = torch.tensor([len(e) for e in examples])
    return ids, torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
