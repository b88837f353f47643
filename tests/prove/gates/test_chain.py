"""The gates put together: what a right change passes, and which gate a wrong one meets first."""

import dataclasses

import pytest
import torch

from intone.engine.engine import Engine
from intone.hardware import Facts
from intone.model.checkpoint import list_checkpoints, saved_step
from intone.prove.gates import chain, faults, physical
from intone.prove.gates.result import run_gates
from intone.prove.gates.tiny import SEGMENT, random_model
from intone.records import Outcome, read_log

GIB = 2**30
FACTS = Facts("ab", device="cpu", cores_logical=2, cores_physical=2, memory_available_bytes=16 * GIB,
              fp32_flops_per_s=100e9)  # fmt: skip
ALL = [
    "physical bound", "recipe", "memory margin", "fresh results", "loss parity", "bitwise resume", "sealed inputs",
]  # fmt: skip


@pytest.fixture
def run(jobs, run_here):
    """run(candidate, **options) -> the report of all gates on a training change."""
    base = jobs.side(run_here)

    def report(candidate, **options):
        gates = chain.training_gates(base, candidate, jobs.scratch, FACTS, tokens_per_s=1000.0, **options)
        return run_gates(gates)

    return report


def names(report):
    return [result.name for result in report.results]


def test_a_right_change_passes_every_gate_the_cheap_ones_first(jobs, run_here, run):
    split = jobs.side(run_here, segments=[dataclasses.replace(SEGMENT, device_batch=3)])
    report = run(split)
    assert report.passed, report.table()
    assert sorted(names(report)) == sorted(ALL)
    assert names(report)[:2] == ["physical bound", "recipe"] and names(report)[-1] == "sealed inputs"


def test_the_peak_is_that_of_steps_a_save_and_an_evaluation(jobs, run_here):
    seen = {}

    def run_and_look(folder):
        outcome = run_here(folder)
        seen["saves"] = [saved_step(path) for path in list_checkpoints(folder)]
        seen["evaluated"] = [row["step"] for row in read_log(folder / "log.jsonl", "eval") if row["values"]]
        return outcome

    gate = chain.memory_gate(jobs.side(run_and_look, val=str(jobs.folder / "text")), jobs.scratch, FACTS)
    assert gate.run().passed
    assert seen == {"saves": [3], "evaluated": [2, 3]}


def test_a_rate_is_judged_by_what_is_learned(jobs, run_here):
    side = jobs.side(run_here)
    work, _ = chain.rate_gate(side, FACTS, 1e4).gather()
    full = physical.training_work(jobs.job.model, 1e4, dtype="fp32")
    assert 0.8 * full.flops_per_s < work.flops_per_s <= full.flops_per_s
    assert chain.rate_gate(side, FACTS, 1e9).run().passed is False


def test_the_case_studys_batch_of_93_meets_the_recipe_before_anything_is_trained(jobs, run):
    def never(folder):
        raise AssertionError("nothing had to be trained")

    report = run(jobs.side(never, rows_per_step=93))
    assert report.passed is False and names(report) == ["physical bound", "recipe"]
    assert "loss parity" in report.not_run and report.reason.startswith("rejected by the gate recipe: tokens_per_step")


def test_a_change_that_edits_its_own_data_is_rejected_at_the_end(jobs, run_here, run):
    edited = jobs.folder / "text" / "notes.txt"

    def run_and_edit(folder):
        edited.write_text("easier text")
        return run_here(folder)

    try:
        report = run(dataclasses.replace(jobs.side(run_here), run=run_and_edit), resumes=False)
    finally:
        edited.unlink(missing_ok=True)
    assert report.passed is False and names(report)[-1] == "sealed inputs"
    assert report.results[-1].reason.startswith(f"{edited} was added")


def test_a_side_that_shows_old_losses_is_stopped_before_they_are_compared(jobs, run_here, run):
    kept = jobs.folder / "kept.jsonl"

    def replay(folder):
        if not kept.exists():
            outcome = run_here(folder)
            kept.write_bytes((folder / "log.jsonl").read_bytes())
            return outcome
        (folder / "log.jsonl").write_bytes(kept.read_bytes())
        return Outcome("done", 3)

    report = run(dataclasses.replace(jobs.side(run_here), run=replay))
    assert report.passed is False and names(report)[-1] == "fresh results"


def test_an_engine_and_its_sampling_are_judged_together(jobs):
    model = random_model()
    with Engine(model, jobs.tokenizer) as engine:
        assert run_gates(chain.generation_gates(engine.generate, model, dtype=torch.float32)).passed
        report = run_gates(chain.generation_gates(faults.copied_first_token(engine.generate), model))
    assert report.passed is False and names(report)[-1] == "independent samples"
