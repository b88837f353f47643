"""Measures sides against each other in turns: fresh processes, blocks in the order A B B A, one at work at a time.

A replicate is one fresh process per side; in it come rounds, each with two blocks per side, there and back, so that a
steady drift cancels. A round is one pair for every side but the first. After every replicate the verdict is asked,
and as soon as it is settled the measuring ends (verdict.judge says why that does not help luck). A round in which
something else interfered (noise.py) is set aside and done once more; where hardly any is left, rounds.judge_rounds
allows for the worst.
"""

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from intone.hardware import load_facts, quiet
from intone.log import human_duration, say
from intone.prove.live import LineChild, LiveFailed, Ready
from intone.prove.noise import Watch, disturbances, summary
from intone.prove.rounds import Block, Round, is_settled, judge_rounds, whole_rate
from intone.prove.verdict import MIN_PAIRS, Comparison, rejected
from intone.records import Outcome

# two per side and round. On a shared machine pairs of blocks of 0.5 s spread by 6 %, processes by half of that (LOG.md)
BLOCK_S = 1.0
QUICK_BLOCK_S = 0.5
MAX_PAIRS = 10
MIN_REPLICATES = 3
QUICK_MOST = 4  # replicates, of two pairs; two of three named +64 % less often, and A against A more often (LOG.md)
MAX_PAIRS_EACH = 3  # per replicate: more would be samples of the same processes
# sides so many times apart get blocks so much shorter: these spread by some 10 %, which a difference of 900 % can bear
FAR_APART, FAR_BLOCK = 10.0, 0.3
NEVER_QUIET = 2  # rounds, all disturbed, after which a quick measurement does none of them once more
SETTLE_S = 0.25  # of unmeasured work before the first round of a replicate: caches, clock and allocator settle in it


@dataclass(frozen=True)
class Side:
    """What is compared: how a fresh process of it starts, and what is asked of it.

    command goes with every block. count: how the size of a block is asked for ("steps", "requests"). unit: the key of
    the answer that says how much was done: "tokens", "supervised", "steps". size: of every block; None: found, so that
    a block takes block_s.
    """

    name: str
    start: Callable[[], LineChild]
    command: Mapping[str, Any] = field(default_factory=dict)
    count: str = "steps"
    unit: str = "tokens"
    size: int | None = None


@dataclass(frozen=True)
class SideResult:
    """What was measured of one side. Rates are units per second, over its undisturbed rounds where there are any."""

    name: str
    unit: str
    rate: float  # median over rounds
    low: float  # slowest and fastest round
    high: float
    first_s: float  # of the first process: its first step, with compiling where its code was not kept
    warm_first_s: float | None  # of the later processes, median; None: there was one process only
    peak_bytes: int | None
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Measured:
    """Everything a measurement says. comparisons: one per side after the first, against the first, in order."""

    sides: tuple[SideResult | None, ...]  # None: it failed before anything was measured
    comparisons: tuple[Comparison, ...]
    rounds: tuple[Round, ...]
    num_replicates: int
    quick: bool
    seconds: float
    unsteady: str  # what interfered most, in how many rounds; empty: nothing


class SideFailed(Exception):
    """A side that the others are compared with could not be measured."""

    def __init__(self, side: str, outcome: Outcome) -> None:
        super().__init__(f"{side} could not be measured: {outcome.message}")
        self.side = side
        self.outcome = outcome


def compare(a: Side, b: Side, **options: Any) -> Comparison:
    """The verdict on b against a; options are those of measure_rounds. Raises SideFailed where a fails."""
    return measure_rounds([a, b], **options).comparisons[0]


def measure_rounds(
    sides: Sequence[Side], *, quick: bool = False, max_pairs: int = MAX_PAIRS, block_s: float | None = None,
    limit_s: float | None = None, lock: bool = True, watch: Callable[..., Watch] = Watch,
    shape: tuple[int, int] | None = None,
) -> Measured:  # fmt: skip
    """Measures all sides in rounds A B C .. C B A until every verdict against the first is settled, or a limit is met.

    quick: at most four replicates of two pairs of short blocks, which prove large differences only. shape: exactly so
    many replicates of so many rounds instead, settled or not; a disturbed round is not done again then. limit_s: no
    replicate is begun after it. lock: take the machine's measuring lock; False only where the caller holds it. watch:
    what reads the signals. A side that fails is "rejected" and the others go on. Raises SideFailed where the first
    fails.
    """
    assert len(sides) > 1 and len({side.name for side in sides}) == len(sides), "sides have different names"
    with contextlib.ExitStack() as stack:
        if lock:
            what = f"the comparison of {' and '.join(side.name for side in sides)}"
            stack.enter_context(quiet(load_facts().folder, what))
        block_s = block_s or (QUICK_BLOCK_S if quick else BLOCK_S)
        session = Session(list(sides), quick, max_pairs, block_s, limit_s, watch, shape)
        return session.run()


@dataclass
class Session:
    """One measurement under way."""

    sides: list[Side]
    quick: bool
    max_pairs: int
    block_s: float
    limit_s: float | None
    watch: Callable[..., Watch]
    shape: tuple[int, int] | None = None
    rounds: list[Round] = field(default_factory=list)
    ready: dict[str, list[Ready]] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    speeds: dict[str, float] = field(default_factory=dict)  # steps or requests per second, as sizes are found
    failed: dict[str, Outcome] = field(default_factory=dict)
    pairs_each: int = 1
    num_replicates: int = 0

    def run(self) -> Measured:
        begin_s = time.monotonic()
        least = self.shape[0] if self.shape else MIN_REPLICATES
        while True:
            self._replicate(least)
            planned = self._planned(least)
            out_of_time = self.limit_s is not None and time.monotonic() - begin_s > self.limit_s
            hopeless = self.num_replicates >= least and all(entry.disturbed for entry in self.rounds)
            is_last = self.num_replicates >= planned or out_of_time or hopeless or not self._others()
            comparisons = [self._verdict(side, is_last=is_last, least=least) for side in self.sides[1:]]
            is_over = is_last or (self.num_replicates >= least and all(is_settled(entry) for entry in comparisons))
            each_s = (time.monotonic() - begin_s) / self.num_replicates
            self._progress(comparisons, None if is_over else (planned - self.num_replicates) * each_s)
            if is_over:
                break
        return Measured(
            tuple(self._side_result(side) for side in self.sides), tuple(comparisons), tuple(self.rounds),
            self.num_replicates, self.quick, time.monotonic() - begin_s,
            summary([entry.disturbed for entry in self.rounds]),
        )  # fmt: skip

    def _planned(self, least: int) -> int:
        """The most replicates that there will be."""
        if self.shape:
            return least
        return QUICK_MOST if self.quick else max(least, self.max_pairs // self.pairs_each)

    def _others(self) -> list[Side]:
        """The sides that still run, without the first."""
        return [side for side in self.sides[1:] if side.name not in self.failed]

    # --- measuring ------------------------------------------------------------------------------------------------

    def _replicate(self, least: int) -> None:
        """Fresh processes of all sides, and their rounds. least: replicates; the first one says how long all take."""
        self.num_replicates += 1
        with contextlib.ExitStack() as stack:
            begin_s = time.monotonic()
            children = self._start(stack)
            start_s = time.monotonic() - begin_s
            for side in self._running():
                self._settle(side, children[side.name])
            if self.num_replicates == 1:
                self._share_sizes()
                pair_s = 2 * sum(self.sizes[side.name] / self.speeds[side.name] for side in self._running())
                self.pairs_each = self._pairs_per_replicate(start_s / pair_s)
                most = self._planned(least)
                most_s = human_duration(most * (start_s + self.pairs_each * pair_s))
                say(f"a pair takes {human_duration(pair_s)}; at most {most * self.pairs_each} pairs, {most_s}")
            devices = {str(entry[-1].facts.get("device", "cpu")) for entry in self.ready.values()}
            watch = self.watch([child.pid for child in children.values()], has_gpu=not devices <= {"cpu", "mps"})
            for _ in range(self.pairs_each):
                if not self._round(children, watch) and self._may_be_quiet():
                    self._round(children, watch)  # once more: something interfered

    def _may_be_quiet(self) -> bool:
        """Whether a disturbed round is done once more. A quick look does not wait for a machine that is never quiet."""
        if self.shape:
            return False
        return not self.quick or len(self.rounds) < NEVER_QUIET or not all(entry.disturbed for entry in self.rounds)

    def _pairs_per_replicate(self, starts_per_pair: float) -> int:
        """As many as make a replicate's rounds worth its start: the root of the ratio of their costs.

        That is the cheapest where processes differ about as much as rounds (the usual result for nested samples).
        """
        if self.shape:
            return self.shape[1]
        if self.quick:
            return math.ceil(MIN_PAIRS / MIN_REPLICATES)
        return max(1, min(MAX_PAIRS_EACH, int(math.sqrt(starts_per_pair))))

    def _start(self, stack: contextlib.ExitStack) -> dict[str, LineChild]:
        """Ready processes of the sides. The first time one after the other, so that nothing disturbs compiling."""
        one_by_one = self.num_replicates == 1
        children: dict[str, LineChild] = {}

        def wait(side: Side) -> None:
            with self._watched(side):
                self.ready.setdefault(side.name, []).append(children[side.name].wait_ready())

        for side in self._running():
            with self._watched(side):
                children[side.name] = stack.enter_context(side.start())
            if one_by_one and side.name in children:
                wait(side)
        if not one_by_one:
            for side in self._running():
                wait(side)
        return children

    def _settle(self, side: Side, child: LineChild) -> None:
        """Unmeasured work; the first time it also finds how large a block of block_s is."""
        with self._watched(side):
            if side.size is not None:
                self.sizes[side.name] = side.size
                seconds = child.block(**side.command, **{side.count: side.size})["seconds"]
                self.speeds[side.name] = side.size / seconds
                return
            size = self.sizes.get(side.name)
            if size is not None:
                child.block(**side.command, **{side.count: max(1, round(size * SETTLE_S / self.block_s))})
                return
            size, seconds = 1, 0.0
            while seconds < SETTLE_S / 2:
                size = max(2 * size, round(size * SETTLE_S / seconds)) if seconds else 1
                seconds = child.block(**side.command, **{side.count: size})["seconds"]
            self.speeds[side.name] = size / seconds
            self.sizes[side.name] = max(1, round(self.speeds[side.name] * self.block_s))

    def _share_sizes(self) -> None:
        """Sides that are about equally fast get blocks of equal size: then they do the very same steps.

        Where all are far from the first, blocks are shorter: what they would tell more exactly is beyond doubt.
        """
        sizes = self.sizes.values()
        if any(side.size is not None for side in self.sides):
            return
        if len({side.count for side in self.sides}) == 1 and self._are_far_apart():
            self.block_s *= FAR_BLOCK
            self.sizes = {name: max(1, round(speed * self.block_s)) for name, speed in self.speeds.items()}
            return
        if sizes and max(sizes) <= 2 * min(sizes) and len({side.count for side in self.sides}) == 1:
            common = round(statistics.fmean(sizes))
            self.sizes = dict.fromkeys(self.sizes, common)

    def _are_far_apart(self) -> bool:
        """Whether every side that runs is many times faster or slower than the first, as far as sizes tell."""
        first, others = self.sides[0].name, [side.name for side in self._others()]
        ratios = [self.speeds[name] / self.speeds[first] for name in others if name in self.speeds]
        return bool(ratios) and all(max(ratio, 1 / ratio) >= FAR_APART for ratio in ratios)

    def _round(self, children: Mapping[str, LineChild], watch: Watch) -> bool:
        """There and back over all sides; False where something interfered."""
        sides = self._running()
        if len(self.rounds) % 2:
            sides.reverse()
        number = len(self.rounds)
        blocks: list[Block] = []
        for side in [*sides, *reversed(sides)]:
            if side.name in self.failed:
                continue
            with self._watched(side):
                before = watch.look()
                answer = children[side.name].block(**side.command, **{side.count: self.sizes[side.name]})
                after = watch.look()
                work = answer.get(side.unit)
                if isinstance(work, bool) or not isinstance(work, int | float) or not work > 0:
                    raise LiveFailed(Outcome("error", None, f"{side.name} answered {work!r} for {side.unit}"))
                seconds = answer["seconds"]
                blocks.append(Block(side.name, self.num_replicates, number, work, seconds, answer, before, after))
        looks = [(block.before, block.after) for block in blocks]
        found = disturbances(looks, watch.num_cpus, [block.side for block in blocks])
        self.rounds.append(Round(self.num_replicates, tuple(blocks), tuple(found)))
        return not found

    def _running(self) -> list[Side]:
        return [side for side in self.sides if side.name not in self.failed]

    @contextlib.contextmanager
    def _watched(self, side: Side) -> Iterator[None]:
        """A side that fails inside is out. Raises SideFailed where it is the first."""
        try:
            yield
        except LiveFailed as failure:
            if side is self.sides[0]:
                raise SideFailed(side.name, failure.outcome) from failure
            self.failed[side.name] = failure.outcome
            say(f"{side.name} is out: {failure.outcome.message}")

    # --- judging --------------------------------------------------------------------------------------------------

    def _verdict(self, side: Side, *, is_last: bool, least: int) -> Comparison:
        found = judge_rounds(self.rounds, self.sides[0].name, side.name, is_last=is_last, least=least)
        if side.name in self.failed:
            return rejected(self.failed[side.name].message, found if found.num_pairs else None)
        return found

    def _side_result(self, side: Side) -> SideResult | None:
        usable = [entry for entry in self.rounds if not entry.disturbed and entry.of(side.name)] or self.rounds
        rates = [whole_rate(entry.of(side.name)) for entry in usable if entry.of(side.name)]
        ready = self.ready.get(side.name, [])
        if not rates or not ready:
            return None
        peaks = [block.answer.get("peak_bytes") for entry in self.rounds for block in entry.of(side.name)]
        known = [peak for peak in peaks if isinstance(peak, int)]
        later = [entry.first_s for entry in ready[1:]]
        return SideResult(
            side.name, side.unit, statistics.median(rates), min(rates), max(rates), ready[0].first_s,
            statistics.median(later) if later else None, max(known, default=None), ready[-1].facts,
        )  # fmt: skip

    def _progress(self, comparisons: Sequence[Comparison], left_s: float | None) -> None:
        """One line per replicate on stderr. left_s: at most; None: it is over."""
        parts = []
        for side, found in zip(self.sides[1:], comparisons, strict=True):
            if found.ratio is not None:
                parts.append(f"{side.name} {found.span} {found.verdict}")
        num_disturbed = sum(bool(entry.disturbed) for entry in self.rounds)
        what = summary([entry.disturbed for entry in self.rounds])
        aside = f", {num_disturbed} of {len(self.rounds)} rounds disturbed: {what}" if num_disturbed else ""
        pairs = f"{len(self.rounds)} pairs" if len(self.rounds) > 1 else "1 pair"
        against = f"against {self.sides[0].name}: " if parts else "nothing was measured"
        left = "" if left_s is None else f"; at most {human_duration(left_s)} left"
        say(f"replicate {self.num_replicates}, {pairs}, {against}{', '.join(parts)}{aside}{left}")
