"""The gate on greedy texts: right texts pass whatever the model would like best, and wrong ones do not."""

from pathlib import Path

import pytest
import torch

from intone.engine.naive import generate_naive
from intone.optimise.stages import gates
from intone.optimise.stages.generation import plain_model

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
