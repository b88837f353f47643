"""Cut a stream of documents into rows using prefix sums."""
from typing import Sequence, Tuple

import numpy as np
import torch


def flatten(docs: Sequence[np.ndarray], eos: int) -> Tuple[np.ndarray, np.ndarray]:
    lengths = np.fromiter((len(d) + 1 for d in docs), dtype=np.int64, count=len(docs))
    ends = np.cumsum(lengths)
    flat = np.full(int(ends[-1]) if len(docs) else 0, eos, dtype=np.int32)
    for doc, end, length in zip(docs, ends, lengths):
        flat[end - length : end - 1] = doc
    return flat, ends


def rows(docs: Sequence[np.ndarray], width: int, eos: int):
    flat, ends = flatten(docs, eos)
    count = len(flat) // width
    ids = torch.from_numpy(flat[: count * width].reshape(count, width))
    segment = np.searchsorted(ends, np.arange(count * width), side="right").reshape(count, width)
    return ids, torch.from_numpy(segment)


def cu_seqlens(segment: torch.Tensor) -> torch.Tensor:
    """Boundaries for variable-length attention over all rows laid end to end."""
    width = segment.size(1)
    line = segment.reshape(-1)
    change = torch.ones_like(line, dtype=torch.bool)
    change[1:] = line[1:] != line[:-1]
    change[::width] = True
    starts = change.nonzero().squeeze(1)
    return torch.cat([starts, starts.new_tensor([line.numel()])]).to(torch.int32)
