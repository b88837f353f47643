"""`intone bench casestudy`: the published tables re-run on this machine, every total measured and none multiplied"""

import dataclasses
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from intone import jobs
from intone.bench.casestudy_infer import Texts, inference_table
from intone.bench.casestudy_nanochat import Nanochat, find_nanochat
from intone.bench.casestudy_rows import EVERYTHING, START, WITHOUT, Table, result_rows, table_text
from intone.bench.casestudy_settings import (
    AutobatchSettings,
    CaseSettings,
    CasestudySettings,
    CombinedSettings,
    CompileSettings,
    InferenceSettings,
    command_line,
)
from intone.bench.casestudy_start import plain_memory
from intone.bench.casestudy_train import Kit, compile_table, measured_job, train_table
from intone.bench.gpu import short_name
from intone.bench.rows import row_path
from intone.config import ScheduleConfig, TrainJob, model_config
from intone.data.chat import SPECIALS
from intone.errors import EXIT_CHECK_FAILED, EXIT_DONE, UserError
from intone.ground import Ground, Settled, settle_ground
from intone.hardware import Facts, compile_obstacle, load_facts
from intone.log import human_count, human_duration, say
from intone.model.cost import num_parameters
from intone.paths import home, write_json
from intone.planning import settle_batch_tokens, stage_choices, stage_job
from intone.prepare import Mix, ensure_mix, ensure_tokenizer, fetched, find_source
from intone.prove.measure import SideFailed
from intone.prove.trial import run_worker
from intone.records import Answer, ResultRow, append_result, choice, write_choices
from intone.resolving import Layer, Resolved, resolve
from intone.settings import TrainSettings
from intone.tune.settle import settle_device

# steps of the trainings that the plan is settled for: long enough that compiling pays where it ever does
PLAN_STEPS = 5_000
DATA_STEPS = 300  # enough text for so many steps: speed does not depend on more
START_STEPS = {True: 20, False: 60}  # by quick: of base training that gives the weights all rows begin with
SIZES = ("depth", "vocab_size", "batch_tokens")
PASSED_ON = ("dtype", "threads", "kernels", "compile", "device_batch", "context", "preset", "seed")


@dataclass(frozen=True)
class Prepared:
    """What is ready before anything is measured."""

    kit: Kit
    ground: Ground
    weights: Path  # job folder of the short base training
    seconds: float
    words: str


def bench_casestudy(settings: CasestudySettings, _origins: Mapping[str, Resolved]) -> Answer:
    """The verb: all tables, or the parts asked for."""

    def tables(ready: Prepared) -> Iterator[Table]:
        amount = settings.asked_replicates
        for part in dict.fromkeys(settings.parts):
            if part == "inference":
                yield generation(ready, settings, amount)
            else:
                theirs = nanochat_of(ready, settings) if part == "sft" else None
                others = [] if theirs is None else [theirs.sft(ready.kit.jobs[part])]
                yield train_table(ready.kit, part, quick=settings.quick, replicates=amount, others=others)

    return run("casestudy", settings, tables)


def bench_autobatch(settings: AutobatchSettings, _origins: Mapping[str, Resolved]) -> Answer:
    """The verb: the start and the start in the settled micro-batch, in SFT and in base training."""

    def tables(ready: Prepared) -> Iterator[Table]:
        for part in ("sft", "base"):
            if ready.ground.device_batch == 4:
                say(f"{part}: the micro-batch that suits this machine is the starting point's own, 4: 1x by itself")
                continue
            amount, keys = settings.asked_replicates, (START, "auto_batch")
            yield train_table(ready.kit, part, quick=settings.quick, replicates=amount, keys=keys)

    return run("autobatch", settings, tables)


def bench_combined(settings: CombinedSettings, _origins: Mapping[str, Resolved]) -> Answer:
    """The verb: the start, everything, and everything without one change at a time."""

    def tables(ready: Prepared) -> Iterator[Table]:
        for part in ("sft", "base"):
            without = [f"{WITHOUT}auto_batch", f"{WITHOUT}fast_code"] + [f"{WITHOUT}packing"] * (part == "sft")
            amount, keys = settings.asked_replicates, (START, EVERYTHING, *without)
            yield train_table(ready.kit, part, quick=settings.quick, replicates=amount, keys=keys)

    return run("combined", settings, tables)


def bench_compile(settings: CompileSettings, _origins: Mapping[str, Resolved]) -> Answer:
    """The verb: the same steps with and without compiled code."""
    steps = 30 if settings.quick else settings.steps
    return run("compile", settings, lambda ready: iter([compile_table(ready.kit, steps=steps, quick=settings.quick)]))


def bench_inference(settings: InferenceSettings, _origins: Mapping[str, Resolved]) -> Answer:
    """The verb: the table of generation."""
    return run("inference", settings, lambda ready: iter([generation(ready, settings)]))


def generation(ready: Prepared, settings: InferenceSettings, replicates: int | None = None) -> Table:
    """The table of generation, with nanochat's own where a checkout is given."""
    texts, theirs = texts_of(ready, settings), nanochat_of(ready, settings)
    prompts = texts.config(texts.rows, texts.new_tokens)["prompts"]
    others = [] if theirs is None else [theirs.generation(ready.ground.config, prompts, texts.new_tokens)]
    return inference_table(texts, quick=settings.quick, replicates=replicates, others=others)


def nanochat_of(ready: Prepared, settings: InferenceSettings) -> Nanochat | None:
    """nanochat at the commit of the case study, where a checkout is given. Raises UserError where it cannot be used."""
    if settings.nanochat is None:
        return None
    return find_nanochat(
        settings.nanochat, settings.nanochat_python or sys.executable, settings.preset, device=ready.ground.device,
        environment=plain_memory(ready.ground.environment), scratch=ready.kit.scratch,
    )  # fmt: skip


def run(verb: str, settings: CaseSettings, tables: Callable[[Prepared], Iterator[Table]]) -> Answer:
    """Prepares, measures table after table, prints each when it is done, and keeps rows of full measurements."""
    began_s = time.monotonic()
    path = Path(settings.out).absolute() if settings.out else row_path("casestudy")
    facts = load_facts()
    prefix = "cpu" if (facts.device or "cpu") == "cpu" else short_name(facts, facts.device or "cpu")
    found: list[Table] = []
    rows: list[ResultRow] = []
    with prepared(settings, facts) as ready:
        print(f"{ready.words}\nready after {human_duration(ready.seconds)}\n", flush=True)
        try:
            for table in tables(ready):
                print(f"{table_text(table)}\n", flush=True)
                found.append(table)
                if settings.quick:
                    continue
                kept = result_rows(table, prefix=prefix, command=command_line(verb, settings))
                for row in kept:  # before the next table, which may be cut
                    append_result(path, row)
                rows += kept
        except SideFailed as failure:
            raise UserError(str(failure), value=failure.side, fix=failure.outcome.fix) from failure
    gates = [gate for table in found for gate in table.gates]
    rejected = [line for table in found for line in table.lines.values() if "REJECTED" in line.parity]
    number = "1 table" if len(found) == 1 else f"{len(found)} tables"
    text = [f"{number} in {human_duration(time.monotonic() - began_s)}; what was published, and why it differs: "
            "docs/case-study.md"]  # fmt: skip
    if settings.quick:
        kept_words = f"no row kept, {settings.out} not written" if settings.out else "no row kept"
        text.append(f"quick: 3 rounds of one process a side, a small model, {kept_words}; leave out --quick for those")
    else:
        text.append(f"{len(rows)} rows are in {path}")
    code = EXIT_CHECK_FAILED if rejected or any(gate.passed is False for gate in gates) else EXIT_DONE
    result = {"tables": [table_json(table) for table in found], "rows": [dataclasses.asdict(row) for row in rows]}
    return Answer(result, "\n".join(text), exit=code, path=str(path))


# --- preparing ------------------------------------------------------------------------------------------------------


@contextmanager
def prepared(settings: CaseSettings, facts: Facts) -> Iterator[Prepared]:
    """Data, tokenizer, the settled plan, and weights to begin with. The scratch folder is deleted at the end."""
    began_s = time.monotonic()
    asked, origins = training_settings(settings)
    rows_per_step = settle_batch_tokens(origins["batch_tokens"], settings.context, 0.0).value // settings.context
    # a quick look searches where a training of PLAN_STEPS would, the tables compare everything that can be tuned
    chosen = {name: choice(origins[name]) for name in (*PASSED_ON, *SIZES)}
    settled = Settled(facts, chosen, always=not settings.quick)
    device = settled.put("device", settle_device(origins["device"], facts))
    tokens = float(DATA_STEPS * settings.settled("batch_tokens"))
    text = fetched(find_source("documents", settings.data, ()), tokens)
    talk = fetched(find_source("conversations", settings.sft, ()), tokens)
    folder, tokenizer = ensure_tokenizer([text, talk], settings.settled("vocab_size"))
    config = model_config(settings.preset, depth=settings.settled("depth"), vocab_size=tokenizer.vocab_size,
                          context=settings.context)  # fmt: skip
    mixes = {
        stage: ensure_mix(source, folder, tokenizer, tokens=tokens, name=stage)
        for stage, source in (("base", text), ("sft", talk))
    }
    ground = settle_ground(
        settled, asked, origins, config, folder, tokenizer, trial_data=Path(mixes["base"].folders[0]),
        rows_per_step=rows_per_step, device=device, devices=1, expected_steps=PLAN_STEPS,
    )  # fmt: skip
    tuned = stage_choices(settled, ground)
    with jobs.trial_folder(home() / "trials") as scratch:
        weights = base_weights(stage_of(asked, ground, "base", mixes["base"]), tuned, scratch, settings)
        measured = {stage: measured_job(stage_of(asked, ground, stage, mix), weights) for stage, mix in mixes.items()}
        no_compile = compile_obstacle(facts) or ("--compile off" if settings.compile == "off" else None)
        kit = Kit(measured, tuned, scratch, no_compile)
        size = human_count(num_parameters(config)["total"])
        words = (
            f"{settings.preset} model, depth {config.depth}, width {config.width}, {size} parameters, "
            f"{tokenizer.vocab_size:,} entries; context {config.context}, "
            f"{rows_per_step * config.context:,} positions a step; "
            f"settled here: {ground.dtype}, {ground.threads} threads, {ground.device_batch} rows at a time, "
            f"{'compiled' if ground.compiled else 'not compiled'}, operations: {ground.kernels}, attention: "
            f"{ground.attention}, pieces of the loss: {ground.head_pieces}, "
            f"allocator: {settled.choices['allocator'].value}"
        )
        yield Prepared(kit, ground, weights, time.monotonic() - began_s, words)


def training_settings(settings: CaseSettings) -> tuple[TrainSettings, Mapping[str, Resolved]]:
    """The settings of `intone train base` that decide how a step is computed."""
    values: dict[str, Any] = {name: getattr(settings, name) for name in PASSED_ON}
    values |= {name: settings.settled(name) for name in SIZES} | {"stage": "base"}  # type: ignore[arg-type]
    given = {name: value for name, value in values.items() if value != "auto"}
    return resolve(TrainSettings, [Layer("flag", "intone bench casestudy", given)])


def stage_of(asked: TrainSettings, ground: Ground, stage: str, mix: Mix) -> TrainJob:
    """A stage's job on its data."""
    return replace(stage_job(asked, ground, stage, PLAN_STEPS, ScheduleConfig()), data=mix.folders, weights=mix.weights)


def base_weights(job: TrainJob, tuned: Any, scratch: Path, settings: CaseSettings) -> Path:
    """A job folder with the weights of a short base training. Raises UserError where it fails."""
    folder = scratch / "weights"
    folder.mkdir()
    steps = START_STEPS[settings.quick]
    say(f"training {steps} steps of base for weights to begin with")
    write_choices(folder, tuned)
    write_json(folder / "config.json", replace(job, steps=steps, keep=1, samples=(), eval_every=None, val=None,
                                               save_every_s=1e9).as_json())  # fmt: skip
    outcome = run_worker(folder)
    if outcome.outcome != "done":
        raise UserError(f"the first {steps} steps ended as {outcome.outcome}: {outcome.message}", fix=outcome.fix)
    return folder


def texts_of(ready: Prepared, settings: InferenceSettings) -> Texts:
    """What the table of generation is about. Raises UserError where a text does not fit into the context."""
    ground = ready.ground
    if settings.prompt_tokens + settings.new_tokens > ground.config.context:
        raise UserError(
            f"{settings.prompt_tokens} and {settings.new_tokens} tokens do not fit into the context of "
            f"{ground.config.context}", value=settings.new_tokens, fix="use a larger --context or fewer --new-tokens",
        )  # fmt: skip
    tokenizer = ground.tokenizer
    return Texts(
        weights=ready.weights, tokenizer=ground.tokenizer_folder, dtype=ground.dtype, device=ground.device,
        threads=ground.threads, ordinary=tokenizer.vocab_size - len(SPECIALS), rows=settings.rows,
        prompt_tokens=settings.prompt_tokens, new_tokens=settings.new_tokens, environment=ground.environment,
        scratch=ready.kit.scratch,
    )  # fmt: skip


def table_json(table: Table) -> dict[str, Any]:
    """A table for machines."""
    measured: Sequence[dict[str, Any]] = [
        {
            "name": f"{table.title}: {line.way.words}", "key": key, "batch": line.way.batch, "unit": f"{table.unit}/s",
            "rate": dataclasses.asdict(line.rate), "comparison": line.ratio.as_json() if line.ratio else None,
            "busy": line.busy, "first_s": line.first_s, "warm_first_s": line.warm_first_s,
            "peak_bytes": line.peak_bytes, "parity": line.parity,
        }
        for key, line in table.lines.items()
    ]  # fmt: skip
    left_out = {way.words: way.note for way in table.ways if way.side is None}
    without = [
        {"name": f"{table.title}: everything over {table.lines[key].way.words}", "comparison": ratio.as_json()}
        for key, ratio in table.without.items()
    ]
    return {
        "part": table.part, "rows": measured, "left_out": left_out, "without": without, "notes": list(table.notes),
        "rounds": table.num_rounds, "unsteady": table.measured.unsteady,
    }  # fmt: skip
