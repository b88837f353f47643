"""The micro-batch of a run: when it is searched, when it is remembered, and when a rule must do."""

from dataclasses import replace

import pytest

from intone.config import OptimConfig, ScheduleConfig, TrainJob
from intone.prove.live import Ready
from intone.records import Choice, Segment
from intone.resolving import Resolved
from intone.tune.batch import SEARCH_S, passes_of
from intone.tune.found import ProbeFailed, Sample
from intone.tune.paying import SAVES, START_S
from intone.tune.settle_batch import BatchQuestion, batch_key, settle_batch
from intone.tune.trials import Trials

GIB = 2**30
LONG_S = (START_S + SEARCH_S) / SAVES["cpu"] + 1


class Probe:
    """Stands in for the worker: passes on a line, memory on a line; says what it was asked."""

    def __init__(self, log, *, free=8 * GIB, row_bytes=GIB // 8, slow=1.0, failure=None, **asked):
        self.log, self.free_bytes, self.row_bytes, self.slow, self.failure = log, free, row_bytes, slow, failure
        self.asked, self.start_bytes = asked, GIB
        log.append(("start", asked.get("compiled"), asked.get("first_rows", 1)))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def start(self):
        if self.failure:
            raise ProbeFailed(self.failure, out_of_memory=False)
        return Ready(self.slow * 0.1, 0.1, {})

    def __call__(self, rows, passes, steps, *, moments=False):
        self.start()
        self.log.append(("moments" if moments else "probe", rows, passes))
        growth = rows * self.row_bytes + (3 * GIB if moments else 0)
        return Sample(0.02 + 0.001 * rows, 0.01, growth)


@pytest.fixture
def question(config, tmp_path):
    job = TrainJob(
        stage="base", model=config, tokenizer="t", tokenizer_hash="h", data=("d",), val=None, context=96, steps=1,
        rows_per_step=32, optim=OptimConfig(), schedule=ScheduleConfig(), seed=1,
    )  # fmt: skip
    segment = Segment(0, 1, False, "fp32", "sdpa", "test", threads=2)
    return BatchQuestion(job, segment, "cpu", 1, {}, tmp_path)


@pytest.fixture
def settled(auto, facts, trials, question):
    """settled(...) -> (choice, found, what the probes were asked)."""

    def ask(asked=auto, *, run_s=None, start_s=None, question=question, facts=facts, trials=trials, **machine):
        log = []
        choice, found = settle_batch(
            asked, facts, trials, question, run_s=run_s, start_s=start_s,
            probe=lambda **how: Probe(log, **machine, **how),
        )  # fmt: skip
        return choice, found, log

    return ask


def test_a_number_that_was_asked_for_is_kept(settled):
    choice, found, log = settled(Resolved(5, "flag", "--device-batch"))
    assert (choice.value, choice.origin, found, log) == (5, "flag", None, [])


def test_a_long_run_searches_and_the_choice_has_the_curve_as_its_reason(settled):
    choice, found, log = settled(run_s=LONG_S)
    assert choice.origin == "measured" and choice.value == found.rows
    assert {entry["value"] for entry in choice.beat} | {choice.value} == {size.rows for size in found.curve}
    best = min(passes_of(32, size.rows) * (0.02 + 0.001 * size.rows) + 0.01 for size in found.curve)
    assert found.step_s <= 1.01 * best
    assert all(kind in ("start", "probe") for kind, *_ in log)


def test_a_run_in_which_a_search_cannot_pay_takes_the_rule_and_says_what_it_would_cost(settled):
    choice, found, log = settled(run_s=LONG_S - 2)
    assert (found, log, choice.origin) == (None, [], "default")
    assert choice.reason.endswith(
        "by rule: a search would take 17 s and save 2.0% of 14 min of training, 17 s (guessed)"
    )
    _, found, _ = settled(run_s=LONG_S - 2, start_s=0.5)  # workers start faster here than was guessed
    assert found is not None


def test_what_the_last_search_here_cost_and_saved_decides_about_the_next(settled, question):
    _, found, _ = settled()  # passes of the rule's size cost what the line says: something was saved
    other = replace(question, job=replace(question.job, rows_per_step=24))
    choice, _, log = settled(question=other, run_s=1.0)
    assert log == [] and "(as the last one here did)" in choice.reason
    choice, again, _ = settled(question=other, run_s=1e6)
    assert again is not None and choice.origin == "measured"


def test_an_answer_is_remembered_and_costs_nothing_again(settled):
    first, _, _ = settled()
    for run_s in (None, 1.0):
        again, found, log = settled(run_s=run_s)
        assert (again.value, again.origin, log) == (first.value, "cached", []) and found.rows == first.value


def test_an_answer_that_no_longer_fits_is_searched_again(settled, facts, capsys):
    settled()
    choice, _, log = settled(facts=replace(facts, memory_available_bytes=GIB), free=2 * GIB)
    assert choice.origin == "measured" and any(kind == "probe" for kind, *_ in log)
    assert "are needed and 1 GiB free" in capsys.readouterr().err


def test_an_answer_that_was_forgotten_is_searched_again(settled, facts, trials, question):
    first, _, _ = settled()
    trials.record("device_batch", first.measured["question"], Choice(None, "forgotten: slower", "measured"))
    again, _, log = settled()
    assert again.origin == "measured" and log


def test_a_probe_that_fails_leaves_the_rule_with_the_reason(settled):
    choice, found, _ = settled(failure="the worker was ended by SIGILL")
    assert found is None and choice.origin == "default" and "SIGILL" in choice.reason


def test_what_takes_half_of_memory_is_measured_with_an_evaluation_and_a_save(settled):
    choice, found, log = settled(free=5 * GIB, row_bytes=GIB // 8)
    rows = [rows for kind, rows, _ in log if kind == "moments"]
    assert rows and rows[-1] == choice.value < rows[0]
    assert choice.value * GIB / 8 + 3 * GIB <= 5 * GIB
    assert "with an evaluation and a save" in choice.reason


def test_compiled_code_is_compiled_for_the_choice_alone(settled, question):
    compiled = replace(question, segment=replace(question.segment, compiled=True, attention="products"))
    choice, found, log = settled(question=compiled)
    starts = [entry for entry in log if entry[0] == "start"]
    assert starts == [("start", False, 1), ("start", True, choice.value)]
    assert "compared eager" in found.reason


def test_processes_on_one_cpu_share_its_memory(settled, question):
    alone, _, _ = settled(free=20 * GIB, row_bytes=GIB)
    shared, found, _ = settled(question=replace(question, devices=2), free=20 * GIB, row_bytes=GIB)
    assert found.free_bytes == (20 * GIB - GIB) // 2
    assert shared.value <= 16 < 32 and alone.value > shared.value


def test_the_least_free_gpu_bounds_all(settled, question, facts):
    gpus = replace(facts, device="cuda", gpu_name="NVIDIA Foo", gpu_memory_free_bytes=10 * GIB)
    _, found, _ = settled(question=replace(question, device="cuda", devices=2), facts=gpus, free=30 * GIB)
    assert found.free_bytes == 9 * GIB


def test_mps_takes_the_rule_and_says_that_nothing_was_measured(settled, question, facts):
    choice, found, log = settled(question=replace(question, device="mps"), facts=replace(facts, device="mps"))
    assert (found, log) == (None, []) and "not measured" in choice.reason


def test_another_question_has_another_key(facts, question):
    def key(**changes):
        return batch_key(facts, replace(question, **changes), "line")

    job, segment = question.job, question.segment
    others = [
        key(job=replace(job, rows_per_step=64)), key(job=replace(job, context=48)), key(devices=2),
        key(segment=replace(segment, dtype="bf16")), key(segment=replace(segment, threads=1)),
        key(segment=replace(segment, compiled=True)), batch_key(facts, question, "bisect"),
        batch_key(replace(facts, memory_bytes=64 * GIB), question, "line"),
    ]  # fmt: skip
    assert all(other != key() for other in others)
    assert key(segment=replace(segment, device_batch=9)) == key()


def test_kept_answers_survive_the_file(settled, facts):
    first, _, _ = settled()
    kept = Trials(facts)
    again, _, log = settled(trials=kept)
    assert again.measured == first.measured and log == []
