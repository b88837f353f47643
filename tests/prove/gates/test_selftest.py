"""The self-test: every planted fault is rejected for its own reason, and a gate that cannot fail would be noticed."""

import json

import pytest

from intone.prove.gates import selftest
from intone.prove.gates.result import GateResult, Threshold
from intone.prove.gates.selftest import Case, SelfTest

# planted -> words of the reason it must be rejected for
REASONS = {
    "the evaluator edited, its size and time kept": "evaluate.py was changed",
    "a file put beside the harness": "sitecustomize.py was added",
    "factors multiplied in place of measured": "the claimed 3.17x, the product of its parts",
    "only the parts measured": "the whole stack was not measured",
    "a change without a gain of its own": "prefetch has no gain of its own",
    "a baseline that sleeps": "the baseline did nothing",
    "half of the work outside the child's clock": "work was left out of the timing",
    "a baseline that claims more than has passed": "s passed",
    "twice the tokens per optimizer step": "tokens_per_step is 192",
    "learning rate raised": "optimizer.matrix_lr",
    "another schedule": "schedule.final_share",
    "another seed": "seed is 7",
    "a smaller model": "parameters is",
    "a row of each batch twice": "rows is",
    "5 % left of the memory": "leaves 4.8%",
    "three times what the machine can do": "work was left out, or not timed",
    "an earlier run's losses shown again": "losses of the run with seed 7 again",
    "a log that is an hour old": "older than its run",
    "no log, and the outcome done": "left no result",
    "micro-batches split under a bitwise claim": "the baseline's is",
    "every second update left out (bitwise)": "at step 3",
    "gradients halved, losses right (bf16)": "the gradients are 5.0",
    "loss times 1.01 (bf16)": "the first loss is 5.63",
    "first block skipped (bf16)": "the gradients are",
    "one head without positions (bf16)": "attention.",
    "last row of each step left out (bf16)": "the gradients are",
    "every second update left out (bf16)": "off fp32, allowed are 2%",
    "losses not finite (bf16)": "not finite",
    "a tenth of two learning rates (over seeds)": "worse by more than 0.50%",
    "a batch repeated after the restart": "at step 5, the first after the restart",
    "moments lost in the restart": "at step 6, 2 after the restart",
    "window off by one": "log-probability",
    "positions off": "log-probability",
    "last MLP left out while decoding": "less likely than the plain model's choice",
    "a prompt's last token lost": "after a prompt of 2",
    "the first token copied over a request's samples": "begin alike",
    "samples drawn too cold": "standard deviations above chance",
}
GATES = {
    "sealed inputs", "whole stack", "plausible times", "recipe", "memory margin", "physical bound", "fresh results",
    "loss parity", "bitwise resume", "cached decode", "independent samples",
}  # fmt: skip


@pytest.fixture(scope="module")
def found():
    return selftest.self_test()


def test_every_planted_fault_is_rejected_for_its_own_reason(found):
    reasons = {case.planted: case.result for case in found.cases if case.planted}
    assert set(reasons) == set(REASONS)
    for planted, words in REASONS.items():
        result = reasons[planted]
        assert result.passed is False and words in result.reason, f"{planted}: {result.word}, {result.reason}"


def test_every_gate_passes_where_nothing_is_wrong(found):
    clean = [case.result for case in found.cases if case.planted is None]
    assert {result.name for result in clean} == GATES
    assert [result.reason for result in clean if not result.passed] == []


def test_the_table_and_the_json_say_all_of_it(found):
    assert found.passed, found.table()
    assert found.summary.startswith("planted faults rejected: 37 of 37; right cases passed: 14 of 14 (")
    assert found.table().count("\n") >= len(found.cases) and found.table().endswith(found.summary)
    value = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert value["passed"] is True and len(value["cases"]) == 51
    assert all(case["result"]["threshold"]["origin"] for case in value["cases"])


def test_a_fault_that_gets_through_or_a_false_alarm_fails_the_self_test(capsys, monkeypatch):
    asked = Threshold("right", "rule")
    passed = GateResult("recipe", True, "equal", asked)
    rejected = GateResult("recipe", False, "not equal", asked, fix="undo it")
    missing = GateResult("recipe", None, "unknown", asked, fix="look")
    assert SelfTest((Case("a fault", rejected), Case(None, passed)), 1.0).passed
    for wrong in (Case("a fault", passed), Case("a fault", missing), Case(None, rejected), Case(None, missing)):
        bad = SelfTest((Case(None, passed), wrong), 1.0)
        assert not bad.passed and "WRONG" in bad.table()
        monkeypatch.setattr(selftest, "self_test", lambda bad=bad: bad)
        assert selftest.main([]) == 1
    assert not SelfTest((), 0.0).passed
    assert "WRONG" in capsys.readouterr().out
