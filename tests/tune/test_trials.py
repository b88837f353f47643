"""The store of measured choices."""

import dataclasses
import json
import time

import pytest

from intone.records import Choice
from intone.tune.trials import Trials, code_fingerprint

MEASURED = Choice(2, "faster", "measured", ({"value": 1, "why": "slow"},), {"step_s": {"1": 0.5, "2": 0.25}})


class Decider:
    """Counts how often a question had to be decided."""

    def __init__(self, choice=MEASURED):
        self.count = 0
        self.choice = choice

    def __call__(self):
        self.count += 1
        return self.choice


def test_a_measured_choice_is_measured_once_and_says_how_old_it_is(facts, home):
    decide = Decider()
    assert Trials(facts).settle("threads", {"shape": (1, 2)}, decide) == MEASURED
    later = Trials(facts, clock=lambda: time.time() + 2 * 3600 + 300)
    kept = later.settle("threads", {"shape": [1, 2]}, decide)
    assert decide.count == 1
    assert kept == dataclasses.replace(MEASURED, origin="cached", reason="faster (measured 2 h 5 min ago)")


@pytest.mark.parametrize(
    ("kind", "key", "torch_version"),
    [
        ("dtype", {"width": 64}, "2.13.0+cpu"),
        ("threads", {"width": 128}, "2.13.0+cpu"),
        ("threads", {"width": 64, "more": None}, "2.13.0+cpu"),
        ("threads", {"width": 64}, "2.11.0"),
    ],
)
def test_another_question_shape_or_torch_is_measured_anew(facts, trials, kind, key, torch_version):
    decide = Decider()
    trials.settle("threads", {"width": 64}, decide)
    Trials(dataclasses.replace(facts, torch_version=torch_version)).settle(kind, key, decide)
    assert decide.count == 2


def test_a_choice_made_for_lack_of_a_measurement_is_not_kept(trials):
    decide = Decider(Choice(4, "no answer within 60 s", "default"))
    trials.settle("threads", {}, decide)
    trials.settle("threads", {}, decide)
    assert decide.count == 2
    assert not trials.path.exists()


def test_damaged_rows_cost_only_themselves(trials):
    decide = Decider()
    trials.settle("a", {}, decide)
    trials.settle("b", {}, decide)
    first, second = trials.path.read_text().splitlines()
    wrong = json.loads(first)
    wrong["choice"]["hue"] = 3
    trials.path.write_text("\n".join([second, json.dumps(wrong), "{]", "7", '"x"', first[: len(first) // 2]]))
    assert trials.find("b", {}) is not None
    assert trials.find("a", {}) is None
    trials.settle("a", {}, decide)  # appended after the torn last line
    assert trials.find("a", {}) is not None
    assert trials.find("b", {}) is not None


def test_the_newest_of_two_answers_counts_and_fresh_ignores_both(facts, trials):
    trials.record("a", {}, MEASURED)
    trials.record("a", {}, dataclasses.replace(MEASURED, value=1))
    assert trials.find("a", {}).value == 1
    assert Trials(facts, fresh=True).find("a", {}) is None


def test_the_code_fingerprint_changes_with_a_file_and_its_name(tmp_path, monkeypatch):
    monkeypatch.setattr("intone.tune.trials.PACKAGE", tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "a.py").write_text("x = 1\n")
    first = code_fingerprint("model")
    assert first == code_fingerprint("model") != code_fingerprint("model/a.py", "model")
    (tmp_path / "model" / "a.py").rename(tmp_path / "model" / "b.py")
    second = code_fingerprint("model")
    (tmp_path / "model" / "b.py").write_text("x = 2\n")
    third = code_fingerprint("model")
    (tmp_path / "model" / "kernel.cpp").write_text("int x;\n")  # our kernels are code too
    assert len({first, second, third, code_fingerprint("model")}) == 4
