"""Reinforcement: the gradient is the plain one, answers are on-policy and repeatable, and a resumed stage goes on."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from tests.tiny_jobs import SEGMENT, events
from torch.testing import assert_close

from intone import worker
from intone.config import RolloutConfig, ScheduleConfig
from intone.data.chat import Message
from intone.data.questions import Questions
from intone.data.shards import write_token_set
from intone.data.tokenizer import Tokenizer
from intone.dist import World
from intone.engine.engine import Engine
from intone.errors import UserError
from intone.model.gpt import GPT
from intone.model.optim import StepScale
from intone.paths import read_json
from intone.records import Outcome, Rollouts, read_log
from intone.train.kept import ANSWERS, read_kept
from intone.train.rl import Reinforcer
from intone.train.rollouts import Answer, RolloutSource, advantages, judged, laid
from intone.train.step import TrainStep

CPU = torch.device("cpu")
SCALE = StepScale(lr=1.0, momentum=0.9, weight_decay=0.0)
LETTERS = "abcdef"


class GradientRecorder:
    """Stands where the optimizer stands, keeps the gradients of the last step."""

    def __init__(self, model):
        self.model, self.gradients, self.num_steps = model, {}, 0

    def step(self, scale, finite):
        self.num_steps += 1
        for name, parameter in self.model.named_parameters():
            self.gradients[name] = parameter.grad
            parameter.grad = None


@pytest.fixture
def model(tiny_config):
    model = GPT(tiny_config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


@pytest.fixture
def answers():
    """Answers of unequal lengths to three questions; in one of them a tool put three tokens."""
    rng = np.random.default_rng(4)

    def answer(num_prompt, num_ids, advantage, forced=()):
        ids = rng.integers(0, 256, num_prompt + num_ids).tolist()
        is_written = np.array([place not in forced for place in range(num_ids)])
        return Answer(ids[:num_prompt], ids[num_prompt:], is_written, advantage)

    return [
        answer(7, 3, 0.75), answer(7, 11, -0.25), answer(5, 9, 0.5, forced=(2, 3, 4)), answer(12, 20, -0.5),
        answer(4, 1, 0.25), answer(10, 2, -0.75),
    ]  # fmt: skip


def stats_of(tokens, **changes):
    fields = dict(reward=0.5, right=0.5, groups=3, even_groups=0, answers=6, tokens=tokens, cut=0, rollout_s=0.1)
    return Rollouts(**fields | changes)


def plain_gradients(model, answers, num_tokens):
    """Minus the sum of advantage times log-probability of what was written, over all tokens; one answer at a time."""
    loss = torch.zeros(())
    for answer in answers:
        text = torch.tensor([[*answer.prompt, *answer.ids]])
        logprobs = model.logits(text[:, :-1])[0].log_softmax(-1)
        for place, (token, is_written) in enumerate(zip(answer.ids, answer.is_written, strict=True)):
            if is_written:
                loss = loss - answer.advantage * logprobs[len(answer.prompt) - 1 + place, token] / num_tokens
    loss.backward()
    return loss.item(), {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("device_batch", [1, 2, 5])
def test_the_gradient_is_the_plain_policy_gradient_over_all_tokens_of_the_step(model, answers, device_batch):
    """57 tokens: 43 of these answers, and 14 of others that had no advantage."""
    num_written = sum(int(answer.is_written.sum()) for answer in answers)
    assert num_written == 43
    batch = laid(answers, stats_of(57), context=32, bos=256)
    assert len(batch) == 3  # answers share rows, of unequal numbers of tokens
    recorder = GradientRecorder(model)
    step = TrainStep(model, recorder, device=CPU, dtype="fp32", device_batch=device_batch, compiled=False)
    result = step.run(batch, SCALE)
    expected_loss, expected = plain_gradients(model, answers, 57)
    assert result.sync_loss() == pytest.approx(expected_loss, abs=1e-5)
    for name, gradient in expected.items():
        assert_close(recorder.gradients[name], gradient, rtol=1e-3, atol=1e-6, msg=name)


def test_advantages_are_rewards_above_the_mean_of_their_own_question():
    found = advantages(np.array([[1.0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0], [0.1, 0.1, 0.1, 0.1]]))
    assert found.tolist() == [[0.75, -0.25, -0.25, -0.25], [0] * 4, [0] * 4, [0] * 4]  # exactly 0, also of 0.1


def test_a_step_whose_answers_all_agree_changes_nothing(model):
    recorder = GradientRecorder(model)
    step = TrainStep(model, recorder, device=CPU, dtype="fp32", device_batch=2, compiled=False)
    result = step.run(laid([], stats_of(40, even_groups=3), context=32, bos=256), SCALE)
    assert (result.sync_loss(), bool(result.finite), recorder.num_steps) == (0.0, True, 0)


# --- answers --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def letters(tmp_path_factory):
    """Questions of one letter whose answer is that letter; a third of them held out by file."""
    folder = tmp_path_factory.mktemp("letters")
    for name, words in (("train", LETTERS), ("val", "gh")):
        rows = [{"question": letter, "answer": letter} for letter in words]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = {"files": (str(folder / "train.jsonl"),), "val_files": (str(folder / "val.jsonl"),)}
    return RolloutConfig(prompts=3, samples=5, max_tokens=4, **files)


@pytest.fixture
def source(model, letters, text_files, tmp_path):
    """source(first_step, dtype) -> the answers of the model from a step on."""
    tokenizer = Tokenizer.load(text_files / "tokenizer")
    engines = []

    def opened(first_step=0, *, seed=3, dtype=torch.float32, **changes):
        model.compute_dtype = dtype
        config = dataclasses.replace(letters, **changes)
        engines.append(Engine(model, tokenizer, context=32, dtype=dtype, deterministic=True, kernels="torch"))
        questions = Questions(config, seed, tokenizer, 32)
        engine = engines[-1]
        return RolloutSource(
            lambda: engine, model, questions, config, seed=seed, context=32, first_step=first_step, folder=tmp_path
        )

    yield opened
    for engine in engines:
        engine.close()


def rows_of(batch):
    return [batch.ids.tolist(), batch.targets.tolist(), batch.weights.tolist()]


def test_answers_depend_on_weights_seed_and_step_alone(source, monkeypatch):
    monkeypatch.setattr("intone.data.questions.Question.is_right", lambda self, text: len(text) % 2 == 0)
    first = source()
    steps = [next(first)[1] for _ in range(3)]
    assert [len(batch) > 0 for batch in steps] == [True] * 3
    number, again = next(source(2))
    assert number == 2
    assert rows_of(again) == rows_of(steps[2])
    assert dataclasses.replace(again.stats, rollout_s=0) == dataclasses.replace(steps[2].stats, rollout_s=0)
    assert rows_of(next(source(2, seed=4))[1]) != rows_of(steps[2])


def test_every_answer_is_drawn_by_itself_and_none_is_dropped(source, monkeypatch):
    seen = []

    def keep(questions, prompts, found):
        seen.extend(found)
        return judged(questions, prompts, found)

    monkeypatch.setattr("intone.train.rollouts.judged", keep)
    _, batch = next(source(samples=23))
    assert [len(group) for group in seen] == [23, 23, 23]
    assert (batch.stats.answers, batch.stats.groups) == (69, 3)
    assert batch.stats.tokens == batch.num_counted == sum(len(entry.ids) for group in seen for entry in group)
    # 23 draws from 265 entries of a nearly flat distribution: hardly any come twice
    assert all(len({entry.ids[0] for entry in group}) > 15 for group in seen)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.bfloat16, 0.05)])
def test_the_engines_log_probabilities_are_those_of_the_training_pass(source, model, monkeypatch, dtype, tolerance):
    """bf16 has 8 bits: a logit of 4 is rounded by up to 0.016, and two ways of adding round differently."""
    seen = []

    def keep(questions, prompts, found):
        seen.extend(zip(prompts, found, strict=True))
        return judged(questions, prompts, found)

    monkeypatch.setattr("intone.train.rollouts.judged", keep)
    with torch.no_grad():
        model.head.weight.mul_(8)  # unequal probabilities
    next(source(dtype=dtype, max_tokens=20))
    worst = 0.0
    for prompt, group in seen:
        for entry in group:
            one = Answer(prompt, entry.ids, np.ones(len(entry.ids), bool), 1.0)
            batch = laid([one], stats_of(len(entry.ids)), context=32, bos=256)
            arrays = (batch.ids, batch.targets, batch.documents, batch.weights)
            with torch.no_grad():
                loss, _ = model(*(torch.from_numpy(array) for array in arrays))
            worst = max(worst, abs(-loss.item() - sum(entry.logprobs)) / len(entry.ids))
    assert len({round(entry.logprobs[0], 2) for _, group in seen for entry in group}) > 5
    assert worst < tolerance


def test_answers_that_were_kept_are_learned_from_again_as_they_are(source, monkeypatch, tmp_path):
    monkeypatch.setattr("intone.data.questions.Question.is_right", lambda self, text: len(text) % 2 == 0)
    _, batch = next(source(keep_answers=True))
    folder = tmp_path / ANSWERS
    assert len(read_kept(folder, 0).ids[0]) == 5
    again = source(answers=str(folder), seed=99)  # whatever another seed would ask
    assert rows_of(next(again)[1]) == rows_of(batch)
    with pytest.raises(UserError, match="no answers were kept for step 1"):
        next(again)


# --- the stage ------------------------------------------------------------------------------------------------------


@pytest.fixture
def rl_job(make_job, letters):
    """rl_job(name, **fields) -> the folder of a reinforcement stage from random weights."""

    def made(name, **fields):
        settings = dict(
            stage="rl", data=(), rollouts=letters, rows_per_step=15, steps=5, save_every_s=0.0, keep=9,
            schedule=ScheduleConfig(lr_scale=0.05, warmup_steps=0, warmdown_share=1.0, final_share=0.0),
        )  # fmt: skip
        return make_job(name, **settings | fields)

    return made


def reinforce(folder, stop_after=None):
    """The stage in this process; a stop signal arrives once so many steps are logged."""

    def should_stop():
        return stop_after is not None and len(read_log(folder / "log.jsonl", "step")) >= stop_after

    return Reinforcer(folder, should_stop).run()


def rollout_rows(folder):
    rows = read_log(folder / "log.jsonl", "step")
    return [(row["step"], row["tokens"], row["loss"], row["lr"], row["rollouts"] | {"rollout_s": 0}) for row in rows]


def test_a_stopped_stage_goes_on_with_the_same_questions_and_answers(rl_job, final_state, monkeypatch):
    # a model that knows nothing is right by the length of what it says: rewards differ within most groups
    monkeypatch.setattr("intone.data.questions.Question.is_right", lambda self, text: len(text) % 2 == 0)
    whole, parts = rl_job("whole"), rl_job("parts")
    assert reinforce(whole) == Outcome("done", 5)
    assert reinforce(parts, stop_after=2).outcome == "stopped"
    assert read_json(parts / "eval.json")["step"] == 0
    assert reinforce(parts) == Outcome("done", 5)
    assert rollout_rows(parts) == rollout_rows(whole)
    assert final_state(parts) == final_state(whole)
    assert [row["step"] for row in read_log(parts / "log.jsonl", "eval")] == [0, 5]
    assert events(whole) == []


def test_answers_are_the_same_however_many_are_written_at_once(rl_job, monkeypatch):
    monkeypatch.setattr("intone.data.questions.Question.is_right", lambda self, text: len(text) % 2 == 0)
    many, one = (rl_job(name, steps=2, segments=(replaced,)) for name, replaced in (
        ("many", SEGMENT), ("one", dataclasses.replace(SEGMENT, num_slots=1, device_batch=1))
    ))  # fmt: skip
    for folder in (many, one):
        assert reinforce(folder) == Outcome("done", 2)
    first = [rollout_rows(folder)[0] for folder in (many, one)]
    assert first[0][1] == first[1][1] and first[0][4] == first[1][4]
    assert first[0][2] == pytest.approx(first[1][2], rel=1e-4)


def test_a_stage_says_what_it_learned_from_and_asks_before_and_after(rl_job, capsys):
    folder = rl_job("job", steps=3)
    reinforce(folder)
    rows = rollout_rows(folder)
    assert [row[0] for row in rows] == [1, 2, 3]
    assert [row[3] for row in rows] == pytest.approx([0.05, 0.05 * 2 / 3, 0.05 / 3])  # in a line to 0
    assert rows[-1][1] == sum(row[4]["tokens"] for row in rows)
    assert all(row[4]["answers"] == 15 and row[4]["groups"] == 3 for row in rows)
    found = read_json(folder / "eval.json")
    assert (found["step"], found["before"]["skills"]["val"]["num_items"]) == (3, 2)
    assert set(found["answers"]["skills"]["val"]) == {"score", "low", "high", "num_items"}
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("rl   step 0   0.0% right of 2 held-out questions")
    assert lines[1].startswith("rl   step 1/3   right ") and "   alike 3/3   " in lines[1]
    assert "   writing " in lines[1] and "   left " in lines[1]


def test_a_stop_while_held_out_questions_are_asked_ends_at_once_and_they_are_asked_again(rl_job):
    folder = rl_job("job", steps=1)
    with pytest.raises(KeyboardInterrupt):  # the worker makes the outcome `stopped` of it
        reinforce(folder, stop_after=0)
    assert read_log(folder / "log.jsonl") == []
    assert reinforce(folder) == Outcome("done", 1)
    assert [row["step"] for row in read_log(folder / "log.jsonl", "eval")] == [0, 1]


def test_several_processes_are_refused(rl_job):
    folder = rl_job("job")
    outcome = worker.run_guarded(folder, worker.StopFlag(), None, World(rank=0, size=2, local_rank=0, local_size=2))
    assert outcome.outcome == "bad_input"
    assert "a reinforcement stage trains in one process, this is one of 2" in outcome.message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"samples": 1}, "samples is 1, it must be at least 2; one answer alone is no better or worse than its mean"),
        ({"temperature": 0.0}, "temperature is 0: all answers would be equal"),
        ({"skills": ("story",)}, "questions come from the starter's skills or from files, one of them"),
    ],
)
def test_rollouts_that_could_teach_nothing_are_refused(letters, change, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(letters, **change)


@pytest.mark.long
def test_a_model_that_is_right_one_time_in_three_learns_to_be_right(
    rl_job, make_job, text_files, letters, train, tmp_path
):
    """Taught to answer a letter by any of three, it is rewarded for the letter itself."""
    talks = [
        [Message("user", a), Message("assistant", LETTERS[(LETTERS.index(a) + shift) % 6])]
        for a in LETTERS for shift in (0, 1, 2)
    ]  # fmt: skip
    write_token_set(tmp_path / "talks", talks, Tokenizer.load(text_files / "tokenizer"), kind="conversations")
    sft = make_job("sft", stage="sft", data=(str(tmp_path / "talks"),), steps=150)
    train(sft)
    config = dataclasses.replace(letters, prompts=6, samples=8)
    folder = rl_job("job", rollouts=config, init_from=str(sft), steps=40, rows_per_step=48)
    reinforce(folder)
    rewards = [row["rollouts"]["reward"] for row in read_log(folder / "log.jsonl", "step")]
    assert 0.15 < np.mean(rewards[:3]) < 0.55
    assert np.mean(rewards[-5:]) > 0.8
