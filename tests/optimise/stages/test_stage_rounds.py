"""Whole rounds on the case study's starting point, tiny: its five faults are found by evidence, mended, and gated.

Looks and gates are real: real workers, real times, real losses and tokens. Only the verdicts come from a planted clock:
a second program on the machine would decide over them otherwise.
"""

import math

import pytest

from intone.bench.casestudy_round import found_of
from intone.optimise.stages.round import StageRound
from intone.optimise.stages.target import Target
from intone.optimise.stages.verb import finished
from intone.prove.gates import replay, resume
from intone.prove.measure import Measured, SideResult
from intone.prove.verdict import Pair, judge

# what each mended fault is worth by the planted clock
WORTH = {"kernels": 1.5, "padded_rows": 1.6, "device_batch": 1.3, "no_cache": 4.0}


def rate(state) -> float:
    """Work per second in a state."""
    return math.prod(WORTH.get(name, 1.0) for values in state.values() for name in values)


def planted_clock(round_, part, states, *, against=None, max_pairs=None):
    """StageRound.compared with rates as planted, and a wobble of a thousandth."""

    def judged(a, b):
        wobble = [1.0, 1.001, 0.999]
        rates = [(rate(a) * w, rate(b) * v) for w, v in zip(wobble, reversed(wobble), strict=True)]
        return judge([[Pair(x, y, (x, x), (y, y))] * 2 for x, y in rates])

    first = next(iter(states.values()))
    sides = tuple(
        SideResult(name, "supervised", rate(state), rate(state), rate(state), 1.0, 1.0, None, {})
        for name, state in states.items()
    )
    comparisons = tuple(judged(first, state) for state in list(states.values())[1:])
    over = {name: judged(state, states[against]) for name, state in states.items() if against not in (None, name)}
    return Measured(sides, comparisons, (), 3, False, 1.0, ""), over


@pytest.fixture
def run_part(start, facts, tmp_path, monkeypatch):
    """run_part(part) -> a finished round on one part of the start, and its result."""
    monkeypatch.setattr(StageRound, "compared", planted_clock)

    def run(part):
        only = tmp_path / "target"
        only.mkdir()
        (only / part).symlink_to(start.folder / part)
        target = Target(only, start.worker, start.environment, start.switches, start.switch_file)
        (tmp_path / "round").mkdir()
        round_ = StageRound.begin(tmp_path / "round", target, facts, words=[part], asked={})
        round_.run()
        return round_, dict(finished(round_).result)

    return run


@pytest.mark.long
def test_the_three_faults_of_the_training_are_found_mended_and_measured_together(run_part):
    round_, result = run_part("train")
    found = {entry.name: entry for entry in found_of(round_, ["train"])}
    assert set(found) == {"batch of 4", "no fast code", "padded rows"}
    for entry in found.values():
        assert entry.evidence and entry.entry is not None and entry.entry.verdict == "faster", entry.name
        assert entry.entry.gates["passed"] is True
    (whole,) = result["whole"]
    assert whole["comparison"]["verdict"] == "faster" and whole["gates"]["passed"] is True
    gates = {gate["name"] for gate in whole["gates"]["gates"]}
    assert {"recipe", "loss parity", "memory margin", "sealed inputs", resume.NAME, replay.NAME} <= gates
    kept = {entry["item"]["name"] for entry in result["tries"] if entry["kept"]}
    assert whole["faults"] == [] and {entry["name"] for entry in whole["without"]} == kept
    assert whole["stack"]["passed"] is True
    assert result["preset"]["settings"]["device_batch"] > 4 and result["preset"]["settings"]["kernels"] == "native"


@pytest.mark.long
def test_the_two_faults_of_the_generation_are_found_and_mended(run_part):
    round_, result = run_part("generate")
    kept = [entry["item"]["finding"] for entry in result["tries"] if entry["kept"]]
    assert kept == ["D22", "D8"], "what makes results wrong is mended before what is only slow"
    assert all(entry.entry is not None for entry in found_of(round_, ["generate"]))
    (whole,) = result["whole"]
    assert whole["faults"] == ["generate-copied-first-token"], "mended whatever its speed, and not taken out again"
    assert [entry["name"] for entry in whole["without"]] == ["generate-no-cache"] and whole["stack"]["passed"] is True
    assert whole["comparison"]["verdict"] == "faster" and whole["gates"]["passed"] is True
