"""Judges what a probe recorded: first tokens, times per token, batches; pure functions."""

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

GROWTH = 2.0  # time per token behind a long text over that behind a short one (optimiser.md D8)
MIN_TOKEN_S = 2e-4  # below it the clock and Python are measured, not the model; guess
PADDED = 0.1  # share of positions from which on packing is worth it (optimiser.md D16)


@dataclass(frozen=True)
class Look:
    """What one probe says. rule: the probe's id. outcome "unclear" says what is missing and is no finding."""

    rule: str
    outcome: Literal["holds", "fault", "unclear"]
    message: str
    evidence: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Every field."""
        return {"rule": self.rule, "outcome": self.outcome, "message": self.message, "evidence": list(self.evidence)}


def judge_first_tokens(hot: Sequence[Sequence[int]], cold: Sequence[int]) -> Look:
    """hot: first tokens of the rows of several requests at a temperature; cold: of the rows of one greedy request."""
    seen = f"{len(hot)} requests of {len(hot[0])} rows: {[len(set(rows)) for rows in hot]} different first tokens each"
    if len(set(cold)) > 1:
        return Look("B01", "fault", f"rows differ at temperature 0: {sorted(set(cold))[:5]}", (seen,))
    if all(len(set(rows)) == 1 for rows in hot):
        firsts = {rows[0] for rows in hot}
        if len(firsts) > 1:
            different = f"but requests with other seeds begin with {len(firsts)} different tokens"
            return Look("B01", "fault", "all rows of a request begin with the same sampled token", (seen, different))
        return Look(
            "B01", "unclear", "every row of every request begins with one token: the model is too sure", (seen,)
        )
    return Look("B01", "holds", "rows differ at T > 0 and agree at T = 0", (seen,))


def judge_row_streams(alone: Sequence[int], among: Sequence[int]) -> Look:
    """The tokens of row 0 for one seed, generated alone and among other rows."""
    if list(alone) == list(among):
        return Look("B02", "holds", "a row's text does not depend on how many others there are")
    at = next((n for n, (a, b) in enumerate(zip(alone, among, strict=False)) if a != b), min(len(alone), len(among)))
    return Look("B02", "fault", "with one seed a row's text depends on how many other rows are generated",
                (f"row 0 alone and among others differ from token {at} on",))  # fmt: skip


def judge_latency(times: Sequence[tuple[int, float]]) -> Look:
    """(position, seconds per token) measured at several positions, several times each."""
    by_position: dict[int, list[float]] = {}
    for position, seconds in times:
        by_position.setdefault(position, []).append(seconds)
    medians = {position: statistics.median(values) for position, values in sorted(by_position.items())}
    seen = tuple(f"at position {position}: {seconds * 1e3:.3g} ms a token" for position, seconds in medians.items())
    first, last = min(medians), max(medians)
    if medians[last] < MIN_TOKEN_S:
        return Look("B03", "unclear", "tokens are too fast to be timed: use a larger model or longer texts", seen)
    ratio = medians[last] / max(medians[first], 1e-9)
    words = f"time per token grows {ratio:.2g}-fold while the text grows {last / max(first, 1):.2g}-fold"
    if ratio < GROWTH:
        return Look("B03", "holds", words, seen)
    return Look("B03", "fault", f"{words}: earlier tokens are computed again", seen)


def row_keys(inputs: Sequence[Sequence[int]]) -> list[str]:
    """A text per row by which equal rows are recognised."""
    return [" ".join(map(str, row)) for row in inputs]


def judge_duplicates(batches: Sequence[Sequence[Sequence[int]]]) -> Look:
    """Rows of the first batches of one rank: none should come twice so early."""
    rows = [key for inputs in batches for key in row_keys(inputs)]
    twice = [key for key, count in Counter(rows).items() if count > 1]
    if twice:
        return Look("B04", "fault", f"{len(twice)} rows come more than once in the first {len(batches)} batches",
                    (f"{len(rows)} rows, {len(set(rows))} different",))  # fmt: skip
    return Look("B04", "holds", f"{len(rows)} rows, all different")


def judge_ranks(ranks: Sequence[Sequence[Sequence[Sequence[int]]]]) -> Look:
    """The first batches of every rank: no row may be on two of them."""
    sets = [{key for inputs in batches for key in row_keys(inputs)} for batches in ranks]
    shared = set.intersection(*sets) if sets else set()
    if shared:
        return Look(
            "B05", "fault", f"{len(shared)} of {len(sets[0])} rows are on every rank", (f"{len(sets)} ranks compared",)
        )
    return Look("B05", "holds", f"{len(sets)} ranks share no row")


def judge_resume(straight: Sequence[Any], resumed: Sequence[Any], step: int) -> Look:
    """Batches from a step on, of a loader that ran there and of one that was started there."""
    for number, (one, other) in enumerate(zip(straight, resumed, strict=True)):
        if one != other:
            return Look("B06", "fault", f"started at step {step} the loader gives other rows than when it ran there",
                        (f"first difference {number} batches behind the start",))  # fmt: skip
    return Look("B06", "holds", f"started at step {step} the loader gives the same {len(resumed)} batches")


def judge_mask(targets: Sequence[Sequence[Sequence[int]]], ignored: int) -> Look:
    """Every row has something to learn; and how much of all positions is learned."""
    rows = [row for batch in targets for row in batch]
    empty = sum(all(value == ignored for value in row) for row in rows)
    learned = sum(value != ignored for row in rows for value in row)
    share = learned / max(sum(map(len, rows)), 1)
    seen = (f"{share:.0%} of {sum(map(len, rows)):,} positions are learned",)
    if empty:
        return Look("B07", "fault", f"{empty} of {len(rows)} rows have nothing to learn: their mean loss is 0/0", seen)
    return Look("B07", "holds", f"every one of {len(rows)} rows has something to learn", seen)


def judge_throughput(
    batches: Sequence[tuple[Sequence[Sequence[int]], Sequence[Sequence[int]]]],
    seconds: float,
    ignored: int,
    pad: int | None,
) -> Look:
    """Supervised tokens per second against all that is computed, padding too, over steps that took so many seconds."""
    rows = [row for inputs, _ in batches for row in inputs]
    computed = sum(map(len, rows))
    learned = sum(value != ignored for _, targets in batches for row in targets for value in row)
    padded = sum(_trailing(row, pad) for row in rows) if pad is not None else 0
    if seconds <= 0 or not computed:
        return Look("B09", "unclear", "the steps took no time that the clock shows")
    words = f"{learned / seconds:,.3g} supervised tokens/s of {computed / seconds:,.3g} tokens/s computed"
    seen = (f"{len(batches)} steps in {seconds:.3g} s; {learned:,} of {computed:,} positions are learned",)
    share = padded / computed
    if share > PADDED:
        bound = f"{padded / seconds:,.3g} tokens/s are padding: packing brings at most {1 / (1 - share):.2g} times"
        return Look("B09", "fault", words, (*seen, bound))
    return Look("B09", "holds", words, seen)


def _trailing(row: Sequence[int], pad: int) -> int:
    """How many of a row's last tokens are padding."""
    end = len(row)
    while end and row[end - 1] == pad:
        end -= 1
    return len(row) - end


def judge_padding(inputs: Sequence[Sequence[Sequence[int]]], pad: int) -> Look:
    """How much of the batches is padding at the ends of rows."""
    rows = [row for batch in inputs for row in batch]
    padded = sum(_trailing(row, pad) for row in rows)
    total = sum(map(len, rows))
    share = padded / max(total, 1)
    seen = (f"{padded:,} of {total:,} positions",)
    if share > PADDED:
        bound = f"packing brings at most {1 / (1 - share):.2g} times the useful tokens/s"
        return Look("B08", "fault", f"{share:.0%} of the batches is padding: {bound}", seen)
    return Look("B08", "holds", f"{share:.0%} of the batches is padding", seen)
