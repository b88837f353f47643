"""The search for a micro-batch on a GPU: its seconds, whether memory ran out, and its choice beside all other sizes"""

from dataclasses import replace

from intone.bench.gpu_suites.bench import Bench
from intone.bench.gpu_suites.casestudy import make_kit, shape_of
from intone.bench.tune import REPLICATES, ROUNDS, SWEEP, Case, measured_case
from intone.hardware import load_facts
from intone.log import say
from intone.tune.curve import curve_text
from intone.tune.settle_batch import BatchQuestion
from intone.tune.trial import attention_for

STAGES = ("base", "sft")
CASE_S = 95.0  # an H200 took 90 s: five starts of ten seconds and a sweep


def tune(bench: Bench) -> None:
    """Rows tune.batch_quality.STAGE, .batch_search_s, .memory_error and .search_oom of the case study's model, eager;
    those without a stage are the worse of the two."""
    shape = shape_of(bench)
    kit = make_kit(bench, shape)
    for stage in STAGES:
        names = [f"tune.{what}.{stage}" for what in ("batch_quality", "batch_search_s", "search_oom")]
        if not bench.may(f"the micro-batch of {stage}", *names, seconds=CASE_S):
            continue
        segment = replace(kit.segment, compiled=False, attention=attention_for(bench.device, False))
        question = BatchQuestion(
            kit.jobs[stage], segment, bench.device, 1, dict(bench.environment), bench.scratch / "trials"
        )
        case = measured_case(load_facts(), question, ("line",))
        for line in curve_text(case.found["line"], shape.rows_per_step * shape.config.context).splitlines():
            say(line)
        rows_of(bench, case, f".{stage}")
    whole(bench)


def rows_of(bench: Bench, case: Case, ending: str) -> None:
    """The rows of one case."""
    found, quality = case.found["line"], case.quality()
    bench.row(f"tune.batch_quality{ending}", quality.value, "share", low=quality.low, high=quality.high,
              n=REPLICATES * ROUNDS, baseline=SWEEP)  # fmt: skip
    bench.row(f"tune.batch_search_s{ending}", found.seconds, "s", n=1)
    bench.row(f"tune.search_oom{ending}", float(found.num_out_of_memory), "count", n=1)
    if (error := case.memory_error()) is not None:
        bench.row(f"tune.memory_error{ending}", error, "share", n=1, baseline="growth of a fresh worker")


def whole(bench: Bench) -> None:
    """The rows of all stages: the worst of each, once all of them are known."""
    for what, unit, pick, why in (
        ("batch_quality", "share", min, SWEEP), ("batch_search_s", "s", max, None),
        ("memory_error", "share", max, "growth of a fresh worker"),
    ):
        found = [row for stage in STAGES if (row := bench.known(f"tune.{what}.{stage}")) is not None]
        if len(found) < len(STAGES) or bench.has(f"tune.{what}"):
            continue
        worst = pick(found, key=lambda row: row.value)
        baseline = ", ".join(filter(None, (why, f"worst of {len(found)}")))
        bench.row(f"tune.{what}", worst.value, unit, low=worst.low, high=worst.high, n=worst.n, baseline=baseline)
