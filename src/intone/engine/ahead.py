"""Steps that are launched before the results of the last one are read, while all that runs can do without the host"""

from collections.abc import Callable, Sequence

from intone.engine.fixed import FixedSteps, Result, can_step
from intone.engine.rows import Row
from intone.engine.scheduler import Scheduler


class Ahead:
    """Runs growing texts on FixedSteps: the step after the next is on the device while the host works on this one.

    What the host finds in a result (a stop text, a tool's call, the end) counts from the step after next on; what was
    computed for that row meanwhile is dropped, and keys that are not finite are wiped: a later text would read them
    behind its end. take(row, result): gives a row its token, its key counted before.
    is_wanted(): whether something else waits for the engine's thread, so that this must end soon.
    """

    def __init__(
        self, steps: FixedSteps, scheduler: Scheduler, *, take: Callable[[Row, Result], None],
        note_step: Callable[[int], None], is_wanted: Callable[[], bool],
    ) -> None:  # fmt: skip
        self._steps = steps
        self._scheduler = scheduler
        self._take = take
        self._note_step = note_step
        self._is_wanted = is_wanted
        self._is_hosts_turn = False

    def run(self) -> bool:
        """Steps as long as all rows go on by themselves -> whether there was one. Afterwards nothing is in flight."""
        rows = list(self._scheduler.rows)
        if self._is_hosts_turn:
            self._is_hosts_turn = False
            return False
        if not rows or len(rows) > self._steps.most_rows or not all(can_step(row) for row in rows):
            return False
        if not self._launch(rows, begin=True):
            return False
        tables = [row.table for row in rows]  # an ended row has none
        goes_on = True
        while self._steps.num_ahead:
            if goes_on:
                goes_on = not self._is_wanted() and self._launch(rows)
            results = self._steps.sync_result()
            for row, table, result in zip(rows, tables, results, strict=True):
                if row.has_ended:
                    if not result.is_finite and table is not None:
                        self._scheduler.cache.wipe(table)
                elif not row.is_paused and (result.is_usable or not result.is_finite):
                    self._take(row, result)
                    goes_on = goes_on and not row.has_ended and not row.is_paused
                elif not row.is_paused:
                    # the host draws this row's token, and so it feeds its last one again
                    goes_on, self._is_hosts_turn = False, True
        return True

    def forget(self) -> None:
        """The weights are others: steps that were captured with the old ones are captured anew."""
        self._steps.forget()

    def leave_kernels(self) -> bool:
        """After a failure: PyTorch computes steps from here on -> False where it did that already."""
        return self._steps.leave_kernels()

    def use_buckets(self, buckets: Sequence[int]) -> None:
        """Other lengths to make steps for; what was captured stays for when its length comes again."""
        self._steps.buckets = tuple(buckets)

    def _launch(self, rows: Sequence[Row], *, begin: bool = False) -> bool:
        """Reserves what the next step writes and starts it. False: for lack of pages, or because no row needs it."""
        cache, ahead = self._scheduler.cache, self._steps.num_ahead
        # a row's last token is never fed
        needed = [row for row in rows if len(row.ids) + ahead < row.group.limit]
        if not needed:
            return False
        for row in needed:
            assert row.table is not None, "a row that ended ends the loop"
            if not cache.reserve(row.table, 1 + ahead):
                return False
        if begin:
            self._steps.begin(rows)
        self._steps.launch()
        self._note_step(len(needed))
        return True
