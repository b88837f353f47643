"""The starter skills: does the model give the one right answer to questions it has never seen?"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from intone.data.chat import Message, render_prompt
from intone.engine.engine import Engine
from intone.engine.requests import Completion, Request
from intone.errors import UserError
from intone.evals.intervals import mean_of, proportion

NUM_EXAMPLES = 3  # wrong answers kept per skill: enough to see a pattern, short enough to read (guess)


class Item(Protocol):
    """A question with its one right answer: messages end with the assistant's reply, answer is its visible text."""

    @property
    def messages(self) -> list[Message]: ...

    @property
    def answer(self) -> str: ...


AnyItem = TypeVar("AnyItem", bound=Item)


def says_the_same(item: Item, text: str) -> bool:
    """Whether a reply is the item's answer, word for word."""
    return text.strip() == item.answer.strip()


def evaluate_skills(
    engine: Engine, items_by_skill: Mapping[str, Sequence[AnyItem]], max_tokens: int | None = None, *,
    on_answer: Callable[[], None] = lambda: None, is_right: Callable[[AnyItem, str], bool] = says_the_same,
) -> dict[str, Any]:
    """-> {"mean", "low", "high", "skills": {NAME: {"score", "low", "high", "num_items"}}, "wrong": [...]}.

    Greedy answers, right if equal to the item's after trimming, tool calls left out. The mean over skills is
    unweighted. All questions are generated together. wrong: a few {"skill", "question", "expected", "got", "reason"}.
    max_tokens None: as many as the context leaves. Raises UserError for a skill without items; a question that is
    too long for the context counts as wrong. on_answer is called after every answer. is_right: of an item and the text
    of an answer.
    """
    for skill, items in items_by_skill.items():
        if not items:
            raise UserError(f"there are no questions for the skill {skill!r}", value=skill)
    asked = [(skill, item) for skill, items in items_by_skill.items() for item in items]
    answers = _answers(engine, [item for _, item in asked], max_tokens, on_answer)
    num_right = dict.fromkeys(items_by_skill, 0)
    num_shown = dict.fromkeys(items_by_skill, 0)
    wrong: list[dict[str, str]] = []
    for (skill, item), (got, reason) in zip(asked, answers, strict=True):
        if is_right(item, got):
            num_right[skill] += 1
        elif num_shown[skill] < NUM_EXAMPLES:
            num_shown[skill] += 1
            question = item.messages[-2].visible
            wrong.append({"skill": skill, "question": question, "expected": item.answer, "got": got, "reason": reason})
    shares = {skill: proportion(num_right[skill], len(items)) for skill, items in items_by_skill.items()}
    mean = mean_of(list(shares.values()))
    skills = {
        skill: {"score": share.value, "low": share.low, "high": share.high, "num_items": len(items_by_skill[skill])}
        for skill, share in shares.items()
    }
    return {"mean": mean.value, "low": mean.low, "high": mean.high, "skills": skills, "wrong": wrong}


def _answers(
    engine: Engine, items: Sequence[Item], max_tokens: int | None, on_answer: Callable[[], None]
) -> list[tuple[str, str]]:
    """Visible text and reason of the end for every item. Raises RuntimeError where the model failed."""
    requests, places = [], []
    answers = [("", "question longer than the context")] * len(items)
    for place, item in enumerate(items):
        ids = render_prompt(item.messages[:-1], engine.tokenizer)
        if len(ids) < engine.context:
            requests.append(Request(ids, max_tokens=max_tokens, temperature=0.0))
            places.append(place)
    for place, (completion,) in zip(places, engine.generate(requests, on_answer=on_answer), strict=True):
        answers[place] = _checked(completion)
    return answers


def _checked(completion: Completion) -> tuple[str, str]:
    if completion.reason == "error":
        raise RuntimeError(f"the model failed while answering: {completion.error}")
    return completion.text, completion.reason
