"""The case study's training tables: from its starting point step by step to everything, with losses beside speed."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from intone import recipe
from intone.bench.casestudy_rows import EVERYTHING, START, WITHOUT, Table, Way, to_table
from intone.bench.casestudy_start import DEVICE_BATCH, Faults, StartChild, plain_memory, start_choices, write_faults
from intone.config import TrainJob
from intone.errors import UserError
from intone.log import human_count
from intone.paths import write_json
from intone.prove.gates.parity import MIN_STEPS, relative_differences, trajectory_gate
from intone.prove.live import LineChild, Ready, WorkerChild
from intone.prove.measure import Measured, Side, measure_rounds
from intone.records import Choices, Segment, write_choices
from intone.tune.trial import attention_for

NUM_STEPS = 1_000_000  # of the measured jobs: more than any block needs
# by quick: replicates of fresh processes, rounds in each. Starting a worker takes 3 to 5 s of two cores, and there are
# fourteen sides: a second replicate of all would not fit into the six minutes of a quick look
SHAPES = {True: (1, 3), False: (3, 2)}
BLOCK_S = {True: 0.7, False: 2.0}
REFERENCE = "fp32 eager, packed"


@dataclass(frozen=True)
class Kit:
    """What the tables of one run share. tuned: the plan that was settled for these jobs on this machine."""

    jobs: Mapping[str, TrainJob]  # by stage
    tuned: Choices
    scratch: Path
    no_compile: str | None  # why nothing can be compiled here, or why it is not to be
    found_in: Mapping[str, str] = field(default_factory=dict)  # how the settings of the plan came about, in words

    @property
    def segment(self) -> Segment:
        return self.tuned.segments[0]

    @property
    def device(self) -> str:
        return str(self.tuned.settings["device"].value)


@dataclass(frozen=True)
class Plan:
    """How one row is computed: its plan, and whether its rows are padded."""

    choices: Choices
    padded: bool

    @property
    def key(self) -> tuple[Any, ...]:
        """What decides about speed: two rows of equal keys are one measurement."""
        segment = replace(self.choices.segments[0], reason="", trials=())
        return (segment, self.padded, tuple(sorted(self.choices.environment.items())))


def plans_of(kit: Kit, stage: str) -> dict[str, Plan]:
    """The rows of a stage by key, in their order; compiled ones only where something can be compiled."""
    padded = stage == "sft"  # text fills its rows anyway
    tuned = kit.tuned
    plain = with_plain_memory(tuned)
    start = start_choices(plain)
    batch = start_choices(plain, Faults.named("eager"))
    found = {START: Plan(start, padded), "auto_batch": Plan(batch, padded)}
    faster = batch
    if kit.no_compile is None:
        faster = with_segment(batch, compiled=True, attention=attention_for(kit.device, True))
        found["compile"] = Plan(faster, padded)
    if padded:
        found["packing"] = Plan(faster, False)
    found[EVERYTHING] = Plan(tuned, False)
    found[f"{WITHOUT}auto_batch"] = Plan(with_segment(tuned, device_batch=DEVICE_BATCH), False)
    found[f"{WITHOUT}fast_code"] = Plan(start_choices(tuned, Faults.named("eager")), False)
    if padded:
        found[f"{WITHOUT}packing"] = Plan(tuned, True)
    found[f"{WITHOUT}allocator"] = Plan(plain, False)
    return found


def with_plain_memory(choices: Choices) -> Choices:
    """The plan in workers that get memory as the C library does by itself: the start, and what was published on it."""
    return replace(choices, environment=plain_memory(choices.environment))


def with_segment(choices: Choices, **changes: Any) -> Choices:
    """The plan computed otherwise, in all its segments."""
    return replace(choices, segments=tuple(replace(segment, **changes) for segment in choices.segments))


WORDS = {
    START: "start", "auto_batch": "+ auto batch", "compile": "+ compile", "packing": "+ packing",
    EVERYTHING: "everything as tuned", f"{WITHOUT}auto_batch": "everything without auto batch",
    f"{WITHOUT}fast_code": "everything without fast code", f"{WITHOUT}packing": "everything without packing",
    f"{WITHOUT}allocator": "everything without the allocator's settings",
    REFERENCE: REFERENCE, "intone": "intone", "first": "first step",
}  # fmt: skip


def ways_of(kit: Kit, stage: str, keys: Sequence[str], heard: dict[str, list[float]]) -> list[Way]:
    """The rows to show, those with a side to be measured. heard: gets the first losses of every side."""
    plans = plans_of(kit, stage)
    seen: dict[tuple[Any, ...], str] = {}
    ways = []
    for key in keys:
        if key not in plans:
            if key == "compile":
                ways.append(Way(key, WORDS[key], "-", None, f"not here: {kit.no_compile}; the rows below go without"))
            continue
        plan = plans[key]
        segment = plan.choices.segments[0]
        before = seen.setdefault(plan.key, key)
        note = "" if before == key else f"the same plan as {WORDS[before]!r}, which is measured"
        side = side_of(kit, stage, key, plan, heard) if before == key else None
        ways.append(Way(key, WORDS[key], str(segment.device_batch), side, note or plan_note(key, plan)))
    return ways


def plan_note(key: str, plan: Plan) -> str:
    """What a reader must know about a row's plan."""
    segment = plan.choices.segments[0]
    if key == START:
        rows = "rows padded to the longest of their batch" if plan.padded else "packed rows"
        return f"{segment.dtype}, PyTorch's operations one by one, {rows}, memory as the C library gets it by itself"
    if key == "compile" and plan.padded:
        return "compiled code knows one shape: rows are padded to the whole context, as published"
    if key == EVERYTHING:
        fast = "compiled" if segment.compiled else "our kernels" if segment.kernels == "native" else "not compiled"
        return f"{segment.dtype}, {segment.device_batch} rows at a time, {fast}, attention {segment.attention}, packed"
    if key == f"{WITHOUT}fast_code":
        return "PyTorch's operations one by one"
    return ""


# --- sides ----------------------------------------------------------------------------------------------------------


def listening(child: LineChild, name: str, heard: dict[str, list[float]]) -> LineChild:
    """The child, whose first process takes MIN_STEPS steps before anything is timed, and tells their losses.

    All sides begin at the same weights and rows, so these are losses of the very same steps.
    """
    wait = child.wait_ready

    def wait_ready(*arguments: Any) -> Ready:
        ready = wait(*arguments)
        if name not in heard:
            losses = child.block(steps=MIN_STEPS)["losses"]
            heard[name] = [float("nan") if loss is None else float(loss) for loss in losses]
        return ready

    child.wait_ready = wait_ready  # type: ignore[assignment,method-assign]
    return child


def side_of(
    kit: Kit, stage: str, key: str, plan: Plan, heard: dict[str, list[float]], *, size: int | None = None
) -> Side:
    """A row as a side of a measurement: every start is a new job folder."""
    numbers = itertools.count(1)

    def start() -> LineChild:
        folder = kit.scratch / f"{stage} {key} {next(numbers)}"
        folder.mkdir()
        write_choices(folder, plan.choices)
        write_json(folder / "config.json", kit.jobs[stage].as_json())
        child: LineChild
        if plan.padded:
            write_faults(folder, Faults.named("padded_rows"))
            child = StartChild(folder, plan.choices.environment, name=WORDS[key])
        else:
            child = WorkerChild(folder, plan.choices.environment, name=WORDS[key])
        return listening(child, key, heard)

    return Side(key, start, unit="supervised" if stage == "sft" else "tokens", size=size)


def reference_losses(kit: Kit, stage: str) -> list[float]:
    """The losses of the same first steps in fp32, eager and packed: what every row is held against."""
    heard: dict[str, list[float]] = {}
    eager = start_choices(with_plain_memory(kit.tuned), Faults.named("eager"))
    plan = Plan(with_segment(eager, dtype="fp32"), False)
    with side_of(kit, stage, REFERENCE, plan, heard).start() as child:
        child.wait_ready()
    return heard[REFERENCE]


def parity_words(heard: Mapping[str, list[float]], reference: list[float], dtype: str) -> dict[str, str]:
    """By key, how far a row's losses are from the reference's, and whether the gate on losses lets it pass."""
    found = {}
    for key, losses in heard.items():
        accepted, why = trajectory_gate(losses, reference, dtype=dtype)
        worst = max(relative_differences(losses, reference))
        tail = "" if accepted else f", REJECTED by the gate on losses: {why}"
        found[key] = f"losses of {len(losses)} equal steps within {worst:.1e} of {REFERENCE}{tail}"
    return found


# --- tables ---------------------------------------------------------------------------------------------------------

KEYS = {
    "sft": (START, "auto_batch", "compile", "packing", EVERYTHING, f"{WITHOUT}auto_batch", f"{WITHOUT}fast_code",
            f"{WITHOUT}packing", f"{WITHOUT}allocator"),
    "base": (START, "auto_batch", "compile", EVERYTHING, f"{WITHOUT}auto_batch", f"{WITHOUT}fast_code",
             f"{WITHOUT}allocator"),
}  # fmt: skip
NOT_QUICK = (f"{WITHOUT}allocator",)  # two processes more, for a gain that three rounds could not tell from noise


def train_table(
    kit: Kit, stage: str, *, quick: bool, replicates: int | None = None, rounds: int | None = None,
    block_s: float | None = None, keys: Sequence[str] | None = None, lock: bool = True, others: Sequence[Way] = (),
) -> Table:  # fmt: skip
    """One stage from the start to everything. Raises SideFailed where the start cannot be measured.

    replicates: fresh processes of each side; rounds: in each of them; block_s: of one block. None: as quick says.
    others: rows of foreign programs that do the same steps; their losses are not looked at.
    """
    heard: dict[str, list[float]] = {}
    shown = keys or [key for key in KEYS[stage] if not (quick and key in NOT_QUICK)]
    ways = [*ways_of(kit, stage, shown, heard), *others]
    sides = [way.side for way in ways if way.side is not None]
    if len(sides) < 2:
        note = f"the plan settled for this machine is the starting point's own ({stage}): nothing to compare"
        raise UserError(note, fix="use a larger --context or --batch-tokens, or let it compile")
    by_rule = SHAPES[quick]
    shape = (replicates or by_rule[0], rounds or by_rule[1])
    measured = measure_rounds(sides, shape=shape, block_s=block_s or BLOCK_S[quick], lock=lock)
    parity = parity_words(heard, reference_losses(kit, stage), kit.segment.dtype)
    job = kit.jobs[stage]
    tokens = job.rows_per_step * job.context
    unit = "supervised tokens" if stage == "sft" else "tokens"
    work = supervised_per_step(measured, START)
    return to_table(
        stage, {"sft": "SFT", "base": "base and mid"}[stage], ways, measured, unit=unit, work=work, work_words="step",
        threads=kit.segment.threads or 1, parity=parity,
        notes=[f"every row does the same steps of {human_count(tokens)} positions, {work:,.0f} {unit} each"],
    )  # fmt: skip


def supervised_per_step(measured: Measured, side: str) -> float:
    """Units of work of one optimizer step, by what a side's blocks did."""
    blocks = [block for entry in measured.rounds for block in entry.of(side)]
    return sum(block.work for block in blocks) / sum(block.answer["steps"] for block in blocks)


def compile_table(kit: Kit, *, steps: int, quick: bool) -> Table:
    """The same steps of base training without and with compiled code; raises UserError where nothing can be compiled.

    Both sides do `steps` steps in all, in turns, ten blocks each (six with quick), in one process a side.
    """
    if kit.no_compile is not None:
        raise UserError(f"there is nothing to compare: {kit.no_compile}", fix="install a compiler, or use --compile on")
    rounds = 3 if quick else 5
    size = max(1, steps // (2 * rounds))
    plans = plans_of(kit, "base")
    heard: dict[str, list[float]] = {}
    chosen = {START: plans["auto_batch"], EVERYTHING: plans["compile"]}
    sides = [side_of(kit, "base", key, plan, heard, size=size) for key, plan in chosen.items()]
    batch = str(kit.segment.device_batch)
    ways = [
        Way(START, "eager", batch, sides[0], "base training in the settled micro-batch, PyTorch's operations"),
        Way(EVERYTHING, "compiled", batch, sides[1], "the same in compiled code, one shape"),
    ]
    measured = measure_rounds(sides, shape=(1, rounds), block_s=1.0)
    parity = parity_words(heard, reference_losses(kit, "base"), kit.segment.dtype)
    job = kit.jobs["base"]
    done = 2 * rounds * size
    table = to_table(
        "compile", f"{done} steps", ways, measured, unit="tokens", work=done * job.rows_per_step * job.context,
        work_words=f"{done} steps", threads=kit.segment.threads or 1, parity=parity,
    )  # fmt: skip
    return replace(table, notes=compile_notes(table, done))


def compile_notes(table: Table, steps: int) -> list[str]:
    """What compiling costs, and after how many steps it has paid."""
    eager, compiled = table.lines.get(START), table.lines.get(EVERYTHING)
    if eager is None or compiled is None:
        return []
    seconds = [table.work / line.rate.value / steps for line in (eager, compiled)]
    cost_s = max(0.0, compiled.first_s - seconds[1])
    whole = cost_s + steps * seconds[1]
    plain = steps * seconds[0]
    notes = [f"with {cost_s:.1f} s of compiling the {steps} steps take {whole:.1f} s, without {plain:.1f} s"]
    if seconds[1] < seconds[0]:
        notes.append(f"compiling has paid after {cost_s / (seconds[0] - seconds[1]):,.0f} steps")
    else:
        notes.append("compiled steps are not faster here: compiling never pays")
    return notes


def measured_job(job: TrainJob, start: Path | None) -> TrainJob:
    """The job as it is measured: at the rates of trials, for as long as we like, saving nothing.

    start: the job folder whose weights it begins with; None: random ones.
    """
    return replace(
        job, steps=NUM_STEPS, schedule=recipe.TRIAL_SCHEDULE, init_from=None if start is None else str(start),
        keep_optimizer=False, keep=0, eval_every=None, samples=(), val=None,
    )  # fmt: skip
