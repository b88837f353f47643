"""What a stage says about itself: bits per byte of held-out text, and samples in the form that the stage trains."""

import dataclasses
import math

import pytest
import torch

from intone.config import TrainJob
from intone.data.shards import TokenSet
from intone.data.tokenizer import Tokenizer
from intone.engine.requests import Request
from intone.model.gpt import GPT
from intone.paths import read_json
from intone.records import read_log
from intone.train import evaluation
from intone.train.evaluation import evaluate_stage


@pytest.fixture
def evaluate(make_job, tiny_config, text_files):
    """evaluate(folder, **fields of the job) -> bpb of an untrained model after step 7."""
    tokenizer = Tokenizer.load(text_files / "tokenizer")
    val = TokenSet.open(text_files / "val")
    model = GPT(tiny_config)
    model.init_weights(0)

    def evaluated(folder, *, has_val=True, **fields):
        job = dataclasses.replace(TrainJob.from_json(read_json(folder / "config.json")), **fields)
        return evaluate_stage(folder, job, model, tokenizer, val if has_val else None, 7)

    evaluated.model = model
    return evaluated


def test_an_untrained_model_needs_eight_bits_per_byte(evaluate, make_job, capsys):
    folder = make_job()
    bpb = evaluate(folder)
    assert bpb == pytest.approx(math.log2(265), abs=0.02)  # of 265 tokens; each of the text is one byte
    saved = read_json(folder / "eval.json")
    assert (saved["format"], saved["step"], saved["bpb"]["value"]) == (1, 7, bpb)
    assert saved["bpb"]["low"] <= bpb <= saved["bpb"]["high"]
    (row,) = read_log(folder / "log.jsonl")
    assert (row["kind"], row["step"], row["values"]) == ("eval", 7, {"bpb": bpb})
    assert f"base step 7   validation {bpb:.4f} bits per byte" in capsys.readouterr().err
    assert not (folder / "samples.jsonl").exists()


def test_the_number_of_validation_tokens_is_the_jobs(evaluate, make_job):
    folder = make_job()
    evaluate(folder, eval_tokens=99)
    # the first token of a document is no target of its own
    assert 80 < read_json(folder / "eval.json")["bpb"]["num_bytes"] < 99


def test_without_validation_text_there_are_samples_only(evaluate, make_job, capsys):
    folder = make_job()
    assert evaluate(folder, has_val=False, samples=("the cat", "a red")) is None
    assert not (folder / "eval.json").exists()
    assert [row["values"] for row in read_log(folder / "log.jsonl", "eval")] == [{}]
    rows = read_log(folder / "samples.jsonl", "sample")
    assert [(row["step"], row["prompt"]) for row in rows] == [(7, "the cat"), (7, "a red")]
    assert "no validation text" in capsys.readouterr().err


@pytest.mark.parametrize(("stage", "is_chat"), [("base", False), ("mid", True), ("sft", True)])
def test_samples_are_text_for_base_and_conversations_later(evaluate, make_job, monkeypatch, stage, is_chat):
    seen = []
    monkeypatch.setattr(evaluation, "Request", lambda **fields: seen.append(fields) or Request(**fields))
    evaluate(make_job(), has_val=False, stage=stage, samples=("the cat",))
    (request,) = seen
    assert request["temperature"] == 0.0 and request["max_tokens"] == 16  # half a row
    assert request["prompt"] == ([evaluation.Message("user", "the cat")] if is_chat else "the cat")


def test_an_evaluation_leaves_the_model_as_it_was(evaluate, make_job):
    before = {name: value.clone() for name, value in evaluate.model.state_dict().items()}
    evaluate(make_job(), samples=("the cat",))
    assert all(torch.equal(value, before[name]) for name, value in evaluate.model.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in evaluate.model.parameters())
    loss, _ = evaluate.model(torch.zeros(1, 8, dtype=torch.int32), torch.ones(1, 8, dtype=torch.int32))
    loss.backward()  # nothing of it was made for inference only
