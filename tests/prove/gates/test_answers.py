"""The gates on a stage that learns from its own answers: right ways to compute pass, wrong ones do not."""

import dataclasses
import gc

import pytest
import torch
from tests.optimise.stages.rewarded import rewarded_job

from intone.model.gpt import GPT
from intone.paths import read_json, write_json
from intone.prove.gates import answers, recipe
from intone.prove.gates.result import NotJudged
from intone.prove.trial import Side
from intone.records import Outcome
from intone.train import rollouts
from intone.train.rl import Reinforcer


def reinforce_here(folder) -> Outcome:
    gc.freeze()
    return Reinforcer(folder, lambda: False).run()


@pytest.fixture
def side(tmp_path, tiny_job):
    """side(name, **segment) -> a way to compute the stage, run in this process."""

    def made(name, **segment):
        (tmp_path / name).mkdir()
        return Side(rewarded_job(tmp_path / name, tiny_job, **segment), reinforce_here)

    return made


@pytest.fixture
def judged(side, tmp_path):
    """judged(candidate) -> the results of both gates by name, against the stage as it was."""

    def results(candidate):
        right = answers.reference(side("baseline"), tmp_path)
        return {gate.name: gate.run() for gate in answers.gates(lambda: right, candidate, tmp_path)}

    return results


def test_other_rows_and_other_numbers_of_answers_at_once_pass(judged, side):
    found = judged(side("candidate", device_batch=1, num_slots=3))
    assert found[answers.WRITES].passed is True and "144 answers are the same" in found[answers.WRITES].reason
    assert found[answers.LEARNS].passed is True and found[answers.LEARNS].evidence["gradient_error"] < 1e-5


def test_another_format_need_not_write_the_same_but_what_the_model_would(judged, side):
    found = judged(side("candidate", dtype="bf16"))
    assert found[answers.WRITES].passed is True and found[answers.WRITES].evidence["same_asked"] is False
    assert 0 < found[answers.WRITES].evidence["largest_error_nats"] < 0.2
    assert found[answers.LEARNS].passed is True and found[answers.LEARNS].evidence["gradient_error"] > 1e-4


def test_answers_that_others_change_are_rejected(judged, side, monkeypatch):
    def shifted(folder):
        """Answers are drawn from another stream than the stage's."""
        with monkeypatch.context() as patch:
            plain = rollouts.request
            patch.setattr(rollouts, "request", lambda prompt, config, seed, n: plain(prompt, config, seed, n + 1))
            return reinforce_here(folder)

    found = judged(dataclasses.replace(side("candidate"), run=shifted))[answers.WRITES]
    assert found.passed is False and "answers are others, first answer 1 of question 1" in found.reason


def test_answers_of_another_model_are_rejected_by_their_probabilities(judged, side, monkeypatch):
    candidate = side("candidate", dtype="bf16")
    plain = answers.plain_model

    def other(candidate, device):
        model = plain(candidate, device)
        with torch.no_grad():
            model.head.weight.normal_(generator=torch.Generator().manual_seed(1))
        return model

    monkeypatch.setattr(answers, "plain_model", other)
    found = judged(candidate)[answers.WRITES]
    assert found.passed is False and "nats off the plain model's" in found.reason


def test_a_gradient_without_the_advantages_is_rejected(judged, side, monkeypatch):
    def unweighted(folder):
        with monkeypatch.context() as patch:
            forward = GPT.forward
            patch.setattr(GPT, "forward", lambda model, ids, targets, documents, weights=None: forward(
                model, ids, targets, documents
            ))
            return reinforce_here(folder)

    found = judged(dataclasses.replace(side("candidate"), run=unweighted))[answers.LEARNS]
    assert found.passed is False and "off fp32's" in found.reason


def test_a_stage_that_does_not_run_is_not_judged(side, tmp_path):
    broken = Side(side("baseline").folder, lambda folder: Outcome("out_of_memory", 0, "none left"))
    with pytest.raises(NotJudged, match="out_of_memory: none left"):
        answers.reference(broken, tmp_path)


def test_what_is_asked_is_the_recipe_and_how_much_at_once_is_not(side):
    a, b = side("a"), side("b", device_batch=1, num_slots=1)
    same = recipe.gate(a.folder, b.folder).run()
    assert same.passed is True and same.reason.endswith("the questions of 3 steps among them")
    config = read_json(b.folder / "config.json")
    write_json(b.folder / "config.json", config | {"rollouts": config["rollouts"] | {"samples": 23}})
    assert recipe.gate(a.folder, b.folder).run().reason.startswith("rollouts.samples is 24 in the baseline and 23")
    write_json(b.folder / "config.json", config | {"seed": config["seed"] + 1})
    found = recipe.gate(a.folder, b.folder).run()
    assert set(found.evidence["differences"]) == {"seed", "questions"}
