"""What requests change in the model's logits before a token is drawn: penalties, biases, tokens that may not come."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from intone.engine.rows import Row


@dataclass
class _Seen:
    """How often each token occurs in one text: in its prompt, and among its new tokens. Both (V,) int32."""

    prompt: Tensor
    new: Tensor
    num_counted: int = 0


class Adjuster:
    """Keeps the counts that penalties need, for the rows that have any; rows without are never touched.

    repetition_penalty divides positive and multiplies negative logits of every token that the text has, prompt
    included (Keskar et al. 2019, CTRL, section 4.1); presence_penalty is subtracted once and frequency_penalty per
    occurrence for new tokens (OpenAI's API reference). For one thread.
    """

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self._vocab_size = vocab_size
        self._device = device
        self._seen: dict[Row, _Seen] = {}

    def adjusted(self, logits: Tensor, rows: Sequence[Row], masks: Mapping[int, np.ndarray]) -> Tensor:
        """logits (B, V) of rows with what their requests change; the same tensor where nothing does.

        masks: for some places in rows, (V,) bool, the tokens that the form of the answer allows.
        Where something changes, the result is a copy: the model's own numbers are still needed.
        """
        penalised = [i for i, row in enumerate(rows) if row.group.request.has_penalties]
        biased = [i for i, row in enumerate(rows) if row.group.bias or row.is_too_short]
        if not penalised and not biased and not masks:
            return logits
        logits = logits.clone()
        if penalised:
            index = torch.tensor(penalised, device=self._device)
            logits[index] = self._penalised(logits[index], [rows[i] for i in penalised])
        for i in biased:
            row = rows[i]
            if row.group.bias:
                ids, values = row.group.bias
                logits[i, torch.tensor(ids, device=self._device)] += torch.tensor(values, device=self._device)
            if row.is_too_short:
                logits[i, torch.tensor(sorted(row.group.stop_ids), device=self._device)] = -torch.inf
        for i, mask in masks.items():
            logits[i].masked_fill_(torch.from_numpy(~mask).to(self._device), -torch.inf)
        return logits

    def forget(self, row: Row) -> None:
        """Drops the counts of a row that has ended; harmless where it has none."""
        self._seen.pop(row, None)

    def clear(self) -> None:
        self._seen.clear()

    def _penalised(self, logits: Tensor, rows: list[Row]) -> Tensor:
        seen = [self._counted(row) for row in rows]
        requests = [row.group.request for row in rows]
        new = torch.stack([entry.new for entry in seen])
        in_text = torch.stack([entry.prompt for entry in seen]) + new > 0

        def column(name: str) -> Tensor:
            values = [getattr(request, name) for request in requests]
            return torch.tensor(values, dtype=logits.dtype, device=self._device)[:, None]

        repetition = column("repetition_penalty")
        repeated = torch.where(logits > 0, logits / repetition, logits * repetition)
        logits = torch.where(in_text, repeated, logits)
        return logits - column("frequency_penalty") * new - column("presence_penalty") * (new > 0)

    def _counted(self, row: Row) -> _Seen:
        """The counts of a row, brought up to its newest token."""
        seen = self._seen.get(row)
        if seen is None:
            seen = self._seen[row] = _Seen(self._counts(row.group.prompt), self._counts([]))
        if fresh := row.ids[seen.num_counted :]:
            index = torch.tensor(fresh, device=self._device)
            seen.new.index_add_(0, index, torch.ones_like(index, dtype=torch.int32))
            seen.num_counted = len(row.ids)
        return seen

    def _counts(self, ids: list[int]) -> Tensor:
        counts = torch.bincount(torch.tensor(ids, dtype=torch.int64), minlength=self._vocab_size)
        return counts.to(torch.int32).to(self._device)
