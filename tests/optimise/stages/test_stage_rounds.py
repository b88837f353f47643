"""Whole rounds on the case study's starting point, tiny: its five faults are found by evidence, mended and measured"""

import time

import pytest

from intone.optimise.stages.round import StageRound
from intone.optimise.stages.target import Target
from intone.optimise.stages.verb import finished
from intone.prove.noise import Signals, Watch


class Steady(Watch):
    """A machine on which nothing else happens: whether one is quiet is not what these tests are about."""

    def look(self) -> Signals:
        return Signals(time.perf_counter(), 0.0, 0.0, 0.0, None, None, None, None, 0.001)


# one process a side and six rounds of a tenth of a second: the differences that are planted are large
MEASURE = {"shape": (1, 6), "block_s": 0.1, "watch": Steady}


def run_part(start, facts, folder, part) -> tuple[StageRound, dict]:
    """A round on one part of the start -> it and its result."""
    only = folder / "target"
    only.mkdir()
    (only / part).symlink_to(start.folder / part)
    (only / "set").symlink_to(start.folder / "set")
    target = Target(only, start.worker, start.environment, start.switches, start.switch_file)
    place = folder / "round"
    place.mkdir()
    round_ = StageRound.begin(place, target, facts, words=[part], asked={}, measure=MEASURE)
    round_.run()
    answer = finished(round_)
    print(answer.text)
    return round_, dict(answer.result)


@pytest.mark.long
def test_the_three_faults_of_the_training_are_found_mended_and_measured_together(start, facts, tmp_path):
    round_, result = run_part(start, facts, tmp_path, "train")
    kept = {entry["item"]["finding"]: entry for entry in result["tries"] if entry["kept"]}
    assert {"D1", "D16", "D3"} <= {entry["detector"] for entry in result["findings"]}
    assert {"D1", "D16", "D3"} <= set(kept)
    for entry in kept.values():
        assert entry["verdict"] == "faster" and entry["gates"]["passed"] is True
    (whole,) = result["whole"]
    assert whole["comparison"]["verdict"] == "faster" and whole["gates"]["passed"] is True
    assert {entry["name"] for entry in whole["without"]} == {entry["item"]["name"] for entry in kept.values()}
    assert result["preset"]["settings"]["device_batch"] > 4 and result["preset"]["settings"]["kernels"] == "native"
    assert (round_.folder / "report.html").exists()


@pytest.mark.long
def test_the_two_faults_of_the_generation_are_found_and_mended(start, facts, tmp_path):
    _, result = run_part(start, facts, tmp_path, "generate")
    kept = [entry["item"]["finding"] for entry in result["tries"] if entry["kept"]]
    assert kept[:2] == ["D22", "D8"], "a fault stands before what is only slow"
    (whole,) = result["whole"]
    assert whole["comparison"]["verdict"] == "faster" and whole["gates"]["passed"] is True
