"""HOW auto batch works: finds the micro-batch that does a step's tokens in the fewest seconds, without running out.

An optimizer step sees a fixed number of rows; the recipe chose it. They go through the model in n equal passes of
B = ceil(rows / n) rows, so a step takes n * pass_s(B) + update_s seconds. Both the seconds and the memory of a pass
grow with B along a line, which two or three small probes show:

1. steps of two passes with one row each: seconds of a pass and of the update, and the memory of both;
2. four times the rows, then up to sixteen: lines through what was seen say what every other size needs;
3. of the sizes whose memory fits below a margin, the smallest whose step is within 1 % of the best and pads nothing;
4. that size, its neighbours and its best rival are measured in turns, and the measured winner is taken: a machine that
   others use has slow spells and fast ones, and a single look at a size may fall into either.

So the search never aims at running out of memory. Where a probe is not on the line (caches, tiles), sizes are doubled
and measured until they stop getting faster: the bisection below, which can also be asked for. That is the published
method: grow until memory runs out, halve the gap, take the largest size that leaves 15 % of memory.

A probe is a function, so this file knows no processes: probing.py runs the real worker, inplace.py a step of somebody
else's. What a probe tells and what a search answers are the plain records of found.py.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from intone.tune.curve import left_on_the_table, reason_for
from intone.tune.found import Found, Line, Measure, ProbeFailed, Size, fit

Method = Literal["line", "bisect"]

WITHIN = 0.01  # a smaller size within this of the best is taken: it leaves memory for others
# a size that pads its last pass must win by this over one that pads less: it computes more by arithmetic, and where two
# looks said otherwise the machine's slow spells did (LOG.md)
PADDED_WORTH = 0.03
MARGIN = 0.15  # of free memory, where nothing says how far off the line may be (the published algorithm's)
KNOWN_MARGIN = 0.02  # of free memory, beside three times the line's own error (training.md 3.2)
TIME_OFF_LINE = 0.10  # of a pass: noise of one probe on a shared machine is 5 % (CONTRACTS)
MEMORY_OFF_LINE = 0.05  # of the growth from the smallest probe to the largest
SEARCH_S = 12.0  # for probes; guess: with the child's start below 20 s
VERIFY_S = 5.0  # of SEARCH_S, for measuring the neighbours in turns
ROUNDS = 3
MAX_LOOKS = 3  # at where the line says the best is, each time with what was measured before
OVERTIME = 1.4  # of the budget, for one look at a choice that only the line knows: its memory is what is promised
MIN_BLOCK_S = 0.15  # a sample is at least this long: several steps of a small model
CHEAP = 0.02  # of the budget: a look that takes less is worth more than what noisy looks say against it


def candidates(rows_per_step: int) -> tuple[int, ...]:
    """Every micro-batch worth having: ceil(rows / n) for n passes. 12 rows: 1 2 3 4 6 12; never 5, which pads to 6."""
    return tuple(sorted({-(-rows_per_step // n) for n in range(1, rows_per_step + 1)}))


def passes_of(rows_per_step: int, rows: int) -> int:
    return -(-rows_per_step // rows)


@dataclass
class Search:
    """The state of one search: what was measured, and what is left of its time."""

    measure: Measure
    rows_per_step: int
    free_bytes: int | None
    budget_s: float = SEARCH_S
    clock: Callable[[], float] = time.monotonic
    samples: dict[int, list[float]] = field(default_factory=dict)  # rows -> seconds of a pass
    growth: dict[int, int] = field(default_factory=dict)
    line_growth: dict[int, int] = field(default_factory=dict)  # what the line said of a size before it was measured
    failed: set[int] = field(default_factory=set)  # ran out of memory
    updates: list[float] = field(default_factory=list)
    num_probes: int = 0
    num_failed: int = 0

    def __post_init__(self) -> None:
        self.sizes = candidates(self.rows_per_step)
        self.begin_s = self.clock()

    # --- probes ---------------------------------------------------------------------------------------------------

    def probe(self, rows: int) -> bool:
        """Measures a size; False where memory ran out. Two passes, as most steps have: gradients are there then."""
        passes = min(2, passes_of(self.rows_per_step, rows))
        steps = 1 if not self.samples else round(MIN_BLOCK_S / (passes * self.guess_s(rows) + self.update_s()))
        self.num_probes += 1
        expected = None if rows in self.growth else self.growth_at(rows)
        if expected is not None:
            self.line_growth.setdefault(rows, expected)
        try:
            sample = self.measure(rows, passes, max(1, min(5, steps)))
        except ProbeFailed as error:
            if not error.out_of_memory or not self.samples:
                raise
            self.failed.add(rows)
            self.num_failed += 1
            return False
        self.samples.setdefault(rows, []).append(sample.pass_s)
        self.updates.append(sample.update_s)
        growth = sample.growth_bytes
        if growth is not None and rows > max(self.growth, default=0):  # a smaller one sees what a larger left behind
            self.growth[rows] = growth
        return True

    # --- what is known --------------------------------------------------------------------------------------------

    def left_s(self) -> float:
        return self.budget_s - (self.clock() - self.begin_s)

    def update_s(self) -> float:
        return statistics.median(self.updates)

    def pass_s(self, rows: int) -> float:
        """The median of what was seen of a measured size."""
        return statistics.median(self.samples[rows])

    def points(self) -> list[tuple[int, float]]:
        return [(rows, self.pass_s(rows)) for rows in sorted(self.samples)]

    def guess_s(self, rows: int) -> float:
        """Seconds of a pass: measured, or by the line between its neighbours, or by that through all."""
        points = self.points()
        if len(points) == 1:
            return points[0][1] * rows / points[0][0]
        for left, right in zip(points, points[1:], strict=False):
            if left[0] <= rows <= right[0]:
                return fit([left, right]).at(rows)
        return max(fit(points).at(rows), points[-1][1] * min(1.0, rows / points[-1][0]))

    def memory_line(self) -> Line | None:
        """Through the two largest measured sizes: below them the update, not the passes, may be the worst moment."""
        points = sorted((rows, float(size)) for rows, size in self.growth.items())
        if len(points) < 2:
            return None
        line = fit(points[-2:])
        if len(points) == 2:
            return line
        return replace(line, off=max(0.0, *(line.at(rows) - size for rows, size in points[:-2])))

    def growth_at(self, rows: int) -> int | None:
        """Bytes above the start: measured, between the sizes around it, or by the line, at least the smallest seen."""
        if rows in self.growth:
            return self.growth[rows]
        points = sorted((size, float(growth)) for size, growth in self.growth.items())
        for left, right in zip(points, points[1:], strict=False):
            if left[0] < rows < right[0]:
                return int(fit([left, right]).at(rows))
        line = self.memory_line()
        return None if line is None else int(max(line.at(rows), min(self.growth.values())))

    def margin_bytes(self) -> int | None:
        if self.free_bytes is None:
            return None
        line = self.memory_line()
        if line is None or line.off is None or not self.is_on_line():
            return int(MARGIN * self.free_bytes)
        return int(3 * line.off + KNOWN_MARGIN * self.free_bytes)

    def fits(self, rows: int) -> bool:
        if rows in self.failed or any(rows >= size for size in self.failed):
            return False
        need, margin = self.growth_at(rows), self.margin_bytes()
        return need is None or margin is None or self.free_bytes is None or need <= self.free_bytes - margin

    def step_s(self, rows: int) -> float:
        return passes_of(self.rows_per_step, rows) * self.guess_s(rows) + self.update_s()

    def is_on_line(self) -> bool:
        """Whether the measured points lie on lines, in seconds and in bytes; two points always do."""
        times = self.points()
        if len(times) > 2 and any(abs(fit(times).at(x) - y) > TIME_OFF_LINE * y for x, y in times):
            return False
        sizes = sorted((rows, float(size)) for rows, size in self.growth.items())
        if len(sizes) < 3:
            return True
        span = sizes[-1][1] - sizes[0][1]
        return (fit(sizes).off or 0.0) <= MEMORY_OFF_LINE * max(span, 1.0)

    def believed(self) -> list[int]:
        """The sizes that fit, as far as their seconds are known: all of them on a line, else the measured ones."""
        fitting = [rows for rows in self.sizes if self.fits(rows)] or [self.sizes[0]]
        return fitting if self.is_on_line() else [rows for rows in fitting if rows in self.samples]

    def known(self) -> list[int]:
        """The sizes that fit whose seconds are known: measured, or believed."""
        return sorted({*self.believed(), *filter(self.fits, self.samples)})

    def best(self, rows: Sequence[int]) -> int:
        """The smallest of these sizes whose step is within 1 % of the fastest, of those that pad the least."""
        near = self.within(PADDED_WORTH, rows)
        least = min(map(self.computed, near))
        return min(self.within(WITHIN, [size for size in near if self.computed(size) == least]))

    def within(self, share: float, rows: Sequence[int]) -> list[int]:
        bar = (1 + share) * min(map(self.step_s, rows))
        return [size for size in rows if self.step_s(size) <= bar]

    def computed(self, rows: int) -> int:
        """The rows of all passes of a step, those included that fill up the last one and are ignored."""
        return passes_of(self.rows_per_step, rows) * rows

    def nearest(self, rows: float) -> int:
        return min(self.sizes, key=lambda size: (abs(size - rows), size))


def search_batch(
    measure: Measure, rows_per_step: int, free_bytes: int | None, *, method: Method = "line",
    budget_s: float = SEARCH_S, verify_s: float = VERIFY_S, clock: Callable[[], float] = time.monotonic,
) -> Found:  # fmt: skip
    """The micro-batch for steps of so many rows. Raises ProbeFailed where not even one row can be probed.

    free_bytes: what memory may grow by beyond that before the first step; None: unknown, then nothing is refused.
    """
    search = Search(measure, rows_per_step, free_bytes, budget_s, clock)
    search.probe(search.sizes[0])
    if method == "bisect":
        rows = largest_by_bisection(search)
        return found(search, rows, "bisect")
    name = "line"
    is_line = probe_line(search)
    if not is_line:
        name = "line, then bisect"
        grow_until_flat(search)
    rows = search.best(search.believed() or search.sizes[:1])
    for _ in range(MAX_LOOKS):
        verified(search, rows, verify_s)
        if is_line and not search.is_on_line():  # what was seen later does not fit to the first probes
            name, is_line = "line, then bisect", False
            grow_until_flat(search)
        rows = search.best(search.believed() or search.sizes[:1])
        if not can_probe(search, rows):  # it was measured, or there is no time: then the measured ones decide
            break
    rows = winner(search)
    if rows not in search.samples and search.fits(rows) and looks_in_overtime(search, rows):
        search.probe(rows)
        rows = winner(search)
    return found(search, rows, name)


def looks_in_overtime(search: Search, rows: int) -> bool:
    """Whether a first look at a size ends before the time beyond the budget does."""
    return first_look_s(search, rows) <= search.left_s() + (OVERTIME - 1) * search.budget_s


def probe_line(search: Search) -> bool:
    """Probes two more sizes as far as time and a quarter of memory allow -> whether all are on a line."""
    smallest = search.sizes[0]
    for wanted in (4 * smallest, 16 * smallest):
        rows = search.nearest(wanted)
        while rows not in search.samples and (not affordable(search, rows) or not is_small(search, rows)):
            rows = search.nearest(rows / 2) if search.nearest(rows / 2) < rows else smallest
        if rows in search.samples or (is_flat(search) and not is_cheap(search, rows)):
            continue
        if not search.probe(rows):
            return False
    return search.is_on_line()


def affordable(search: Search, rows: int) -> bool:
    """Whether probing a size leaves time to verify; a second size says more than another look at the only one."""
    reserve_s = VERIFY_S / 2 if len(search.samples) > 1 else 0.0
    return first_look_s(search, rows) <= search.left_s() - reserve_s


def first_look_s(search: Search, rows: int) -> float:
    """What probing a new size takes: a first step and a timed one, of two passes each where a step has as many."""
    passes = min(2, passes_of(search.rows_per_step, rows))
    return 2 * (passes * search.guess_s(rows) + search.update_s())


def is_small(search: Search, rows: int) -> bool:
    """Whether a size surely fits: by the line at most half of free memory, with one point a quarter."""
    if search.free_bytes is None or not search.growth:
        return True
    known = search.growth_at(rows)
    if known is not None:
        return known <= search.free_bytes / 2
    largest = max(search.growth)
    return search.growth[largest] * rows / largest <= search.free_bytes / 4


def is_cheap(search: Search, rows: int) -> bool:
    """Whether a first look at a size takes next to nothing of the budget, as with steps of milliseconds."""
    return first_look_s(search, rows) <= CHEAP * search.budget_s


def is_flat(search: Search) -> bool:
    """Whether the two largest measured sizes say that a larger one saves nothing."""
    sizes = sorted(search.samples)[-2:]
    return len(sizes) == 2 and search.step_s(sizes[1]) > (1 + WITHIN) * search.step_s(sizes[0])


def grow_until_flat(search: Search) -> None:
    """Doubles and measures until steps stop getting faster or memory runs out, then looks on both sides of the best."""
    rows = search.nearest(2 * max(search.samples))
    while can_probe(search, rows) and (not is_flat(search) or is_cheap(search, rows)):
        if not search.probe(rows):
            break
        rows = search.nearest(2 * rows)
    while True:
        fitting = [rows for rows in search.samples if search.fits(rows)]
        best = min(fitting, key=search.step_s, default=None)
        if best is None:
            return
        around = sorted({*search.samples, *search.failed})
        place = around.index(best)
        beside = [rows for rows in around[max(0, place - 1) : place + 2] if rows != best]
        gaps = [search.nearest((best * rows) ** 0.5) for rows in beside]
        gap = next((rows for rows in reversed(gaps) if can_probe(search, rows)), None)
        if gap is None:
            return
        search.probe(gap)


def can_probe(search: Search, rows: int) -> bool:
    """Whether a size is new, may fit, and leaves time."""
    is_new = rows not in search.samples and rows not in search.failed
    return is_new and search.fits(rows) and affordable(search, rows)


def largest_by_bisection(search: Search) -> int:
    """The published method: double until memory runs out, halve the gap, keep 15 % of memory free.

    Memory has run out where a probe says so, or where it took more than there was to take.
    """
    limit = None if search.free_bytes is None else (1 - MARGIN) * search.free_bytes
    good, bad = search.sizes[0], None
    while good < search.sizes[-1]:
        rows = search.nearest(2 * good) if bad is None else search.nearest((good + bad) / 2)
        if rows <= good or (bad is not None and rows >= bad):
            break
        if search.probe(rows) and (limit is None or search.growth.get(rows, 0) <= limit):
            good = rows
        else:
            bad = rows
    return good


def verified(search: Search, rows: int, verify_s: float) -> None:
    """Measures this size, its neighbours and the best of the other measured ones, in alternating rounds, while there
    is time.

    A size that was not measured yet comes first: it is what the line promises.
    """
    place = search.sizes.index(rows)
    near = search.sizes[max(0, place - 1) : place + 2]
    rivals = [size for size in search.samples if size not in near and search.fits(size)]
    chosen = list({size for size in near if search.fits(size)} | {rows} | ({search.best(rivals)} if rivals else set()))
    end_s = search.clock() + min(verify_s, max(search.left_s(), 0.0))
    chosen.sort(key=lambda size: (size in search.samples, size != rows, size))
    for number in range(ROUNDS):
        for size in chosen if number % 2 == 0 else reversed(chosen):
            cost_s = min(2, passes_of(search.rows_per_step, size)) * search.guess_s(size) + search.update_s()
            is_over = search.clock() + cost_s * (1 if size in search.samples else 2) > end_s
            if search.fits(size) and not is_over:
                search.probe(size)


def winner(search: Search) -> int:
    """The best measured size where it is within 1 % of the best of all, which may be known by the line alone.

    Where only the line says that a step could be faster and there was no time to look, the line is believed.
    """
    known = [size for size in search.samples if search.fits(size)]
    if not known:
        return (search.believed() or search.sizes)[0]
    measured, best = search.best(known), search.best(search.known())
    is_near = search.step_s(measured) <= (1 + WITHIN) * search.step_s(best)
    return measured if is_near else best


def found(search: Search, rows: int, method: str) -> Found:
    """The search's answer with its curve and what it says about itself."""
    shown = {*search.samples, *search.failed, rows}
    if search.is_on_line():
        shown |= {size for size in search.sizes if size & (size - 1) == 0}  # powers of two, by the line
    curve = []
    for size in sorted(shown):
        how = "out of memory" if size in search.failed else "measured" if size in search.samples else "line"
        step_s = None if size in search.failed else search.step_s(size)
        growth = None if size in search.failed else search.growth_at(size)
        curve.append(Size(size, passes_of(search.rows_per_step, size), step_s, growth, how))
    margin = search.margin_bytes()
    reason = reason_for(search, rows, method, WITHIN, MARGIN)
    return Found(
        rows, method, reason, tuple(curve), search.update_s(), search.step_s(rows), search.free_bytes, margin,
        search.growth_at(rows), search.num_probes, search.num_failed, search.clock() - search.begin_s,
        left_on_the_table(search, rows, WITHIN), line_bytes=search.line_growth.get(rows),
    )  # fmt: skip
