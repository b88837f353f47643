"""Bits per byte: how well a model predicts a text, in a unit that no tokenizer can change."""

import math
from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from intone.errors import UserError
from intone.evals.intervals import ratio

# logits of one pass, float32: 128 MiB on a CPU, 1 GiB elsewhere (guess: large enough to keep the device busy)
LOGITS_PER_PASS = {"cpu": 1 << 25, "other": 1 << 28}


class Rows(Protocol):
    """A batch of data/loader.py: ids, targets and documents (B, T) int32."""

    @property
    def ids(self) -> np.ndarray: ...

    @property
    def targets(self) -> np.ndarray: ...

    @property
    def documents(self) -> np.ndarray | None: ...


def bits_per_byte(
    model: Any, batches: Iterable[Rows], token_bytes: np.ndarray, *, device: torch.device, dtype: torch.dtype
) -> dict[str, Any]:
    """-> {"value", "low", "high", "num_bytes"}: bits per byte of text and its 95% interval over rows.

    token_bytes (V,): bytes of text behind every id. Targets that are -1 or have no bytes (special tokens) count
    neither in bits nor in bytes. dtype is that of the computation; the model's own is put back afterwards.
    Rows are resampled as if they were independent. Waits for the device once, at the end.
    Raises UserError where the batches hold no text.
    """
    sums = row_sums(model, batches, token_bytes, device=device, dtype=dtype)
    nats, num_bytes = sums[sums[:, 1] > 0].T
    if len(nats) == 0:
        raise UserError("the validation text is empty: no bits per byte", value=0, fix="give more text as --val")
    result = ratio(nats / math.log(2), num_bytes)
    return {"value": result.value, "low": result.low, "high": result.high, "num_bytes": int(num_bytes.sum())}


@torch.inference_mode()
def row_sums(
    model: Any, batches: Iterable[Rows], token_bytes: np.ndarray, *, device: torch.device, dtype: torch.dtype
) -> np.ndarray:
    """(N, 2) float64: nats and bytes of every row, counted as in bits_per_byte. Waits for the device once."""
    sizes = torch.from_numpy(token_bytes.astype(np.int64)).to(device)
    before, model.compute_dtype = model.compute_dtype, dtype
    try:
        pieces = [_row_sums(model, batch, sizes) for batch in batches]
    finally:
        model.compute_dtype = before
    return torch.cat(pieces).cpu().numpy() if pieces else np.zeros((0, 2))


def _row_sums(model: Any, batch: Rows, sizes: Tensor) -> Tensor:
    """Nats and bytes of every row: (B, 2) float64 on the device."""
    device = sizes.device
    kind = "cpu" if device.type == "cpu" else "other"
    num_rows, length = batch.ids.shape
    step = max(1, LOGITS_PER_PASS[kind] // (length * len(sizes)))
    pieces = []
    for begin in range(0, num_rows, step):
        part = slice(begin, begin + step)
        ids, targets = (torch.from_numpy(array[part]).to(device).long() for array in (batch.ids, batch.targets))
        documents = None if batch.documents is None else torch.from_numpy(batch.documents[part]).to(device)
        num_bytes = torch.where(targets >= 0, sizes[targets.clamp(min=0)], 0)
        logits = model.logits(ids, documents=documents)
        counted = targets.masked_fill(num_bytes == 0, -1)
        nats = F.cross_entropy(logits.flatten(0, 1), counted.flatten(), ignore_index=-1, reduction="none")
        # float64: a sum over a row of float32 terms would lose digits that comparisons need
        nats = nats.view(ids.shape).double()
        pieces.append(torch.stack((nats.sum(1), num_bytes.double().sum(1)), dim=1))
    return torch.cat(pieces)
