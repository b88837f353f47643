"""One round on our own stages: look, find, plan, try one setting after the other, keep what is proven, measure it all.

After every change that is kept the stage is looked at anew, since what was second is first now. Everything is a line
of the ledger: a round that was stopped goes on behind the last one.
"""

import dataclasses
import itertools
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from intone import jobs
from intone.errors import UserError
from intone.evals.intervals import Interval
from intone.hardware import Facts
from intone.log import human_duration, say
from intone.optimise.detect.catalogue import detect
from intone.optimise.detect.finding import Bottleneck
from intone.optimise.items import Item, Plan
from intone.optimise.ledger import Ledger, Try
from intone.optimise.near import pairs_wanted, together
from intone.optimise.signals import Signals
from intone.optimise.stages.gates import StageGates
from intone.optimise.stages.generation import look_at_generation
from intone.optimise.stages.pace import Pace
from intone.optimise.stages.plan import change_of, part_of, plan_part, state_of
from intone.optimise.stages.target import Part, State, Target, merged
from intone.optimise.stages.training import MANY_STEPS, QUIET, look_at_training
from intone.paths import read_json, write_json
from intone.prove.gates import stack
from intone.prove.measure import MAX_PAIRS, Measured, Side, SideFailed, measure_rounds
from intone.prove.rounds import judge_rounds
from intone.prove.verdict import MIN_PAIRS, Comparison

MAX_TRIES = 12  # of one part
FAR = 10.0  # a gain from which a change's own try is measurement enough of what it adds to the whole
SUM_SHAPE = (3, 2)  # replicates and rounds of the sum in a quick round: six pairs, whether they settle all of it or not
START, BEFORE, ALL, WITHOUT = "as it was", "before", "with all", "without "

Look = Callable[..., Signals]
LOOKS: Mapping[Part, Look] = {"train": look_at_training, "generate": look_at_generation}


@dataclass
class StageRound:
    """A round in its folder. run() may be called again after a stop.

    minutes: no try is begun after them; every part has its share, so that the last one is not left out.
    measure: options of measure_rounds, which every comparison of the round gets. With quick among them looks and gates
    leave out what was seen a moment ago, or what cannot change what is tried.
    """

    folder: Path
    facts: Facts
    minutes: float | None = None
    measure: Mapping[str, Any] = field(default_factory=dict)
    began_s: float = field(default_factory=time.monotonic)
    pace: Pace = field(default_factory=Pace)

    @staticmethod
    def begin(folder: Path, target: Target, facts: Facts, *, words: Sequence[str], asked: Mapping[str, Any],
              **options: Any) -> "StageRound":  # fmt: skip
        """A new round in an empty folder. The target's job folders are copied. asked: what a second call asks too."""
        for part in target.parts:
            shutil.copytree(target.folder / part, folder / "jobs" / part)
        write_json(folder / "target.json", {
            "format": 1, "kind": "stage", "words": list(words), "asked": dict(asked), "target": target.as_json(),
        })  # fmt: skip
        return StageRound(folder, facts, **options)

    @property
    def is_quick(self) -> bool:
        return bool(self.measure.get("quick"))

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.folder)

    @property
    def target(self) -> Target:
        return Target.from_json(self.folder / "jobs", read_json(self.folder / "target.json")["target"])

    # --- the round ------------------------------------------------------------------------------------------------

    def run(self) -> list[Try]:
        """Tries what the plans say, part by part, then measures everything that was kept -> all tries."""
        parts = self.target.parts
        for part in parts:  # all of them first: what there is to do says how long it takes
            self.plan(part, *self.analyse(part))
        for number, part in enumerate(parts, 1):
            end_s = None if self.minutes is None else 60 * self.minutes * number / len(parts)
            with StageGates.opened(self.target, self.facts, self.folder / "trials", quick=self.is_quick) as gates:
                self.improve(part, gates, end_s, later=parts[number:])
                self.whole(part, gates)
        self.ledger.note("end", seconds=time.monotonic() - self.began_s)
        shutil.rmtree(self.folder / "trials", ignore_errors=True)
        say(f"the round took {human_duration(time.monotonic() - self.began_s)}")
        return self.ledger.tries()

    def improve(self, part: Part, gates: StageGates, end_s: float | None, *, later: Sequence[Part] = ()) -> None:
        """One change after the other, until nothing in the plan is left; none is begun end_s after the round began.

        later: parts that come behind it, for how long the rest takes.
        """
        while True:
            signals, findings = self.analyse(part)
            plan = self.plan(part, signals, findings)
            left = [item for item in plan.items if item.name not in self.tried(part)]
            item = next((entry for entry in left if entry.how != "instruction"), None)
            if item is None or len(self.tries(part)) >= MAX_TRIES or self.is_late(part, item, end_s):
                for entry in left:
                    if entry.how == "instruction":
                        words = str(entry.change["words"])
                        self.note_try(part, Try(entry, "told", words, False, None, None, None, 0.0))
                return
            finding = next(entry for entry in findings if entry.detector == item.finding)
            say(self.left_text(part, later))
            say(f"trying: {item.title}")
            self.note_try(part, self.attempt(part, item, finding, gates))

    def analyse(self, part: Part) -> tuple[Signals, list[Bottleneck]]:
        """Signals and findings of a part as it is now; from the ledger where they are known."""
        names = [item.name for item in self.kept(part)]
        for line in self.ledger.lines("signals"):
            if line["part"] == part and line["kept"] == names:
                signals = Signals.from_json(line["signals"])
                return signals, detect(signals)
        quick = {"quick": True} if self.is_quick and part == "train" else {}
        with self.pace.timed("look", part), jobs.trial_folder(self.folder / "trials") as scratch:
            signals = LOOKS[part](self.target, self.state(part), self.facts, scratch, **quick)
        self.ledger.note("signals", part=part, kept=names, signals=signals.as_json())
        found = detect(signals)
        for entry in found:
            say(f"{entry.detector} {entry.title}: {'; '.join(entry.evidence)}")
            self.ledger.note("finding", part=part, kept=names, finding=entry.as_json())
        return signals, found

    def plan(self, part: Part, signals: Signals, findings: Sequence[Bottleneck]) -> Plan:
        """The plan of a part as it is now; new ones are kept in the ledger."""
        plan = plan_part(self.target, part, self.state(part), signals, findings)
        names = [item.name for item in self.kept(part)]
        if not any(line["part"] == part and line["kept"] == names for line in self.ledger.lines("plan")):
            self.ledger.note("plan", part=part, kept=names, items=[item.as_json() for item in plan.items])
        return plan

    def attempt(self, part: Part, item: Item, finding: Bottleneck, gates: StageGates) -> Try:
        """One change: gates first, then its speed in turns. A fault's mending is kept whatever its speed, which
        a quick round does not measure.

        Raises UserError where the part does not run as it is without the change: the round can go on later.
        """
        begin_s = time.monotonic()
        before = self.state(part)
        after = merged(before, change_of(item))
        with self.pace.timed("gates", part):
            report = gates.judge(part, before, after)
        made: dict[str, Any] = {"gates": report.as_json(), "commit": None}
        if report.passed is not True:
            verdict = "rejected" if report.passed is False else "not proven"
            return Try(item, verdict, report.reason, False, None, seconds=time.monotonic() - begin_s, **made)
        if finding.is_fault and self.is_quick:
            reason = f"mends {finding.detector}, {finding.title}: {report.reason}; speed: not measured (quick)"
            return Try(item, "not proven", reason, True, None, seconds=time.monotonic() - begin_s, **made)
        # what is kept in any case needs a number, not a verdict
        pairs = MIN_PAIRS if finding.is_fault else MAX_PAIRS
        states = {BEFORE: before, item.name: after}
        measured, _ = self.compared(part, states, max_pairs=pairs)
        comparison = measured.comparisons[0]
        if measured.sides[1] is None:
            reason = comparison.reason
            return Try(item, "crashed", reason, False, None, seconds=time.monotonic() - begin_s, **made)
        wanted = pairs_wanted(comparison)
        if wanted is not None and not finding.is_fault and not measured.quick:
            say(f"{comparison.text()}: measuring {wanted} more")
            again, _ = self.compared(part, states, max_pairs=wanted)
            comparison = together(measured, again, BEFORE, item.name)
        kept = comparison.verdict == "faster" or (finding.is_fault and comparison.verdict != "rejected")
        reason = comparison.text()
        if finding.is_fault and kept:
            reason = f"mends {finding.detector}, {finding.title}: {report.reason}; speed: {reason}"
        seconds = time.monotonic() - begin_s
        return Try(item, comparison.verdict, reason, kept, comparison.as_json(), seconds=seconds, **made)

    def whole(self, part: Part, gates: StageGates) -> None:
        """All that was kept of a part, measured against its start and without each change; all gates once more.

        What mends a fault and is not faster is not taken out again: results would be wrong, and it claims no speed.
        """
        kept = [entry for entry in self.tries(part) if entry.kept]
        names = [entry.item.name for entry in kept]
        if not kept or any(line["part"] == part and line["kept"] == names for line in self.ledger.lines("whole")):
            return
        say(f"measuring {len(kept)} changes together, and without each")
        state = self.state(part)
        with self.pace.timed("gates", part):
            report = gates.judge(part, {}, state, whole=True)
        tried = self.shown_by_its_try(kept)
        faster = [entry for entry in kept if entry.verdict == "faster"]
        others = {
            f"{WITHOUT}{entry.item.name}": state_of([other.item for other in kept if other is not entry])
            for entry in faster if len(kept) > 1 and entry.item.name not in tried
        }  # fmt: skip
        # all of it comes first: then the measuring goes on until each of the others is told apart from it
        options: dict[str, Any] = {"shape": SUM_SHAPE} if self.is_quick else {}
        measured, against = self.compared(part, {ALL: state, START: {}, **others}, against=ALL, **options)
        total = against.pop(START)
        found = {name.removeprefix(WITHOUT): entry for name, entry in against.items()} | tried
        alone = {entry.item.name: found[entry.item.name] for entry in faster if entry.item.name in found}
        speeds = {name: interval_of(found) for name, found in alone.items()}
        if len(kept) == 1:
            speeds = {entry.item.name: interval_of(total) for entry in faster}
        sums = stack.judge(stack.Stack(interval_of(total), speeds))
        self.ledger.note(
            "whole", part=part, kept=names, comparison=total.as_json(), gates=report.as_json(), stack=sums.as_json(),
            sides=[dataclasses.asdict(side) if side else None for side in measured.sides],
            without=[{"name": name, "comparison": entry.as_json(), "when": "tried" if name in tried else "whole"}
                     for name, entry in alone.items()],
            faults=[entry.item.name for entry in kept if entry not in faster],
        )  # fmt: skip

    def shown_by_its_try(self, kept: Sequence[Try]) -> dict[str, Comparison]:
        """The last change that was kept, by name, where its try is measurement enough of what it adds to the whole.

        It compared the very same two states: everything that was kept, and that without this change.
        """
        last = kept[-1]
        if len(kept) < 2 or last.verdict != "faster" or last.comparison is None:
            return {}
        comparison = Comparison(**last.comparison)
        is_far = comparison.low is not None and comparison.low >= FAR
        return {last.item.name: comparison} if self.is_quick or is_far else {}

    # --- how long it takes ------------------------------------------------------------------------------------------

    def left_text(self, part: Part, later: Sequence[Part]) -> str:
        """How long the rest takes, by what was measured so far; of a part that was not begun in the one before it."""
        seconds: list[float | None] = []
        total = 0
        for name in (part, *later):
            kept = self.kept(name)
            plans = [line for line in self.ledger.lines("plan") if line["part"] == name]
            tried = self.tried(name)
            # of several answers to one finding the first that is kept is the last that is tried
            items = [item for item in plans[-1]["items"] if item["how"] != "instruction" and item["name"] not in tried]
            count = len({item["finding"] for item in items})
            total += count
            seconds.append(self.pace.left_s(name, tries=count, kept=len(kept)))
        changes = f"{total} change{'s' * (total != 1)} to try"
        known = [value for value in seconds if value is not None]
        if len(known) < len(seconds):
            return f"{changes}; how long that takes is known behind the first"
        return f"{changes}, at most about {human_duration(sum(known))} left by what was measured so far"

    # --- parts ----------------------------------------------------------------------------------------------------

    def compared(
        self, part: Part, states: Mapping[str, State], *, against: str | None = None, max_pairs: int = MAX_PAIRS,
        **options: Any,
    ) -> tuple[Measured, dict[str, Comparison]]:
        """The states measured in turns, each against the first; and the state `against` over each of the others.

        Raises UserError where the first does not run.
        """
        with jobs.trial_folder(self.folder / "trials") as scratch:
            sides = [self.side(part, name, state, scratch) for name, state in states.items()]
            try:
                with self.pace.timed("side", part, shares=len(sides)):
                    measured = measure_rounds(sides, **{"max_pairs": max_pairs, **self.measure, **options})
            except SideFailed as failure:
                fix = failure.outcome.fix or "see why, then give the same command again: the round goes on"
                raise UserError(f"{part}: {failure}", value=failure.side, fix=fix) from failure
        return measured, {
            name: judge_rounds(measured.rounds, name, against) for name in states if against not in (None, name)
        }  # fmt: skip

    def side(self, part: Part, name: str, state: State, scratch: Path) -> Side:
        """A part in a state as a side of a comparison; every start is a new job folder."""
        target, numbers = self.target, itertools.count(1)
        changes = {"steps": MANY_STEPS, **QUIET} if part == "train" else {}

        def start() -> Any:
            folder = scratch / f"{name.replace(' ', '-')}-{next(numbers)}"
            return target.child(part, state, folder, name=name, **changes)

        if part == "train":
            return Side(name, start, target.block_command, count="steps", unit="supervised")
        return Side(name, start, count="requests", unit="tokens")

    def tries(self, part: Part) -> list[Try]:
        return [entry for entry in self.ledger.tries() if part_of(entry.item) == part]

    def tried(self, part: Part) -> set[str]:
        """Names of what was tried with everything else as it is now: after a kept change they may be tried again."""
        now = [item.name for item in self.kept(part)]
        return {line["try"]["item"]["name"] for line in self.ledger.lines("try") if line["after"] == now}

    def kept(self, part: Part) -> list[Item]:
        return [entry.item for entry in self.tries(part) if entry.kept]

    def state(self, part: Part) -> dict[str, dict[str, Any]]:
        """How a part is computed now."""
        return state_of(self.kept(part))

    def note_try(self, part: Part, entry: Try) -> None:
        after = [item.name for item in self.kept(part)]
        self.ledger.note("try", after=after, **{"try": entry.as_json()})
        if entry.verdict != "told":
            say(f"{entry.item.title}: {entry.reason}; {'kept' if entry.kept else 'not kept'}")

    def is_late(self, part: Part, item: Item, end_s: float | None) -> bool:
        """Whether no try may be begun any more; the ledger says what was left then."""
        if end_s is None or time.monotonic() - self.began_s < end_s:
            return False
        say(f"{human_duration(end_s)} are over: {item.title} is left for another round")
        self.ledger.note("left", part=part, item=item.name, title=item.title)
        return True


def interval_of(found: Comparison) -> Interval | None:
    if found.ratio is None or found.low is None or found.high is None:
        return None
    return Interval(found.ratio, found.low, found.high)
