"""What a reinforcement step learns from: questions answered by the present model, judged, and laid into rows

The gradient is that of REINFORCE (Williams 1992) with the mean reward of a question's own answers as baseline, as in
GRPO (Shao et al. 2024, DeepSeekMath, section 4.1) but not divided by their standard deviation (Liu et al. 2025, Dr.
GRPO), over all tokens of a step alike (Yu et al. 2025, DAPO, section 3.3). Answers are written by the weights that
learn from them, so there is no ratio to clip and no reference model: decision 032.
"""

import contextlib
import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torch import nn

from intone.config import RolloutConfig
from intone.data.loader import Batch
from intone.data.pack import pack
from intone.data.questions import Question, Questions
from intone.engine.engine import Engine
from intone.engine.requests import Completion, Request
from intone.records import Rollouts
from intone.train.kept import ANSWERS, Written, keep, read_kept


@dataclass(frozen=True)
class RolloutBatch(Batch):
    """The answers of a step that say something, as rows; stats counts all of them.

    targets: -1 for the question and for what a tool put there. weights: the answer's advantage, which is what the loss
    of each of its tokens counts.
    """

    stats: Rollouts = field(kw_only=True)

    @property
    def num_counted(self) -> int:
        """Tokens that the mean is over: all that the model wrote in this step, also those without a gradient."""
        return self.stats.tokens


@dataclass(frozen=True)
class Answer:
    """One answer of the model to a prompt.

    prompt, ids: token ids. is_written (len(ids),) bool: the model drew it, no tool put it there.
    """

    prompt: Sequence[int]
    ids: Sequence[int]
    is_written: np.ndarray
    advantage: float


class RolloutSource:
    """(step, RolloutBatch) for first_step, first_step + 1, ...: each is written when it is asked for, by the weights
    that the model has then. Every number depends on weights, seed and step alone.
    """

    def __init__(
        self, opened: Callable[[], Engine], model: nn.Module, questions: Questions, config: RolloutConfig, *, seed: int,
        context: int, first_step: int, folder: Path, on_answer: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        """opened: the engine for the next step, as that step is planned. context: tokens of a row. folder: of the job,
        where answers are kept if they are. on_answer is called after every question.
        """
        self._opened, self._model, self._questions, self._config = opened, model, questions, config
        self._seed, self._context, self._step, self._on_answer = seed, context, first_step, on_answer
        self._folder = folder
        self.engine: Engine | None = None  # that of the newest step

    def __enter__(self) -> "RolloutSource":
        return self

    def __exit__(self, *_: object) -> None:
        """The engine is its opener's."""

    def paused(self) -> contextlib.AbstractContextManager[None]:
        """Nothing is made ahead, so there is nothing to pause."""
        return contextlib.nullcontext()

    def __next__(self) -> tuple[int, RolloutBatch]:
        begin_s, step, config = time.perf_counter(), self._step, self._config
        engine = self.engine = self._opened()
        written = self._write(engine) if config.answers is None else read_kept(Path(config.answers), step)
        if config.keep_answers:
            keep(self._folder / ANSWERS, step, written)
        batch = rollout_batch(written, context=self._context, bos=engine.tokenizer.bos, begin_s=begin_s)
        self._step += 1
        return step, batch

    def _write(self, engine: Engine) -> Written:
        count = self._config.prompts
        numbers = range(self._step * count, (self._step + 1) * count)
        questions = [self._questions.at(number) for number in numbers]
        prompts = [self._questions.prompt(question) for question in questions]
        engine.update_weights(self._model.state_dict())
        requests = [request(prompt, self._config, self._seed, n) for prompt, n in zip(prompts, numbers, strict=True)]
        return judged(questions, prompts, engine.generate(requests, on_answer=self._on_answer))


def request(prompt: Sequence[int], config: RolloutConfig, run_seed: int, number: int) -> Request:
    """What the engine is asked for one question of the sequence: all its answers, from one seed that nobody shares.

    The engine draws answer i from a stream of (seed, i), first token included.
    """
    digest = hashlib.sha256(f"rollouts {run_seed} {number}".encode()).digest()
    return Request(
        prompt, max_tokens=config.max_tokens, temperature=config.temperature, top_k=config.top_k, n=config.samples,
        seed=int.from_bytes(digest[:7], "big"),
    )  # fmt: skip


def judged(
    questions: Sequence[Question], prompts: Sequence[Sequence[int]], found: Sequence[Sequence[Completion]]
) -> Written:
    """The answers to every question with their rewards. Raises RuntimeError where the model failed while it wrote."""
    for completion in (entry for group in found for entry in group):
        if completion.reason == "error":
            raise RuntimeError(f"the model failed while it wrote answers: {completion.error}")
    return Written(
        prompts,
        [[entry.ids for entry in group] for group in found],
        [[entry.logprobs for entry in group] for group in found],
        [
            [float(question.is_right(entry.text)) for entry in group]
            for question, group in zip(questions, found, strict=True)
        ],
        cut=sum(entry.reason == "length" for group in found for entry in group),
    )


def rollout_batch(written: Written, *, context: int, bos: int, begin_s: float) -> RolloutBatch:
    """Judged answers as rows of context tokens. begin_s: when the step began, perf_counter()."""
    rewards = np.array(written.rewards)
    groups = zip(written.prompts, written.ids, written.logprobs, advantages(rewards), strict=True)
    answers = [
        Answer(prompt, ids, np.array([part is not None for part in parts], bool), float(value))
        for prompt, group, logprobs, row in groups
        for ids, parts, value in zip(group, logprobs, row, strict=True)
    ]
    stats = Rollouts(
        reward=float(rewards.mean()),
        right=float((rewards == 1).mean()),
        groups=len(rewards),
        even_groups=int((rewards == rewards[:, :1]).all(1).sum()),
        answers=rewards.size,
        tokens=sum(int(answer.is_written.sum()) for answer in answers),
        cut=written.cut,
        rollout_s=time.perf_counter() - begin_s,
    )
    return laid([answer for answer in answers if answer.advantage], stats, context=context, bos=bos)


def advantages(rewards: np.ndarray) -> np.ndarray:
    """(P, n) rewards of n answers to each of P questions -> how much better each is than the mean of its question's.

    Exactly zero for a question whose answers all have the same reward.
    """
    even = (rewards == rewards[:, :1]).all(1, keepdims=True)
    return np.where(even, 0.0, rewards - rewards.mean(1, keepdims=True))


def laid(answers: Sequence[Answer], stats: Rollouts, *, context: int, bos: int) -> RolloutBatch:
    """Question and answer one behind the other as one segment each, packed whole into rows of context tokens.

    The last token of an answer is predicted and need not be read. No row where no answer says anything.
    """
    lengths = np.array([len(answer.prompt) + len(answer.ids) - 1 for answer in answers], np.int64)
    packing = pack(lengths, context=context, whole=np.ones(len(lengths), bool))
    shape = (packing.num_rows, context)
    ids, targets = np.full(shape, bos, np.int32), np.full(shape, -1, np.int32)
    documents, weights = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
    for row in range(packing.num_rows):
        begin = 0
        for number, segment in enumerate(range(packing.first[row], packing.first[row + 1])):
            answer, length = answers[packing.item[segment]], int(packing.length[segment])
            text, end = [*answer.prompt, *answer.ids], begin + length
            ids[row, begin:end] = text[:-1]
            first = begin + len(answer.prompt) - 1  # reads the question's last token and predicts the answer's first
            targets[row, first:end] = np.where(answer.is_written, answer.ids, -1)
            weights[row, first:end] = np.where(answer.is_written, answer.advantage, 0.0)
            documents[row, begin:end] = number
            documents[row, end:] = number + 1
            begin = end
    return RolloutBatch(ids, targets, documents, weights, stats=stats)
