"""The case study's starting point as a target of optimise: its jobs, its faults, and what a round did about them"""

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from intone.bench.casestudy_infer import Texts
from intone.bench.casestudy_start import MODULE, start_choices
from intone.bench.casestudy_train import Kit
from intone.evals.intervals import Interval
from intone.hardware import Facts
from intone.log import table
from intone.optimise.ledger import Try
from intone.optimise.signals import Signals
from intone.optimise.stages.plan import part_of
from intone.optimise.stages.round import StageRound, interval_of
from intone.optimise.stages.target import Target, with_worker
from intone.paths import write_json
from intone.prove.verdict import Comparison
from intone.records import write_choices

# the five faults of the start: part, and the detectors by which each is found
FAULTS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "batch of 4": ("train", ("D1",)),
    "no fast code": ("train", ("D2", "D3")),
    "padded rows": ("train", ("D16",)),
    "no cache": ("generate", ("D8",)),
    "copied first token": ("generate", ("D22",)),
}
NAMES = {"sft": "train", "inference": "generate"}


@dataclasses.dataclass(frozen=True)
class Found:
    """What a round did about one of the faults."""

    name: str
    part: str
    evidence: str | None  # of the finding; None: it was not found
    entry: Try | None  # the change that was kept for it
    measured: str = ""  # what the last look says about it


def start_target(folder: Path, kit: Kit, texts: Texts, parts: Sequence[str]) -> Target:
    """The starting point as a target: jobs below folder, with weights of their own, run by the start's worker."""
    weights = folder / "weights"
    shutil.copytree(texts.weights, weights)
    if "sft" in parts:
        (folder / "train").mkdir()
        write_choices(folder / "train", start_choices(kit.tuned))
        job = dataclasses.replace(kit.jobs["sft"], init_from=str(weights) if kit.jobs["sft"].init_from else None)
        write_json(folder / "train" / "config.json", job.as_json())
    if "inference" in parts:
        config = texts.config(texts.rows, texts.new_tokens) | {"from": str(weights)}
        write_json(folder / "generate" / "config.json", config)
    return with_worker(Target(folder, environment=dict(texts.environment)), MODULE)


# --- what came out --------------------------------------------------------------------------------------------------


def found_of(round_: StageRound, parts: Sequence[str]) -> list[Found]:
    """The faults of these parts, with what the round found and kept."""
    lines, tries = round_.ledger.lines("finding"), round_.ledger.tries()
    looks = {line["part"]: Signals.from_json(line["signals"]) for line in round_.ledger.lines("signals")}
    found = []
    for name, (part, detectors) in FAULTS.items():
        if part not in parts:
            continue
        seen = [line["finding"] for line in lines if line["part"] == part and line["finding"]["detector"] in detectors]
        kept = [entry for entry in tries
                if entry.kept and part_of(entry.item) == part and entry.item.finding in detectors]  # fmt: skip
        evidence = "; ".join(seen[0]["evidence"]) if seen else None
        failed = [entry for entry in tries
                  if not entry.kept and part_of(entry.item) == part and entry.item.finding in detectors]  # fmt: skip
        measured = measured_words(detectors[-1], looks[part]) if part in looks else "it was not looked at"
        if failed and not kept:
            measured += f"; {failed[-1].item.title}: {failed[-1].reason}"
        found.append(Found(name, part, evidence, kept[0] if kept else None, measured))
    return found


def measured_words(detector: str, signals: Signals) -> str:
    """What a look measured of a detector's question, below its threshold or above: why a fault may be none here."""
    if detector == "D1":
        now = signals.device_batch
        rungs = [f"{rows} rows {gain:.2f}" for rows, gain in signals.ladder.items() if int(rows) != now]
        return f"tokens/s over those of {now} rows: {', '.join(rungs) or 'no more rows could be tried'}"
    if detector == "D3":
        gains = (("our kernels", signals.kernels_gain), ("compiled", signals.compiled_gain))
        tried = [f"{words} {gain:.2f}" for words, gain in gains if gain is not None]
        return f"steps/s over those now: {', '.join(tried) or 'nothing else could be tried'}"
    if detector == "D16":
        share = signals.pad_share
        return "padding unknown" if share is None else f"{share:.1%} of the positions are padding"
    if detector == "D8":
        grown = signals.late_over_early
        return "times of tokens unknown" if grown is None else f"a late token takes {grown:.2f} times an early one"
    assert detector == "D22", f"{detector} is no planted fault's"
    wanted = "unknown" if signals.expected_distinct is None else f"{signals.expected_distinct:.1f}"
    return f"{signals.distinct_first} different first tokens of {signals.num_samples}; independent draws: {wanted}"


def faults_text(found: Sequence[Found]) -> str:
    """The faults, and what became of them."""
    rows = [
        [entry.name, "found" if entry.evidence else "not found",
         entry.entry.item.title if entry.entry else "", speed_word(entry.entry) if entry.entry else ""]
        for entry in found
    ]  # fmt: skip
    text = table(rows, header=["planted", "", "mended by", "speed"], left=4)
    return text + "".join(f"\n{entry.name}: {entry.measured}" for entry in found if entry.entry is None)


def speed_word(entry: Try) -> str:
    """The verdict on a change that was kept; what mends a fault is kept without one in a quick round."""
    return entry.verdict if entry.comparison is not None else "not measured"


def totals_of(round_: StageRound) -> list[tuple[str, Interval, int]]:
    """(name, measured ratio, pairs): PART is all that was kept over the start, PART.without_CHANGE all over that.

    A part of which nothing was kept, or whose whole a gate rejected, has none.
    """
    words = {part: name for name, part in NAMES.items()}
    found = []
    for line in round_.ledger.lines("whole"):
        if line["gates"]["passed"] is not True:
            continue
        part = words[line["part"]]
        sums = {part: line["comparison"]} | {
            f"{part}.without_{short_of(entry['name'])}": entry["comparison"] for entry in line["without"]
        }
        for name, value in sums.items():
            comparison = Comparison(**value)
            interval = interval_of(comparison)
            if interval is not None and comparison.verdict != "rejected":
                found.append((name, interval, comparison.num_pairs))
    return found


def short_of(name: str) -> str:
    """train-padded-rows -> padded_rows"""
    return name.partition("-")[2].replace("-", "_")


def begin_round(folder: Path, target: Target, facts: Facts, **options: Any) -> StageRound:
    """A round on a starting point that somebody else prepared, in an empty folder."""
    folder.mkdir(parents=True)
    return StageRound.begin(folder, target, facts, words=["bench", "optimise"], asked={}, **options)
