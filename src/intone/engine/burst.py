"""Several tokens of every growing text in one call of our CPU kernels, while nothing needs the host in between"""

from collections.abc import Callable, Sequence

import numpy as np

from intone.engine.fixed import Result, can_step, stops_of
from intone.engine.native_decoder import NativeDecoder, as_drawing
from intone.engine.rows import Row
from intone.engine.sample import settings_of
from intone.engine.scheduler import Scheduler

# readers see a text's tokens in lumps of a call: so many tokens, and so long, at most; as serve/outbox.py sends them
MOST_STEPS = 8
MOST_LUMP_S = 0.03


class Bursts:
    """Steps of the scheduler's rows, as many in a call as take MOST_LUMP_S; the kernels draw the tokens themselves.

    A call ends with the first step in which a text ends. What only the host can find (a stop text) counts when the call
    is over; tokens behind it are dropped. take(row, result): gives a row its token, its key counted before.
    """

    def __init__(
        self, decoder: NativeDecoder, scheduler: Scheduler, *, take: Callable[[Row, Result], None],
        note_step: Callable[[int], None],
    ) -> None:  # fmt: skip
        self._decoder = decoder
        self._scheduler = scheduler
        self._take = take
        self._note_step = note_step
        self._rows: list[Row] = []
        self._has_logprobs = False

    def run(self) -> bool:
        """One call, if all rows go on by themselves and there is room for their tokens -> whether there was one."""
        rows = self._scheduler.rows
        if not rows or not all(can_step(row) for row in rows):
            return False
        if rows != self._rows:
            self._begin(rows)
        left = np.array([row.group.limit - len(row.ids) for row in rows])
        num_steps = min(self._most_steps(), int(left.min()))
        if not self._reserve(num_steps):
            num_steps = 1
            if not self._reserve(num_steps):
                return False  # somebody must give way
        fed = np.array(
            [
                [row.ids[-1] for row in rows],
                [row.ids[-2] if len(row.ids) > 1 else row.group.prompt[-1] for row in rows],
                [row.position - 1 for row in rows],
            ]
        )
        pages = [row.table.page_addresses() for row in rows if row.table is not None]
        found = self._decoder.burst(
            self._scheduler.cache.store, fed, pages, self._drawing, self._streams, self._stops, left,
            num_steps=num_steps, has_logprobs=self._has_logprobs,
        )  # fmt: skip
        self._hand_over(found)
        return True

    def _begin(self, rows: Sequence[Row]) -> None:
        """What stays the same while the same rows run."""
        self._rows = list(rows)
        requests = [row.group.request for row in rows]
        self._drawing = as_drawing(settings_of(requests, self._decoder.config.vocab_size))
        self._streams = np.array([row.stream for row in rows], dtype=np.uint64)
        self._has_logprobs = any(request.logprobs for request in requests)
        ends = [sorted(stops_of(row)) for row in rows]
        self._stops = np.full((len(rows), max(1, *(len(stops) for stops in ends))), -1)
        for place, stops in enumerate(ends):
            self._stops[place, : len(stops)] = stops

    def _most_steps(self) -> int:
        step_s = self._decoder.step_s(len(self._rows))
        return 1 if step_s is None else max(1, min(MOST_STEPS, int(MOST_LUMP_S / step_s)))

    def _reserve(self, num_steps: int) -> bool:
        reserve = self._scheduler.cache.reserve
        return all(row.table is not None and reserve(row.table, num_steps) for row in self._rows)

    def _hand_over(self, found: np.ndarray) -> None:
        with np.errstate(invalid="ignore", divide="ignore"):  # rows that are not finite have none
            logprobs = found["chosen"].astype(np.float64) - found["largest"] - np.log(found["total"])
        columns = (found["id"].tolist(), logprobs.tolist(), np.isfinite(found["largest"]).tolist())
        rows = self._rows  # the scheduler's own list changes with every end
        for step in zip(*columns, strict=True):
            self._note_step(len(rows))
            for row, token, logprob, is_finite in zip(rows, *step, strict=True):
                if not row.has_ended and not row.is_paused:
                    self._take(row, Result(token, logprob, True, is_finite))
