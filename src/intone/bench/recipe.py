"""Recipe experiments: the same job trained with other rates, batches or schedules, and what each is worth in bpb.

    intone train base --data TEXT --val TEXT --depth 4 --context 512 --vocab-size 8192 --steps 100 --prepare --name r4
    python -m intone.bench.recipe --from r4/base --tokens 1.5e6 \
        --try batch_tokens=4096 --try batch_tokens=4096,matrix_lr=0.04

Every variant sees the same tokens from the same start; results go to bench/results/recipe-experiments.txt, a line each.
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from intone import jobs
from intone.bench.rows import ROOT, code_revision
from intone.config import OptimConfig, ScheduleConfig, TrainJob
from intone.errors import UserError, unknown_name
from intone.log import say
from intone.paths import append_line, home, read_json, write_json
from intone.records import read_choices, read_log, utc_now, write_choices
from intone.runs import find_stage

OPTIM = {field.name: field.type for field in dataclasses.fields(OptimConfig)}
SCHEDULE = {field.name: field.type for field in dataclasses.fields(ScheduleConfig)}
VAL_TOKENS = 131_072


def main(argv: Sequence[str] | None = None) -> int:
    """Trains every variant and prints its bits per byte; exit 2 for a mistake of the person."""
    parser = argparse.ArgumentParser(prog="python -m intone.bench.recipe", description=__doc__)
    parser.add_argument("--from", dest="start", required=True, help="a prepared stage: RUN/STAGE")
    parser.add_argument("--tokens", type=float, required=True, help="tokens that every variant trains on")
    parser.add_argument("--try", dest="variants", action="append", default=[], help="NAME=VALUE[,NAME=VALUE...]")
    parser.add_argument("--threads", type=int, help="CPU threads, by default those of the prepared stage")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "recipe-experiments.txt")
    asked = parser.parse_args(argv)
    try:
        source = find_stage(asked.start).folder
        variants = [parse(words) for words in asked.variants or [""]]
        for variant in variants:
            row = train(source, variant, int(asked.tokens), asked.threads)
            append_line(asked.out, row)
            print(f"{row['variant'] or 'as prepared':<60} bpb {row['bpb']:.4f}   {row['steps']:,} steps")
    except UserError as error:
        say(str(error))
        return 2
    return 0


def parse(words: str) -> dict[str, float]:
    """{name: value} of "name=value,name=value". Raises UserError for a name that no job has."""
    known = {"batch_tokens", "seed", *OPTIM, *SCHEDULE}
    values: dict[str, float] = {}
    for word in filter(None, words.split(",")):
        name, _, value = word.partition("=")
        if name not in known:
            raise unknown_name("recipe setting", name, sorted(known))
        try:
            values[name] = float(value)
        except ValueError:
            raise UserError(f"{name} {value!r} is not a number", value=value) from None
    return values


def changed(job: TrainJob, variant: dict[str, float], tokens: int) -> TrainJob:
    """The job with a variant's values and as many steps as the tokens make."""

    def typed(cls: Any, names: dict[str, Any]) -> dict[str, Any]:
        defaults: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(cls)}
        return {name: type(defaults[name])(value) for name, value in variant.items() if name in names}

    rows = job.rows_per_step
    if "batch_tokens" in variant:
        rows = int(variant["batch_tokens"]) // job.context
    if rows < 1:
        raise UserError(f"batch_tokens is less than one row of {job.context} tokens", value=variant["batch_tokens"])
    return replace(
        job,
        rows_per_step=rows,
        steps=max(1, tokens // (rows * job.context)),
        seed=int(variant.get("seed", job.seed)),
        optim=replace(job.optim, **typed(OptimConfig, OPTIM)),
        schedule=replace(job.schedule, **typed(ScheduleConfig, SCHEDULE)),
        eval_every=None,
        eval_tokens=VAL_TOKENS,
        samples=(),
        keep=1,  # without saves a job is a trial and evaluates nothing
    )


def train(source: Path, variant: dict[str, float], tokens: int, threads: int | None) -> dict[str, Any]:
    """Trains one variant in a throw-away folder -> what it was and its bits per byte. Raises UserError."""
    choices = read_choices(source)
    job = changed(TrainJob.from_json(read_json(source / "config.json")), variant, tokens)
    first = choices.segments[0]
    segment = replace(
        first, device_batch=min(first.device_batch, job.rows_per_step), threads=threads or first.threads
    )
    environment = dict(choices.environment) | {"OMP_NUM_THREADS": str(segment.threads or 1)}
    name = ",".join(f"{key}={value:g}" for key, value in variant.items())
    say(f"{name or 'as prepared'}: {job.steps:,} steps of {job.rows_per_step * job.context:,} tokens")
    with jobs.trial_folder(home() / "recipe") as folder:
        write_json(folder / "config.json", job.as_json())
        write_choices(folder, replace(choices, segments=(segment,)))
        outcome = jobs.start(folder, environment).wait()
        if outcome.outcome != "done":
            raise UserError(f"{name or 'the prepared job'}: {outcome.outcome}: {outcome.message}", fix=outcome.fix)
        evaluations = read_log(folder / "log.jsonl", "eval")
        steps = read_log(folder / "log.jsonl", "step")
    return {
        "variant": name, "depth": job.model.depth, "tokens": job.steps * job.rows_per_step * job.context,
        "steps": job.steps, "bpb": evaluations[-1]["values"]["bpb"], "last_loss": steps[-1]["loss"],
        "seed": job.seed, "code": code_revision(), "date": utc_now(),
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
