"""The gate on greedy texts: right texts pass whatever the model would like best, and wrong ones do not."""

from pathlib import Path

import pytest
import torch

from intone.engine.naive import generate_naive
from intone.optimise.stages import gates
from intone.optimise.stages.gates import StageGates
from intone.optimise.stages.generation import plain_model
from intone.prove.gates.result import Gate, GateResult, Threshold

END = 256  # the tokenizer's document start, which ends every answer


class LikesToEnd:
    """The plain model, but that the likeliest next token is always the end of the text."""

    def __init__(self, model):
        self.model, self.config = model, model.config

    def parameters(self):
        return self.model.parameters()

    def logits(self, ids):
        found = self.model.logits(ids).clone()
        found[..., END] = found.max() + 3
        return found


@pytest.fixture
def likes_to_end(start, monkeypatch):
    model = LikesToEnd(plain_model(start))
    monkeypatch.setattr(gates, "plain_model", lambda target: model)
    monkeypatch.setattr(gates.decode, "prompt_lengths", lambda config, *, context: [3, 60])
    return model


def greedy(start, tmp_path, monkeypatch, choose):
    def written(target, state, folder, prompts, sampling):
        assert sampling["min_tokens"] == sampling["max_tokens"], "texts of fixed length: nothing may end them"
        return [[choose(prompt, sampling["max_tokens"])] for prompt in prompts]

    monkeypatch.setattr(gates, "written", written)
    return gates.judge_greedy(gates.greedy_texts(start, {}, tmp_path), dtype=torch.float32)


def test_a_model_that_would_like_to_end_is_given_its_next_choice(likes_to_end, start, tmp_path, monkeypatch):
    ends = gates.Specials.of(gates.Tokenizer.load(Path(start.generation({})["tokenizer"]))).ends
    assert END in ends

    def right(prompt, new):
        # an engine may end a text at its last token
        return [*generate_naive(likes_to_end, prompt, max_tokens=new - 1, excluded=ends).ids, END]

    found = greedy(start, tmp_path, monkeypatch, right)
    assert found.passed is True, found.reason

    def wrong(prompt, new):
        ids = right(prompt, new)
        return [*ids[:4], (ids[4] + 1) % 256, *ids[5:]]

    found = greedy(start, tmp_path, monkeypatch, wrong)
    assert found.passed is False and found.reason.startswith("token 5 after a prompt of 3")


@pytest.fixture
def judged(start, facts, tmp_path, monkeypatch):
    """judged(quick, *calls) judges (state, whole) after another; every gate passes."""

    def ran(quick, *calls):
        def gate(name):
            right = GateResult(name, True, "right", Threshold("a rule", "a test"))
            return Gate(name, 0.0, lambda: None, lambda _: right)

        monkeypatch.setattr(StageGates, "_training", lambda _self, _before, _after, _folder, *, whole: [
            gate("recipe"), gate("loss parity"), *([gate("bitwise resume")] if whole else []), gate("sealed inputs")
        ])  # fmt: skip
        with StageGates.opened(start, facts, tmp_path / "trials", quick=quick) as made:
            for state, whole in calls:
                report = made.judge("train", {}, state, whole=whole)
                assert {"recipe", "loss parity", "sealed inputs"} <= {result.name for result in report.results}
                assert report.passed is True
    return ran


STATE, OTHER = {"segment": {"device_batch": 8}}, {"segment": {"device_batch": 4}}
EVERY = ["recipe", "loss parity", "bitwise resume", "sealed inputs"]


def test_a_quick_whole_runs_only_gates_that_its_last_change_did_not_run(judged, monkeypatch):
    rounds = []
    real = gates.run_gates

    def run(found):
        found = list(found)
        rounds.append([gate.name for gate in found])
        return real(found)

    monkeypatch.setattr(gates, "run_gates", run)
    judged(True, (STATE, False), (STATE, True))
    assert rounds == [["recipe", "loss parity", "sealed inputs"], ["recipe", "bitwise resume", "sealed inputs"]]
    rounds.clear()
    judged(True, (OTHER, False), (STATE, True))
    assert rounds[-1] == EVERY, "what passed was another state"
    rounds.clear()
    judged(False, (STATE, False), (STATE, True))
    assert rounds[-1] == EVERY, "a whole round runs all of them once more"
