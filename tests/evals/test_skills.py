import dataclasses

import pytest
import torch

from intone.config import model_config
from intone.data.chat import Message, Part
from intone.engine.engine import Engine
from intone.errors import UserError
from intone.evals.skills import evaluate_skills


@dataclasses.dataclass(frozen=True)
class Item:
    messages: list
    answer: str


class Answering:
    """A decoder that answers every question by a table from the question's text; for an engine of one slot."""

    def __init__(self, tokenizer, answers, *, context):
        self.config = model_config("classic", depth=1, vocab_size=265, context=context, head_width=64)
        self.dtype = torch.float32
        self.tokenizer, self.answers, self.text = tokenizer, answers, []

    def logits(self, batch):
        self.text = [*self.text[: int(batch.positions[0])], *batch.ids.tolist()]
        return torch.nn.functional.one_hot(torch.tensor([self.next_id(self.text)]), 265).float() * 50

    def next_id(self, text):
        special = self.tokenizer.special
        begin, end = text.index(special("<|user_start|>")), text.index(special("<|user_end|>"))
        said = text[len(text) - text[::-1].index(special("<|assistant_start|>")) :]
        answer = self.answers[self.tokenizer.decode(text[begin + 1 : end])]
        return [*answer, special("<|assistant_end|>")][len(said)]


def question(text, answer, reply=None):
    return Item([Message("user", text), Message("assistant", reply or answer)], answer)


def test_greedy_answers_are_compared_after_trimming_and_without_tool_calls(byte_tokenizer):
    def call(text):
        special = byte_tokenizer.special
        answer = [special("<|output_start|>"), *b"4", special("<|output_end|>")]
        return [*b" ", special("<|python_start|>"), *text, special("<|python_end|>"), *answer, *b"4"]

    model = Answering(
        byte_tokenizer,
        {"2+2": call(b"2+2"), "3+3": list(b"7"), "hello": list(b"hi \n"), "bye": list(b"bye"), "who": list(b"x")},
        context=40,
    )
    items = {
        "arithmetic": [question("2+2", "4", (Part("call", "2+2"), Part("output", "4"), Part("text", "4"))),
                       question("3+3", "6")],
        "smalltalk": [question("hello", "hi"), question("bye", "bye"), question("who", "intone")],
        "story": [question("w" * 50, "x")],
    }  # fmt: skip
    with Engine(model, byte_tokenizer, num_slots=1) as engine:
        result = evaluate_skills(engine, items, max_tokens=20)
    scores = {name: (skill["score"], skill["num_items"]) for name, skill in result["skills"].items()}
    assert scores == {"arithmetic": (0.5, 2), "smalltalk": (pytest.approx(2 / 3), 3), "story": (0.0, 1)}
    assert result["mean"] == pytest.approx((0.5 + 2 / 3 + 0) / 3)
    assert 0 < result["low"] < result["mean"] < result["high"] < 1
    for skill in result["skills"].values():
        assert skill["low"] <= skill["score"] <= skill["high"]
    assert [(w["skill"], w["question"], w["expected"], w["got"], w["reason"]) for w in result["wrong"]] == [
        ("arithmetic", "3+3", "6", "7", "stop"),
        ("smalltalk", "who", "intone", "x", "stop"),
        ("story", "w" * 50, "x", "", "question longer than the context"),
    ]


def test_only_a_few_wrong_answers_of_a_skill_are_kept(byte_tokenizer):
    model = Answering(byte_tokenizer, {str(i): list(b"no") for i in range(9)}, context=20)
    with Engine(model, byte_tokenizer, num_slots=1) as engine:
        result = evaluate_skills(engine, {"facts": [question(str(i), "yes") for i in range(9)]})
    assert len(result["wrong"]) == 3 and result["mean"] == 0


def test_a_skill_without_questions_and_a_broken_model_are_not_scored(byte_tokenizer):
    model = Answering(byte_tokenizer, {}, context=20)
    with Engine(model, byte_tokenizer, num_slots=1) as engine:
        with pytest.raises(UserError, match="no questions for the skill 'facts'"):
            evaluate_skills(engine, {"facts": []})
        with pytest.raises(RuntimeError, match="the model failed while answering"):
            evaluate_skills(engine, {"facts": [question("unknown", "x")]})
