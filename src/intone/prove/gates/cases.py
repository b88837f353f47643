"""The cases of the gates' self-test: for every gate one where nothing is wrong, and faults that it must reject.

Runs as a child process (`python -m intone.prove.gates.cases`) that selftest.py asks: it breaks its own code on purpose.
"""

import dataclasses
import gc
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from intone.engine.engine import Engine
from intone.evals.intervals import Interval
from intone.hardware import Facts, read_system
from intone.prove.gates import (
    chain,
    decode,
    faults,
    memory,
    parity,
    physical,
    recipe,
    replay,
    resume,
    sampling,
    sealed,
    seeds,
    stack,
    timing,
    training,
)
from intone.prove.gates.result import Gate, GateResult, NotJudged, as_json, not_judged
from intone.prove.gates.tiny import SEGMENT, TinyJobs, random_model
from intone.prove.trial import Run, Side, run_worker, trial
from intone.rates import copy_rate, product_rate
from intone.records import Outcome
from intone.worker import StopFlag, run_guarded

NamedCase = tuple[str, str | None, Callable[[], GateResult]]  # (gate, fault or None, its judgement)
SEEDS, SEED_STEPS = (1, 2, 3), 6
BLOCK_S = 0.3  # of the processes whose time is judged: fifteen times the ticks in which processor time is counted


def every(folder: Path) -> Iterator[NamedCase]:
    """All cases, cheap ones first; what they share (jobs, a model) is made below folder when it is needed."""
    yield from sealed_cases(folder / "sealed")
    yield from stack_cases()
    yield from timing_cases()
    jobs = TinyJobs(folder)
    yield from recipe_cases(jobs)
    yield from small_cases(jobs)
    yield from parity_cases(jobs)
    yield from seed_cases(jobs)
    yield from resume_cases(jobs)
    yield from engine_cases(jobs)


def run_here(folder: Path) -> Outcome:
    """The worker's code in this process, where it can be broken."""
    gc.freeze()  # a training begins with a collection, which looks through all of torch: 0.17 s of 0.19 s [measured]
    return run_guarded(folder, StopFlag().listen())


def broken(fault: faults.Fault) -> Run:
    """The worker's code in this process with a fault planted."""

    def run(folder: Path) -> Outcome:
        with fault():
            return run_here(folder)

    return run


# --- files, sums, clocks ----------------------------------------------------------------------------------------


def sealed_cases(folder: Path) -> Iterator[NamedCase]:
    """A harness of two files that somebody edits or adds to."""
    folder.mkdir(parents=True)
    (folder / "evaluate.py").write_text("print(1.23)\n")
    (folder / "data.bin").write_bytes(bytes(1000))
    before = sealed.seal([folder])

    def edited() -> GateResult:
        state = (folder / "evaluate.py").stat()
        (folder / "evaluate.py").write_text("print(0.99)\n")  # the same length, and the same time below
        os.utime(folder / "evaluate.py", ns=(state.st_atime_ns, state.st_mtime_ns))
        result = sealed.gate(before).run()
        (folder / "evaluate.py").write_text("print(1.23)\n")
        return result

    def added() -> GateResult:
        (folder / "sitecustomize.py").write_text("")
        result = sealed.gate(before).run()
        (folder / "sitecustomize.py").unlink()
        return result

    yield sealed.NAME, None, sealed.gate(before).run
    yield sealed.NAME, "the evaluator edited, its size and time kept", edited
    yield sealed.NAME, "a file put beside the harness", added


def stack_cases() -> Iterator[NamedCase]:
    """The case study's sum, and a stack with a passenger."""
    total, gain = Interval(2.6, 2.4, 2.8), Interval(1.5, 1.4, 1.6)
    good = stack.Stack(total, {"batch": gain, "compile": gain}, {"batch": 1.9, "compile": 1.67}, claimed=2.6)
    idle = dataclasses.replace(good, without={"batch": gain, "prefetch": Interval(0.999, 0.993, 1.006)})
    yield stack.NAME, None, lambda: stack.judge(good)
    multiplied = dataclasses.replace(good, claimed=1.9 * 1.67)
    yield stack.NAME, "factors multiplied in place of measured", lambda: stack.judge(multiplied)
    yield stack.NAME, "only the parts measured", lambda: stack.judge(dataclasses.replace(multiplied, total=None))
    yield stack.NAME, "a change without a gain of its own", lambda: stack.judge(idle)


BUSY = "import time\nend = time.monotonic() + {0}\nwhile time.monotonic() < end: pass"
ASLEEP = "import time\ntime.sleep({0})"
# waits for a line, works, says how long that took by its own clock
CHILD = """
import sys, time
print("ready", flush=True)
sys.stdin.readline()
begin = time.monotonic()
{work}
print((time.monotonic() - begin) * {claims}, flush=True)
sys.stdin.readline()
"""


def timing_cases() -> Iterator[NamedCase]:
    """Real processes: one that works and says so, one that sleeps, one that hides work from its clock."""

    def judged(baseline: tuple[str, float], candidate: tuple[str, float]) -> GateResult:
        blocks = [timed_child("baseline", *baseline), timed_child("candidate", *candidate)]
        return timing.judge(blocks)

    honest = (BUSY.format(BLOCK_S), 1.0)

    def clean() -> GateResult:
        result = judged(honest, honest)
        for _ in range(2):  # a busy machine may hold up one or two, and a fault would be found in all
            result = result if result.passed else judged(honest, honest)
        return result

    yield timing.NAME, None, clean
    yield timing.NAME, "a baseline that sleeps", lambda: judged((ASLEEP.format(BLOCK_S), 1.0), honest)
    yield timing.NAME, "half of the work outside the child's clock", lambda: judged(honest, (honest[0], 0.5))
    yield timing.NAME, "a baseline that claims more than has passed", lambda: judged((honest[0], 1.5), honest)


def timed_child(side: timing.Side, work: str, claims: float) -> timing.Block:
    """One block of a small Python process, seen from here."""
    code = CHILD.format(work=work, claims=claims)
    argv = [sys.executable, "-I", "-c", code]
    child = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdin is not None and child.stdout is not None, "pipes were asked for"
    with child:
        assert child.stdout.readline() == "ready\n", "the child starts"
        begin = timing.read_process(child.pid)
        child.stdin.write("\n")
        child.stdin.flush()
        claimed_s = float(child.stdout.readline())
        end = timing.read_process(child.pid)
        child.communicate("\n")
    return timing.block(side, claimed_s, begin, end, on_cpu=True)


# --- trainings --------------------------------------------------------------------------------------------------


def recipe_cases(jobs: TinyJobs) -> Iterator[NamedCase]:
    """Other ways to compute are free; everything else is the recipe."""
    base = jobs.side(run_here)
    job = jobs.job

    def judged(**changes: Any) -> GateResult:
        return recipe.gate(base.folder, jobs.side(run_here, **changes).folder).run()

    split = jobs.side(run_here, segments=[dataclasses.replace(SEGMENT, device_batch=2, dtype="bf16")], keep=5)
    yield recipe.NAME, None, recipe.gate(base.folder, split.folder).run
    yield recipe.NAME, "twice the tokens per optimizer step", lambda: judged(rows_per_step=12)
    yield recipe.NAME, "learning rate raised", lambda: judged(optim=dataclasses.replace(job.optim, matrix_lr=0.03))
    yield recipe.NAME, "another schedule", lambda: judged(schedule=dataclasses.replace(job.schedule, final_share=0.5))
    yield recipe.NAME, "another seed", lambda: judged(seed=8)
    yield recipe.NAME, "a smaller model", lambda: judged(model=dataclasses.replace(job.model, mlp_ratio=3))

    def double_rows() -> GateResult:
        right = recipe.read_recipe(base.folder)
        with faults.double_rows():
            return recipe.judge(right, recipe.read_recipe(base.folder))

    yield recipe.NAME, "a row of each batch twice", double_rows


def small_cases(jobs: TinyJobs) -> Iterator[NamedCase]:
    """Memory, rates and results of one real short training each."""
    side = jobs.side(run_here)
    facts = dataclasses.replace(
        read_system(), device="cpu", fp32_flops_per_s=product_rate(384, torch.float32, torch.device("cpu")),
        copy_bytes_per_s=copy_rate(2**24, torch.device("cpu")),
    )  # fmt: skip

    def tight() -> GateResult:
        gate = chain.memory_gate(side, jobs.scratch, facts)
        found = gate.gather()
        assert found.peak_bytes is not None, "this system tells the peak"
        return gate.judge(dataclasses.replace(found, available_bytes=int(found.peak_bytes * 1.05)))

    yield memory.NAME, None, chain.memory_gate(side, jobs.scratch, facts).run
    yield memory.NAME, "5 % left of the memory", tight
    rate = measured_rate(side, jobs.scratch)
    yield physical.NAME, None, chain.rate_gate(side, facts, rate).run
    most = 3 * rate * impossible_factor(side, facts, rate)
    yield physical.NAME, "three times what the machine can do", chain.rate_gate(side, facts, most).run
    yield from replay_cases(side, jobs)


def measured_rate(side: Side, scratch: Path) -> float:
    """Tokens per second of the side's fastest step here."""
    with trial(side, scratch, steps=4) as found:
        return max(row["tokens_per_s"] for row in found.rows)


def impossible_factor(side: Side, facts: Facts, rate: float) -> float:
    """How many times the rate the machine's bound is."""
    work = physical.training_work(training.job_of(side).model, rate, dtype="fp32")
    most = physical.bound_of(facts, "fp32").flops_per_s
    assert most is not None, "the rate of products was just measured"
    return most / work.flops_per_s


def replay_cases(side: Side, jobs: TinyJobs) -> Iterator[NamedCase]:
    """The log of an earlier training in place of a new one."""
    kept = jobs.folder / "kept-log.jsonl"

    def remember(folder: Path) -> Outcome:
        outcome = run_here(folder)
        shutil.copyfile(folder / "log.jsonl", kept)
        return outcome

    def replayed(folder: Path) -> Outcome:
        shutil.copyfile(kept, folder / "log.jsonl")
        return Outcome("done", replay.MIN_EQUAL)

    def stale(folder: Path) -> Outcome:
        outcome = run_here(folder)
        an_hour_ago_s = time.time() - 3600
        os.utime(folder / "log.jsonl", (an_hour_ago_s, an_hour_ago_s))
        return outcome

    def nothing(_folder: Path) -> Outcome:
        return Outcome("done", replay.MIN_EQUAL)

    def of(run: Run) -> Gate[Any]:
        return chain.fresh_gate(dataclasses.replace(side, run=run), jobs.scratch)

    yield replay.NAME, None, of(remember).run
    yield replay.NAME, "an earlier run's losses shown again", of(replayed).run
    yield replay.NAME, "a log that is an hour old", of(stale).run
    yield replay.NAME, "no log, and the outcome done", of(nothing).run


def parity_cases(jobs: TinyJobs) -> Iterator[NamedCase]:
    """The same plan bit for bit; another plan near fp32; faults near neither."""
    base = jobs.side(run_here)
    split = jobs.side(run_here, segments=[dataclasses.replace(SEGMENT, device_batch=2, attention="products")])
    narrow = jobs.side(run_here, segments=[dataclasses.replace(SEGMENT, dtype="bf16")])

    def bitwise(candidate: Side) -> Callable[[], GateResult]:
        return training.gate(base, candidate, jobs.scratch, kind="bitwise", steps=4).run

    lazy = dataclasses.replace(base, run=broken(faults.TRAINING["every second update left out"]))
    yield parity.NAME, None, bitwise(jobs.side(run_here))
    yield parity.NAME, "micro-batches split under a bitwise claim", bitwise(split)
    yield parity.NAME, "every second update left out (bitwise)", bitwise(lazy)
    yield parity.NAME, None, training.gate(base, split, jobs.scratch).run
    with training.reference(base, jobs.scratch) as right:
        yield parity.NAME, None, lambda: near(right, narrow, jobs.scratch)
        for name, fault in faults.TRAINING.items():
            side = dataclasses.replace(narrow, run=broken(fault))  # under bf16, whose limits are the widest
            yield parity.NAME, f"{name} (bf16)", lambda side=side: near(right, side, jobs.scratch)  # type: ignore[misc]


def near(right: training.Reference, candidate: Side, scratch: Path) -> GateResult:
    """The candidate's losses and gradients against a reference that is there already."""
    dtype = training.first_segment(candidate)[0].dtype
    return training.judge_against(right, training.against(right, candidate, scratch), dtype=dtype)


def seed_cases(jobs: TinyJobs) -> Iterator[NamedCase]:
    """Whole trainings over three seeds."""
    base = jobs.side(run_here)
    split = jobs.side(run_here, segments=[dataclasses.replace(SEGMENT, device_batch=4)])
    slow = jobs.side(run_here, optim=dataclasses.replace(jobs.job.optim, embedding_lr=0.03, head_lr=0.0008))

    def judged(candidate: Side) -> GateResult:
        pairs = training.gather_seeds(base, candidate, jobs.scratch, numbers=SEEDS, steps=SEED_STEPS)
        return seeds.judge(pairs)

    yield parity.NAME, None, lambda: judged(split)
    yield parity.NAME, "a tenth of two learning rates (over seeds)", lambda: judged(slow)


def resume_cases(jobs: TinyJobs) -> Iterator[NamedCase]:
    """A real worker that is started twice, and faults in this process."""
    side = jobs.side(run_worker)
    yield resume.NAME, None, resume.gate(side, jobs.scratch).run
    for name, fault in faults.RESUMING.items():
        yield resume.NAME, name, resume.gate(dataclasses.replace(side, run=broken(fault)), jobs.scratch).run


# --- generation -------------------------------------------------------------------------------------------------


def engine_cases(jobs: TinyJobs) -> Iterator[NamedCase]:
    """The engine over a random model, and over models or requests that are slightly wrong."""
    model = random_model()

    def judged(engine_model: Any, wrong: Callable[[decode.Generate], decode.Generate], *, sampled: bool) -> GateResult:
        with Engine(engine_model, jobs.tokenizer, num_slots=5) as engine:
            texts, samples = chain.generation_gates(wrong(engine.generate), model)
            return samples.run() if sampled else texts.run()

    def right(generate: decode.Generate) -> decode.Generate:
        return generate

    yield decode.NAME, None, lambda: judged(model, right, sampled=False)
    for name, plant in faults.MODELS.items():
        yield decode.NAME, name, lambda plant=plant: judged(plant(model), right, sampled=False)  # type: ignore[misc]
    yield decode.NAME, "a prompt's last token lost", lambda: judged(model, faults.forgotten_token, sampled=False)
    yield sampling.NAME, None, lambda: judged(model, right, sampled=True)
    copied = "the first token copied over a request's samples"
    yield sampling.NAME, copied, lambda: judged(model, faults.copied_first_token, sampled=True)
    yield sampling.NAME, "samples drawn too cold", lambda: judged(model, faults.cooler, sampled=True)


# --- the child --------------------------------------------------------------------------------------------------


def run_cases() -> list[dict[str, Any]]:
    """Every case with its judgement, as selftest.py reads them. An error inside a case is a case that went wrong."""
    found = []
    with tempfile.TemporaryDirectory(prefix="intone-gates-") as name:
        for gate, planted, judge in every(Path(name)):
            begin_s = time.monotonic()
            try:
                result = judge()
            except NotJudged as problem:
                result = not_judged(gate, problem.reason, problem.fix)
            except Exception as error:  # whatever a fault breaks, the table must name the case
                result = not_judged(gate, f"{type(error).__name__}: {error}", "correct the self-test")
            result = dataclasses.replace(result, seconds=time.monotonic() - begin_s)
            found.append({"planted": planted, "result": result.as_json()})
    return found


if __name__ == "__main__":
    json.load(sys.stdin)
    print(json.dumps(as_json({"cases": run_cases()})))
