"""Steps that are launched before the results of the last ones are read, while all that runs can do without the host"""

from collections.abc import Callable, Sequence
from time import perf_counter

from intone.engine.fixed import FixedSteps, Result, can_step
from intone.engine.kv import Table
from intone.engine.rows import Row
from intone.engine.scheduler import Scheduler

# of a lump: what the host does once for all of its steps costs least in long ones, but readers see tokens in lumps, and
# whoever comes waits for two of them
LUMP_S = 0.01


class Ahead:
    """Runs growing texts on FixedSteps: a lump of steps is on the device while the host works on the one before.

    What the host finds in a result (a stop text, a tool's call, the end) counts behind the steps that are launched;
    what was computed for that row meanwhile is dropped, and keys that are not finite are wiped: a later text would read
    them behind its end. Nothing is launched once a row has ended: its pages may be another's then.
    take(row, result): gives a row its token, its key counted before.
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
        self._step_s: float | None = None  # of the steps of the last lump that was read

    def run(self) -> bool:
        """Steps as long as all rows go on by themselves -> whether there was one. Afterwards nothing is in flight."""
        rows = list(self._scheduler.rows)
        if self._is_hosts_turn:
            self._is_hosts_turn, self._step_s = False, None  # what may need the host again begins with single steps
            return False
        if not rows or len(rows) > self._steps.most_rows or not all(can_step(row) for row in rows):
            return False
        if not self._launch(rows, begin=True):
            return False
        tables = [row.table for row in rows]  # an ended row has none
        goes_on, begin_s = True, perf_counter()
        while lump := self._steps.num_ahead:
            if goes_on:
                goes_on = not self._is_wanted() and self._launch(rows)
            for _ in range(lump):
                goes_on = self._hand_over(rows, tables) and goes_on
            begin_s, last_s = perf_counter(), begin_s
            self._step_s = (begin_s - last_s) / lump
        return True

    def _hand_over(self, rows: Sequence[Row], tables: Sequence[Table | None]) -> bool:
        """Reads a step and gives every row its token -> whether all of them go on by themselves."""
        goes_on = True
        for row, table, result in zip(rows, tables, self._steps.sync_result(), strict=True):
            if row.has_ended:
                if not result.is_finite and table is not None:
                    self._scheduler.cache.wipe(table)
            elif not row.is_paused and (result.is_usable or not result.is_finite):
                self._take(row, result)
                goes_on = goes_on and not row.has_ended and not row.is_paused
            elif not row.is_paused:
                # the host draws this row's token, and so it feeds its last one again
                goes_on, self._is_hosts_turn = False, True
        return goes_on

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
        """Reserves what the next lump writes and starts it. False: for lack of pages, or because no row needs it."""
        ahead = self._steps.num_ahead
        # a row's last token is never fed
        left = [row.group.limit - len(row.ids) - ahead for row in rows]
        needed = [row for row, count in zip(rows, left, strict=True) if count > 0]
        if not needed:
            return False
        lump = 1 if not self._step_s else max(1, int(LUMP_S / self._step_s))
        lump = min(lump, self._steps.most_ahead // 2, *(count for count in left if count > 0))
        if not self._reserved(needed, ahead + lump):
            lump = 1
            if not self._reserved(needed, ahead + lump):
                return False
        if begin:
            self._steps.begin(rows)
        for _ in range(lump):
            self._steps.launch()
            self._note_step(len(needed))
        return True

    def _reserved(self, rows: Sequence[Row], count: int) -> bool:
        """Whether there are pages for the next count tokens of these rows."""
        for row in rows:
            assert row.table is not None, "a row that ended ends the loop"
            if not self._scheduler.cache.reserve(row.table, count):
                return False
        return True
