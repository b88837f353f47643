"""Measures sides against each other in turns: fresh processes, blocks in the order A B B A, one at work at a time.

A replicate is one fresh process per side; in it come rounds, each with two blocks per side, there and back, so that a
steady drift cancels. A round is one pair for every side but the first. After every replicate the verdict is asked,
and as soon as it is settled the measuring ends (verdict.judge says why that does not help luck). A round in which
something else interfered (noise.py) is set aside and done once more; where hardly any is left, judge_rounds allows for
the worst.
"""

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from intone.hardware import load_facts, quiet
from intone.log import say
from intone.prove.live import LineChild, LiveFailed, Ready
from intone.prove.noise import Disturbance, Signals, Watch, disturbances, most_lost, summary
from intone.prove.verdict import MIN_PAIRS, Comparison, Pair, judge, percent, rejected, unproven
from intone.records import Outcome

# two per side and round. On a shared machine pairs of blocks of 0.5 s spread by 6 %, processes by half of that (LOG.md)
BLOCK_S = 1.0
MAX_PAIRS = 10
MIN_REPLICATES = 3
QUICK_REPLICATES = 2
MAX_PAIRS_EACH = 3  # per replicate: more would be samples of the same processes
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
class Block:
    """One measured block. answer: everything the child said, its losses and memory too."""

    side: str
    replicate: int
    round: int
    work: float
    seconds: float
    answer: Mapping[str, Any]
    before: Signals
    after: Signals


@dataclass(frozen=True)
class Round:
    """Two blocks per side in the order of time, and what interfered with them."""

    replicate: int
    blocks: tuple[Block, ...]
    disturbed: tuple[Disturbance, ...]

    def of(self, side: str) -> list[Block]:
        return [block for block in self.blocks if block.side == side]


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
    sides: Sequence[Side], *, quick: bool = False, max_pairs: int = MAX_PAIRS, block_s: float = BLOCK_S,
    limit_s: float | None = None, lock: bool = True, watch: Callable[..., Watch] = Watch,
    shape: tuple[int, int] | None = None,
) -> Measured:  # fmt: skip
    """Measures all sides in rounds A B C .. C B A until every verdict against the first is settled, or a limit is met.

    quick: two replicates are enough, which proves large differences only. shape: exactly so many replicates of so many
    rounds instead, settled or not; a disturbed round is not done again then. limit_s: no replicate is begun after it.
    lock: take the machine's measuring lock; False only where the caller holds it. watch: what reads the signals.
    A side that fails is "rejected" and the others go on. Raises SideFailed where the first fails.
    """
    assert len(sides) > 1 and len({side.name for side in sides}) == len(sides), "sides have different names"
    with contextlib.ExitStack() as stack:
        if lock:
            what = f"the comparison of {' and '.join(side.name for side in sides)}"
            stack.enter_context(quiet(load_facts().folder, what))
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
    failed: dict[str, Outcome] = field(default_factory=dict)
    pairs_each: int = 1
    num_replicates: int = 0

    def run(self) -> Measured:
        begin_s = time.monotonic()
        least = QUICK_REPLICATES if self.quick else MIN_REPLICATES
        least = self.shape[0] if self.shape else least
        while True:
            self._replicate()
            planned = least if self.quick or self.shape else max(least, self.max_pairs // self.pairs_each)
            out_of_time = self.limit_s is not None and time.monotonic() - begin_s > self.limit_s
            hopeless = self.num_replicates >= least and all(entry.disturbed for entry in self.rounds)
            is_last = self.num_replicates >= planned or out_of_time or hopeless or not self._others()
            comparisons = [self._verdict(side, is_last=is_last, least=least) for side in self.sides[1:]]
            self._progress(comparisons)
            if is_last or (self.num_replicates >= least and all(is_settled(entry) for entry in comparisons)):
                break
        return Measured(
            tuple(self._side_result(side) for side in self.sides), tuple(comparisons), tuple(self.rounds),
            self.num_replicates, self.quick, time.monotonic() - begin_s,
            summary([entry.disturbed for entry in self.rounds]),
        )  # fmt: skip

    def _others(self) -> list[Side]:
        """The sides that still run, without the first."""
        return [side for side in self.sides[1:] if side.name not in self.failed]

    # --- measuring ------------------------------------------------------------------------------------------------

    def _replicate(self) -> None:
        """Fresh processes of all sides, and their rounds."""
        self.num_replicates += 1
        with contextlib.ExitStack() as stack:
            begin_s = time.monotonic()
            children = self._start(stack)
            start_s = time.monotonic() - begin_s
            for side in self._running():
                self._settle(side, children[side.name])
            if self.num_replicates == 1:
                self._share_sizes()
                pair_s = 2 * self.block_s * len(self.sides)
                self.pairs_each = self._pairs_per_replicate(start_s / pair_s)
            devices = {str(entry[-1].facts.get("device", "cpu")) for entry in self.ready.values()}
            watch = self.watch([child.pid for child in children.values()], has_gpu=not devices <= {"cpu", "mps"})
            for _ in range(self.pairs_each):
                if not self._round(children, watch) and not self.shape:
                    self._round(children, watch)  # once more: something interfered

    def _pairs_per_replicate(self, starts_per_pair: float) -> int:
        """As many as make a replicate's rounds worth its start: the root of the ratio of their costs.

        That is the cheapest where processes differ about as much as rounds (the usual result for nested samples).
        """
        if self.shape:
            return self.shape[1]
        least = math.ceil(MIN_PAIRS / QUICK_REPLICATES) if self.quick else 1
        return max(least, min(MAX_PAIRS_EACH, int(math.sqrt(starts_per_pair))))

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
                child.block(**side.command, **{side.count: side.size})
                return
            size = self.sizes.get(side.name)
            if size is not None:
                child.block(**side.command, **{side.count: max(1, round(size * SETTLE_S / self.block_s))})
                return
            size, seconds = 1, 0.0
            while seconds < SETTLE_S / 2:
                size = max(2 * size, round(size * SETTLE_S / seconds)) if seconds else 1
                seconds = child.block(**side.command, **{side.count: size})["seconds"]
            self.sizes[side.name] = max(1, round(size * self.block_s / seconds))

    def _share_sizes(self) -> None:
        """Sides that are about equally fast get blocks of equal size: then they do the very same steps."""
        sizes = self.sizes.values()
        if any(side.size is not None for side in self.sides):
            return
        if sizes and max(sizes) <= 2 * min(sizes) and len({side.count for side in self.sides}) == 1:
            common = round(statistics.fmean(sizes))
            self.sizes = dict.fromkeys(self.sizes, common)

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
        found = disturbances([(block.before, block.after) for block in blocks], watch.num_cpus)
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

    def _progress(self, comparisons: Sequence[Comparison]) -> None:
        """One line per replicate on stderr."""
        parts = []
        for side, found in zip(self.sides[1:], comparisons, strict=True):
            if found.ratio is not None:
                parts.append(f"{side.name} {percent(found.ratio)} {found.verdict}")
        num_disturbed = sum(bool(entry.disturbed) for entry in self.rounds)
        aside = f", {num_disturbed} of {len(self.rounds)} rounds disturbed" if num_disturbed else ""
        say(f"replicate {self.num_replicates}: {', '.join(parts) or 'no pair'}{aside}")


def judge_rounds(rounds: Sequence[Round], a: str, b: str, *, is_last: bool = True, least: int = 1) -> Comparison:
    """The verdict on b against a over undisturbed rounds, where they are enough: of at least so many replicates.

    Otherwise over all of them, as if everything that interfered had been in the way of one side only (both ways, so
    that the interval holds whatever it did): large differences are proven on an unsteady machine too.
    """
    clean = [entry for entry in rounds if not entry.disturbed]
    found = judge(pairs_between(clean, a, b), is_last=is_last)
    if found.num_pairs >= MIN_PAIRS and len({entry.replicate for entry in clean}) >= least:
        if found.verdict != "not proven" or len(clean) * 2 > len(rounds):
            return found
    elif len(clean) == len(rounds):
        return found  # too few so far, or all that the limits allowed
    words = f"the machine was unsteady: {summary([entry.disturbed for entry in rounds])}"
    found = judge(pairs_between(rounds, a, b), is_last=is_last)
    at_worst = [pairs_at_worst(rounds, a, b, hampered=side) for side in (a, b)]
    if not all(at_worst):
        return unproven(words, replace(found, low=None, high=None))
    low, high = (judge(pairs or (), is_last=is_last) for pairs in at_worst)
    found = replace(found, low=min(found.low or 0.0, low.low or 0.0), high=max(found.high or 0.0, high.high or 0.0))
    if len({entry.replicate for entry in rounds}) >= least:
        for verdict, worst in (("faster", low), ("slower", high)):
            if worst.verdict == verdict:
                reason = f"{worst.reason}, even if all that interfered hit one side; {words}"
                return replace(found, verdict=worst.verdict, more_pairs=None, reason=reason)
    return unproven(words, found)


def pairs_between(rounds: Sequence[Round], a: str, b: str) -> list[list[Pair]]:
    """The pairs of two sides that were measured in the same rounds, by replicate."""
    groups: dict[int, list[Pair]] = {}
    for entry in rounds:
        first, second = entry.of(a), entry.of(b)
        if len(first) == len(second) == 2:
            groups.setdefault(entry.replicate, []).append(
                Pair(whole_rate(first), whole_rate(second), halves(first), halves(second))
            )
    return list(groups.values())


def pairs_at_worst(rounds: Sequence[Round], a: str, b: str, hampered: str) -> list[list[Pair]] | None:
    """The same pairs if in disturbed rounds one side had all that interfered, and would have been faster without it.

    None: nothing bounds what it did.
    """
    groups: dict[int, list[Pair]] = {}
    for entry in rounds:
        sides = {name: entry.of(name) for name in (a, b)}
        for (pair,) in pairs_between([entry], a, b):
            if entry.disturbed:
                signals = {name: [(block.before, block.after) for block in blocks] for name, blocks in sides.items()}
                lost = most_lost(signals[hampered], signals[b if hampered == a else a])
                if lost is None:
                    return None
                pair = pair.sped_up(lost if hampered == a else 0.0, lost if hampered == b else 0.0)
            groups.setdefault(entry.replicate, []).append(pair)
    return list(groups.values())


def is_settled(found: Comparison) -> bool:
    """Whether more pairs could not change the word."""
    return found.verdict != "not proven"


def whole_rate(blocks: Sequence[Block]) -> float:
    """Units per second over all blocks together."""
    return sum(block.work for block in blocks) / sum(block.seconds for block in blocks)


def halves(blocks: Sequence[Block]) -> tuple[float, float]:
    """The rates of the two blocks of a round, in their order."""
    first, second = blocks
    return first.work / first.seconds, second.work / second.seconds
