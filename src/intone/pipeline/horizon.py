"""Keeps a run within its minutes: looks how long its steps take, and plans what is left anew where that is off

The first plan rests on a few steps timed in the seconds before training; a machine that is busy then, or later, makes
it too small or too large. Only the number of steps changes, and only where the person gave minutes: decision 031.
"""

import contextlib
import json
import os
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from intone.config import TrainJob
from intone.data.tokenizer import Tokenizer
from intone.errors import UserError
from intone.ground import Beside
from intone.log import human_duration, say, three_digits
from intone.paths import read_json, write_json
from intone.pipeline.plan_files import FORECAST
from intone.prepare import MANY_EPOCHS, Mix, Source, ensure_mix, epochs_of, fetched, find_source
from intone.records import Choice, Choices, read_choices, write_choices
from intone.runs import Run
from intone.settings import RunSettings, TrainSettings
from intone.supervisor import note
from intone.tune.background import planned_swap

EVERY = 1 / 8  # of a stage there is a look at it; the first comes before the rate of starter's last stage falls (0.15)
TOLERANCE = 0.15  # by which the steps that fit may differ from those planned while a stage trains
BORDER_TOLERANCE = 0.02  # and between two stages, where nothing has to be started again
# of a step that learns all its tokens takes one that learns answers alone, on our kernels, which compute no logits for
# the rest: 0.86 to 0.95 in five default runs (LOG.md, "What is set aside in a run"); the most counts, to end in time
LIGHTER = 0.95
PAYS = 3.0  # a new plan must move at least so many times the seconds of the restart that it costs (guess)
LEAST_MOVED = 0.05  # and so much of the minutes: near the end a run may be that much off
LEAST_TIMED = 8  # steps behind a look
SURE_S = 20.0  # of steps behind a look that makes a plan smaller; for a larger one, so long may be too late (guess)
WINDOW_S = 60.0  # of training that tell how fast the machine is now
LEAST_FIT = 10  # steps that are planned when the time is over
LEAST_SHARE = 0.1  # of its part: what a stage gets that had more than that already; its rate must not break off
TAIL_BYTES = 1 << 17  # of a log: some 600 steps
END_BYTES = 1 << 12  # of a log: the last steps
LOG_BYTES = 1 << 24  # of a log: some 70,000 steps
NEW_PLAN = "new plan"
BREAKS = ("resumed", "segment")  # events after which the first step says nothing about the rest


@dataclass(frozen=True)
class Horizon:
    """The minutes of a run, and what its first plan made of them."""

    run: Run
    settings: RunSettings | TrainSettings
    spent_s: Callable[[], float]  # of the whole run, up to now
    minutes: float
    fetch_s: float  # the minutes begin when the data is here
    step_s: float  # that the first plan counted on
    stages: Mapping[str, int]  # steps of the first plan, in order: what a stage's share is
    beside: Beside

    @property
    def left_s(self) -> float:
        """Seconds of the minutes that are left."""
        return 60 * self.minutes + self.fetch_s - self.spent_s()

    def slow_step_s(self, pace: "Pace") -> float:
        """Seconds of a step that a plan is made smaller for: no more than the mean of the whole run.

        A hiccup is no slower machine, and neither is a bad minute: steps that were given up are lost where it gets
        better, while a plan that is still too large is made smaller at the next look.
        """
        paths = [self.run.stage_folder(stage) / "log.jsonl" for stage in self.stages]
        steps = [row["step_s"] for path in paths for row in recent_rows(path, LOG_BYTES) if row["kind"] == "step"]
        return min(pace.step_s, pace.median_s, statistics.fmean(steps))

    def planned(self, stage: str) -> int:
        """Steps of a stage as planned now."""
        folder = self.run.stage_folder(stage)
        return read_choices(folder).num_steps(int(read_json(folder / "config.json")["steps"]))

    def beside_s(self, stage: str, step_s: float) -> float:
        """Seconds beside the steps from this stage on, by the evaluations of those before it."""
        names = list(self.stages)
        place = names.index(stage)
        logs = [recent_rows(self.run.stage_folder(name) / "log.jsonl") for name in names[:place]]
        beside = self.beside.measured([steps for rows in logs if (steps := evaluation_steps(rows)) is not None])
        return beside.seconds(len(names) - place, step_s)

    def fitting(self, stage: str, step: int, step_s: float) -> dict[str, int]:
        """Steps of this stage, of which step are done, and of the later ones, so that the run ends in time.

        This one is not let grow beyond what its data is good for.
        """
        names = list(self.stages)
        still = names[names.index(stage) :]
        done = {name: 0 if name in still else self.planned(name) for name in names} | {stage: step}
        fit = (self.left_s - self.beside_s(stage, step_s)) / step_s
        steps = spread(self.stages, done, still, max(LEAST_FIT, fit))
        folder = self.run.stage_folder(stage)
        return steps | {stage: min(steps[stage], max(self.planned(stage), steps_for(folder, MANY_EPOCHS)))}

    def is_off(self, stage: str, step: int, steps: Mapping[str, int], tolerance: float) -> bool:
        """Whether so many more or fewer steps are left than planned."""
        ratio = (sum(steps.values()) - step) / (sum(map(self.planned, steps)) - step)
        return not 1 / (1 + tolerance) <= ratio <= 1 + tolerance

    # --- between two stages -------------------------------------------------------------------------------------

    def at_border(self, stage: str) -> None:
        """Before a stage begins: the steps of what is left, from how fast the stage before it was at its end."""
        names = list(self.stages)
        if stage == names[0]:
            return
        before = self.run.stage_folder(names[names.index(stage) - 1])
        pace = recent_pace(recent_rows(before / "log.jsonl"))
        if pace is None:
            return
        folder = self.run.stage_folder(stage)
        steps, lighter = {name: self.planned(name) for name in names}, lighter_than(before, folder)
        step_s = lighter * pace.step_s
        fitting = self.fitting(stage, 0, step_s)
        if sum(fitting.values()) < sum(steps[name] for name in fitting):
            step_s = lighter * self.slow_step_s(pace)
            fitting = self.fitting(stage, 0, step_s)
        is_off = self.is_off(stage, 0, fitting, BORDER_TOLERANCE)
        wanted = {**steps, **fitting} if is_off else steps
        grown = wanted[stage] > self.stages[stage]
        if grown and wanted[stage] > steps_for(folder, 1) and isinstance(self.settings, RunSettings):
            renew_data(folder, self.settings, wanted)
            fitting = self.fitting(stage, 0, step_s)  # that took time, and there may be more data now
        if is_off:
            self.write(stage, 0, fitting, step_s)

    # --- within one ---------------------------------------------------------------------------------------------

    def write(self, stage: str, from_step: int, steps: Mapping[str, int], step_s: float) -> None:
        """The new steps of this stage from a step on and of the later ones: on disk, in the log, and said.

        choices.json comes first: where we are ended between the two files the plan in it counts (run_stage).
        """
        counted_s = self.counted_on(stage)
        reason = (
            f"a step takes {three_digits(step_s)} s, {three_digits(counted_s)} s were counted on; "
            f"evaluations and starts take about {human_duration(round(self.beside_s(stage, step_s)))}; "
            f"{human_duration(max(0.0, self.left_s))} of {human_duration(60 * self.minutes)} are left"
        )
        changes = []
        for name, new in steps.items():
            folder, old = self.run.stage_folder(name), self.planned(name)
            if new == old:
                continue
            changes.append(f"{name} {old:,} -> {new:,}")
            beat = ({"value": old, "why": f"the plan before, for steps of {three_digits(counted_s)} s"},)
            measured = {"step_s": step_s, "from_step": from_step if name == stage else 0}
            choices = read_choices(folder)
            if name == stage and from_step:
                choices = choices.with_steps(from_step, new, old, f"{old:,} -> {new:,} steps: {reason}")
            settings = {**choices.settings, "steps": Choice(new, reason, "measured", beat, measured)}
            write_choices(folder, replace(choices, settings=settings))
            rewrite(folder, steps=new)
        if changes:
            note(self.run.stage_folder(stage), from_step, NEW_PLAN, f"{', '.join(changes)} steps: {reason}")

    def counted_on(self, stage: str) -> float:
        """Seconds of a step that the plan of a stage rests on."""
        known = read_choices(self.run.stage_folder(stage)).settings.get("steps")
        return float((known.measured or {}).get("step_s", self.step_s)) if known is not None else self.step_s


class StageWatch:
    """Looks at one stage while it trains; the supervisor asks it (supervisor.Review)."""

    def __init__(self, horizon: Horizon, stage: str) -> None:
        self._horizon = horizon
        self._stage = stage
        self._folder = horizon.run.stage_folder(stage)
        self._log = self._folder / "log.jsonl"
        self._looked: tuple[int, float] | None = None  # step and seconds of the last look, or of the first sight
        self._wanted_s: float | None = None  # seconds of a step that a new plan is wanted for

    def wants_end(self) -> bool:
        """Whether a look is due, the plan is off, and a restart for a new one pays."""
        step, horizon = last_step(recent_rows(self._log, END_BYTES)), self._horizon
        if not step or not self._is_due(step):
            return False
        pace = recent_pace(recent_rows(self._log))
        planned = horizon.planned(self._stage)
        if pace is None or step >= planned or swaps_after(read_choices(self._folder), step):
            return False
        step_s = pace.step_s
        if horizon.fitting(self._stage, step, step_s)[self._stage] < planned:
            if pace.seconds < SURE_S:
                return False
            step_s = horizon.slow_step_s(pace)
        self._looked = (step, horizon.spent_s())
        steps = horizon.fitting(self._stage, step, step_s)
        # later stages can be planned when they begin, without a restart
        moved_s = abs(steps[self._stage] - planned) * step_s
        pays = moved_s >= max(PAYS * horizon.beside.start_s, LEAST_MOVED * 60 * horizon.minutes)
        self._wanted_s = step_s if pays and horizon.is_off(self._stage, step, steps, TOLERANCE) else None
        return self._wanted_s is not None

    def _is_due(self, step: int) -> bool:
        """Whether a further part of the stage is over, by its steps or by the time that it was to take."""
        if self._looked is None:
            self._looked = (step, self._horizon.spent_s())
            self._every = EVERY * (self._horizon.planned(self._stage) - step)
            self._every_s = self._every * self._horizon.counted_on(self._stage)
        looked, looked_s = self._looked
        return step - looked >= self._every or self._horizon.spent_s() - looked_s >= self._every_s

    def plan_anew(self, from_step: int) -> bool:
        """Writes the new plan that this watch wanted; False where it wanted none."""
        step_s, self._wanted_s, self._looked = self._wanted_s, None, None
        if step_s is not None and from_step < self._horizon.planned(self._stage):
            self._horizon.write(self._stage, from_step, self._horizon.fitting(self._stage, from_step, step_s), step_s)
        return step_s is not None


@dataclass(frozen=True)
class Pace:
    """How fast steps went lately."""

    step_s: float  # mean, saves included
    median_s: float
    seconds: float  # of all steps that were timed


def open_horizon(run: Run, settings: RunSettings | TrainSettings, spent_s: Callable[[], float]) -> Horizon | None:
    """The minutes that a run is kept within; None where its steps were given, or its plan was copied from another."""
    forecast = read_json(run.folder / FORECAST)
    if "beside" not in forecast:
        return None
    return Horizon(
        run, settings, spent_s, forecast["minutes"], forecast["fetch_s"], forecast["step_s"], forecast["stages"],
        Beside(**forecast["beside"]),
    )  # fmt: skip


def spread(shares: Mapping[str, float], done: Mapping[str, int], still: Sequence[str], fit: float) -> dict[str, int]:
    """Steps of the stages that are not over, fit more than are done, so that all have their shares in the end.

    done: steps of every stage so far. A stage that has more than its part already gets a tenth of that part more.
    """
    total, weight = sum(done.values()) + fit, sum(shares.values())
    parts = {name: total * shares[name] / weight for name in still}
    rest = {name: max(LEAST_SHARE * part, part - done[name]) for name, part in parts.items()}
    scale = fit / sum(rest.values())
    return {name: done[name] + max(1, round(scale * rest[name])) for name in still}


def recent_rows(path: Path, num_bytes: int = TAIL_BYTES) -> list[dict[str, Any]]:
    """The rows in the last bytes of a log, in order; none where there is no log. A torn row is left out."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - num_bytes))
            lines = file.read().split(b"\n")[1 if size > num_bytes else 0 :]
    except FileNotFoundError:
        return []
    rows = []
    for line in filter(None, lines):
        with contextlib.suppress(ValueError):  # its end is being written
            row = json.loads(line)
            if isinstance(row, dict) and "kind" in row and "step" in row:
                rows.append(row)
    return rows


def last_step(rows: Sequence[Mapping[str, Any]]) -> int:
    """The last optimizer step among rows of a log; 0 where there is none."""
    return next((row["step"] for row in reversed(rows) if row["kind"] == "step"), 0)


def recent_pace(rows: Sequence[Mapping[str, Any]]) -> Pace | None:
    """How fast steps went within the last minute of training; None: too few were timed.

    Only of the process that trained last, without its first step, which compiles and touches memory.
    """
    steps: list[float] = []
    beside_s = 0.0  # saves and evaluations between the steps
    for row in reversed(rows):
        if row["kind"] == "step":
            steps.append(row["step_s"])
        elif steps and (row["step"] == 0 or (row["kind"] == "event" and row["event"] in BREAKS)):
            break  # what came before the first step belongs to none
        elif steps:  # what comes after the last step belongs to the end of its stage
            beside_s += row.get("seconds") or 0.0
        if sum(steps) + beside_s >= WINDOW_S and len(steps) > LEAST_TIMED:
            break
    timed = steps[:-1]
    seconds = sum(timed) + beside_s
    return Pace(seconds / len(timed), statistics.median(timed), seconds) if len(timed) >= LEAST_TIMED else None


def evaluation_steps(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """How many of a stage's last steps its evaluation took as long as; None where its log has no end to tell."""
    pace = recent_pace(rows)
    seconds = [row["seconds"] for row in rows if row["kind"] == "eval"]
    return seconds[-1] / pace.step_s if seconds and pace is not None else None


def lighter_than(before: Path, folder: Path) -> float:
    """Seconds of a step of one stage over those of the stage before it, where that is known before it begins."""
    earlier, later = read_json(before / "config.json"), read_json(folder / "config.json")
    is_ours = read_choices(folder).segments[-1].kernels == "native"
    return LIGHTER if is_ours and earlier.get("learn_all") and not later.get("learn_all") else 1.0


def swaps_after(choices: Choices, step: int) -> bool:
    """Whether the plan goes over to compiled code later than this step: the steps so far do not tell of those."""
    swap = planned_swap(choices)
    return swap is not None and swap.from_step >= step


def steps_for(folder: Path, times: float) -> int:
    """Steps of a stage after which a text of it was seen so many times; 0 where that is not known."""
    config = read_json(folder / "config.json")
    if config.get("rollouts") is not None:
        return sys.maxsize  # it learns from its answers, which are new every time
    epochs = [entry["epochs"] for entry in epochs_of(config, config["rows_per_step"] * config["context"])]
    return int(times / max(epochs)) if epochs else 0


def renew_data(folder: Path, settings: RunSettings, steps: Mapping[str, int]) -> None:
    """More text for a stage that has not begun, where its new steps want more; what it has, where none can be had."""
    config = read_json(folder / "config.json")
    tokens = {name: count * config["rows_per_step"] * config["context"] for name, count in steps.items()}
    try:
        mix = stage_mix(folder.name, settings, tokens, Path(config["tokenizer"]))
    except UserError as error:
        say(f"{folder.name} goes on with the data that it has: {error.message}")
        return
    rewrite(folder, data=mix.folders, weights=mix.weights)


def stage_mix(stage: str, settings: RunSettings, tokens: Mapping[str, int], tokenizer_folder: Path) -> Mix:
    """What a stage of a run learns from, as planning has it, for so many tokens of every stage. Raises UserError."""
    tokenizer = Tokenizer.load(tokenizer_folder)

    def mix(source: Source, total: int, name: str) -> Mix:
        return ensure_mix(fetched(source, total), tokenizer_folder, tokenizer, tokens=total, name=name)

    mixes = []
    if stage in ("base", "mid"):
        text = find_source("documents", settings.data, settings.val)
        mixes.append(mix(text, tokens["base"] + tokens["mid"], "base"))
    if stage in ("mid", "sft"):
        talk = find_source("conversations", settings.sft, settings.sft_val)
        mixes.append(mix(talk, tokens["mid"] + tokens["sft"], "sft"))
    return mixes[0].halves(mixes[1]) if len(mixes) == 2 else mixes[0]


def rewrite(folder: Path, **changes: Any) -> None:
    """config.json of a stage with some settings changed; untouched where they are as they were."""
    job = TrainJob.from_json(read_json(folder / "config.json"))
    changed = replace(job, **changes)
    if changed != job:
        write_json(folder / "config.json", changed.as_json())
