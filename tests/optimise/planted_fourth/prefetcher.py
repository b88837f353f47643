"""Feeds token batches to the GPU while the previous step is still running."""
from typing import Iterable, Iterator, Tuple

import numpy as np
import torch


class TokenSource:
    """Rows of a flat token file, fetched by row number."""

    def __init__(self, path: str, seq_len: int):
        self.tokens = np.memmap(path, dtype=np.uint16, mode="r")
        self.seq_len = seq_len

    def __len__(self) -> int:
        return (len(self.tokens) - 1) // self.seq_len

    def fill(self, out: torch.Tensor, rows: Iterable[int]) -> None:
        view = out.numpy()
        for slot, row in enumerate(rows):
            a = row * self.seq_len
            view[slot] = self.tokens[a : a + self.seq_len + 1]


class CudaPrefetcher:
    """Iterates over device batches of (inputs, targets).

    row_batches gives the row numbers of each batch, already shuffled and
    sharded by the caller, who also keeps track of the position.
    """

    def __init__(self, source: TokenSource, row_batches: Iterable, batch_size: int, device: torch.device):
        self.source = source
        self.row_batches = iter(row_batches)
        self.device = device
        self.stream = torch.cuda.Stream(device)
        self.staging = torch.empty(batch_size, source.seq_len + 1, dtype=torch.int64, pin_memory=True)
        self.ready = None
        self._stage()

    def _stage(self) -> None:
        rows = next(self.row_batches, None)
        if rows is None:
            self.ready = None
            return
        self.source.fill(self.staging, rows)
        with torch.cuda.stream(self.stream):
            self.ready = self.staging.to(self.device, non_blocking=True)

    def __iter__(self) -> Iterator[Tuple[torch.Tensor, torch.Tensor]]:
        return self

    def __next__(self) -> Tuple[torch.Tensor, torch.Tensor]:
        if self.ready is None:
            raise StopIteration
        current = torch.cuda.current_stream(self.device)
        current.wait_stream(self.stream)
        batch = self.ready
        batch.record_stream(current)
        self._stage()
        return batch[:, :-1], batch[:, 1:]
