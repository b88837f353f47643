"""Running gates in turn: cheap first, up to the first rejection, and a table that says why."""

import json
import math

import pytest

from intone.errors import UserError
from intone.prove.gates.result import Gate, GateReport, GateResult, NotJudged, Threshold, run_gates

ASKED = Threshold("the answer is 42", "guess")


def gate(name, passed, *, cost_s=1.0, log=None, evidence=None):
    """A gate whose judgement is known; it notes that it ran."""

    def gather():
        if log is not None:
            log.append(name)
        return evidence or {}

    def judge(found):
        return GateResult(name, passed, f"{name} looked", ASKED, found, fix=None if passed else "answer 42")

    return Gate(name, cost_s, gather, judge)


def raising(name, error):
    def gather():
        raise error

    return Gate(name, 1.0, gather, lambda found: None)


def test_cheap_gates_run_first_and_those_without_end_last():
    log = []
    gates = [gate("last", True, cost_s=math.inf, log=log), gate("dear", True, cost_s=9, log=log)]
    report = run_gates([*gates, gate("cheap", True, cost_s=0.1, log=log)])
    assert log == ["cheap", "dear", "last"] == [result.name for result in report.results]
    assert report.passed is True and report.reason == "passed 3 gates" and not report.not_run


def test_the_first_rejection_ends_the_run_and_names_what_did_not_run():
    log = []
    gates = [gate(name, name != "b", cost_s=cost_s, log=log) for cost_s, name in enumerate("abc")]
    report = run_gates(gates)
    assert log == ["a", "b"] and report.not_run == ("c",)
    assert report.passed is False and report.reason == "rejected by the gate b: b looked"
    del log[:]
    assert len(run_gates(gates, stop_at_first=False).results) == 3 and log == ["a", "b", "c"]


def test_what_could_not_be_judged_is_no_pass_and_stops_nothing():
    report = run_gates([gate("a", None), gate("b", True, cost_s=2)])
    assert [result.passed for result in report.results] == [None, True]
    assert report.passed is None and report.reason.startswith("not judged by the gate a")
    assert run_gates([gate("a", None), gate("b", False, cost_s=2)]).passed is False


def test_no_gates_are_no_pass():
    assert GateReport(()).passed is None


@pytest.mark.parametrize(
    "error", [NotJudged("no clock here", "buy one"), UserError("no clock here", fix="buy one")]
)
def test_missing_evidence_is_not_judged_with_its_reason_and_way_out(error):
    result = raising("time", error).run()
    assert (result.passed, result.reason, result.fix) == (None, "no clock here", "buy one")


def test_a_mistake_of_ours_is_not_taken_for_a_judgement():
    with pytest.raises(ZeroDivisionError):
        run_gates([raising("time", ZeroDivisionError())])


def test_a_gate_that_does_not_pass_must_offer_a_way_out():
    with pytest.raises(AssertionError, match="offers no way out"):
        GateResult("a", False, "bad", ASKED)


def test_the_table_says_why_and_what_to_do():
    long = "word " * 40
    results = (
        GateResult("recipe", True, "55 fields are equal", ASKED, seconds=0.5),
        GateResult("losses", False, long.strip(), ASKED, fix="answer 42", seconds=12.3),
    )
    lines = GateReport(results, ("resume",)).table().splitlines()
    assert lines[0] == "recipe  passed    0.5 s  55 fields are equal"
    assert lines[1].startswith("losses  rejected   12 s  word word")
    assert lines[-3:] == [
        "                         asked: the answer is 42",
        "                         fix: answer 42",
        "resume  not run          an earlier gate rejected",
    ]
    assert len(lines) == 7 and max(map(len, lines)) <= 100


def test_the_report_is_strict_json():
    report = run_gates([gate("a", True, evidence={"error": math.inf, "steps": (1, math.nan), 3: True})])
    value = json.loads(json.dumps(report.as_json(), allow_nan=False))
    assert value["gates"][0]["evidence"] == {"error": None, "steps": [1, None], "3": True}
    assert value["passed"] is True and value["gates"][0]["threshold"] == {"rule": "the answer is 42", "origin": "guess"}
