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
CASE_S = 70.0  # guess: five starts of ten seconds and a sweep


def tune(bench: Bench) -> None:
    """Rows tune.batch_quality.STAGE, .batch_search_s, .memory_error and .search_oom of the case study's model, eager;
    those without a stage are the worse of the two."""
    shape = shape_of(bench)
    kit = make_kit(bench, shape)
    cases: dict[str, Case] = {}
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
        cases[stage] = case
        rows_of(bench, case, f".{stage}")
    if len(cases) == len(STAGES):
        whole(bench, list(cases.values()))


def rows_of(bench: Bench, case: Case, ending: str) -> None:
    """The rows of one case."""
    found, quality = case.found["line"], case.quality()
    bench.row(f"tune.batch_quality{ending}", quality.value, "share", low=quality.low, high=quality.high,
              n=REPLICATES * ROUNDS, baseline=SWEEP)  # fmt: skip
    bench.row(f"tune.batch_search_s{ending}", found.seconds, "s", n=1)
    bench.row(f"tune.search_oom{ending}", float(found.num_out_of_memory), "count", n=1)
    if (error := case.memory_error()) is not None:
        bench.row(f"tune.memory_error{ending}", error, "share", n=1, baseline="growth of a fresh worker")


def whole(bench: Bench, cases: list[Case]) -> None:
    """The rows of all cases: the worst of each."""
    worst = min(cases, key=lambda case: case.quality().value).quality()
    bench.row("tune.batch_quality", worst.value, "share", low=worst.low, high=worst.high, n=REPLICATES * ROUNDS,
              baseline=f"{SWEEP}, worst of {len(cases)}")  # fmt: skip
    bench.row("tune.batch_search_s", max(case.found["line"].seconds for case in cases), "s", n=len(cases))
    errors = [error for case in cases if (error := case.memory_error()) is not None]
    if errors:
        bench.row("tune.memory_error", max(errors), "share", n=len(errors), baseline="growth of a fresh worker")
