"""Questions whose answers can be checked: from the starter's skills or from files, some held out, and what is right"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from intone.config import RolloutConfig
from intone.data import starter
from intone.data.chat import Encoder, Message, parse_messages, render_prompt
from intone.data.files import file_type, find_files
from intone.data.pack import shuffled
from intone.data.starter.item import is_held_out
from intone.errors import UserError
from intone.log import say
from intone.mixture import PUBLIC, STARTER

Rule = Literal["text", "number", "marked"]
MARK = "####"  # what stands before the final answer in GSM8K (Cobbe et al. 2021)
# what a row of a file needs
ROW_FIX = 'one object a line: {"messages": [...], "answer": "..."} or {"question": "...", "answer": "..."}'
# a sign counts where it cannot be an operator: 10-3 ends in 3, not in -3
NUMBER = re.compile(r"(?:(?<![\w.)])[-+])?\$?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?")


@dataclass(frozen=True)
class Question:
    """A conversation that ends with its right reply; answer is what is compared, kind the skill or the file's name.

    rule: text, the whole reply is the answer; number, the last number in it is; marked, what follows the last ####.
    """

    messages: list[Message]
    answer: str
    kind: str
    rule: Rule = "text"

    @property
    def asked(self) -> list[Message]:
        """The conversation up to the reply that is to be written."""
        return self.messages[:-1]

    def is_right(self, text: str) -> bool:
        """Whether the readable text of a reply gives the answer. Nothing in it is ever run."""
        found = final_answer(text, self.rule)
        return found is not None and found == final_answer(self.answer, self.rule)


def final_answer(text: str, rule: Rule) -> str | None:
    """What a reply says in the end, in a form that can be compared; None where it says nothing of the kind."""
    if rule == "text":
        return text.strip()
    if rule == "marked":
        _, mark, text = text.rpartition(MARK)
        if not mark:
            return None
        whole = (text.strip().splitlines() or [""])[0].strip().rstrip(".")
        return plain_number(whole) if NUMBER.fullmatch(whole) else whole or None
    numbers = NUMBER.findall(text)
    return plain_number(numbers[-1]) if numbers else None


def plain_number(text: str) -> str:
    """1,000.50 and $1000.5 as the same word."""
    whole, _, part = re.sub(r"[-+$,]", "", text).partition(".")
    part = part.rstrip("0")
    value = (whole.lstrip("0") or "0") + (f".{part}" if part else "")
    return f"-{value}" if text.startswith("-") and value != "0" else value


def rule_of(answer: str) -> Rule:
    """How a file's answer is compared: by its mark where it has one, as a number where it is one, else as it stands."""
    if MARK in answer:
        return "marked"
    return "number" if NUMBER.fullmatch(answer.strip()) else "text"


class Questions:
    """Question 0, 1, 2, ... without end, by the seed alone, and those that are held out for measuring.

    The state of a stage is the number of the next question.
    """

    def __init__(self, config: RolloutConfig, seed: int, tokenizer: Encoder, context: int) -> None:
        """Raises UserError where a file is none, or no question is left that fits into the context with an answer."""
        self._seed = seed
        self._skills = config.skills
        self._tokenizer, self._context = tokenizer, context
        self._train: list[Question] = []
        if config.skills:
            # of all skills: what was not practised may be unlearned
            items = {skill: starter.eval_items(skill, 0, config.num_items) for skill in starter.SKILLS}
            self.held_out = {skill: [as_question(item) for item in found] for skill, found in items.items()}
            return
        self._train, held_out = divided(read_questions(config.files), read_questions(config.val_files))
        if not self._train and held_out:
            raise UserError(
                "there are no questions to learn from: all are held out", value=list(config.val_files or config.files),
                fix="give other questions to --val, or more of them to --data",
            )  # fmt: skip
        num_read = len(self._train) + len(held_out)
        self._train = [question for question in self._train if self._fits(question)]
        held_out = [question for question in held_out if self._fits(question)]
        if missing := num_read - len(self._train) - len(held_out):
            say(f"{missing:,} of {num_read:,} questions are left out: they fill the context of {context:,} tokens")
        if not self._train or not held_out:
            what = "questions to learn from" if not self._train else "held-out questions"
            raise UserError(
                f"there are no {what} that fit into the context of {context:,} tokens", value=list(config.files),
                fix="give a larger file, or held-out questions with --val",
            )  # fmt: skip
        self.held_out = by_kind(held_out, config.num_items)

    def at(self, number: int) -> Question:
        """Question number of the sequence. Skills take turns; the questions of files come in a new order every time."""
        if self._skills:
            skill = self._skills[number % len(self._skills)]
            for attempt in range(100):
                question = as_question(starter.practice_item(skill, self._seed, number, attempt))
                if self._fits(question):
                    return question
            raise UserError(
                f"no question of the skill {skill} fits into the context of {self._context:,} tokens", value=skill,
                fix="leave it out of --skills",
            )  # fmt: skip
        epoch, place = divmod(number, len(self._train))
        return self._train[shuffled(len(self._train), self._seed, epoch)[place]]

    def prompt(self, question: Question) -> list[int]:
        """The token ids after which a reply is written."""
        return render_prompt(question.asked, self._tokenizer)

    def _fits(self, question: Question) -> bool:
        return len(self.prompt(question)) < self._context


def as_question(item: starter.Item) -> Question:
    """A question of the starter, compared as `intone eval` does."""
    return Question(item.messages, item.answer, item.skill)


# --- files ----------------------------------------------------------------------------------------------------------


def check_named(data: Sequence[str], val: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(files of questions, files of held-out ones) that --data and --val name; both empty for the starter.

    Raises UserError for a path that is not there, another kind of file, and the starter beside files.
    """
    if tuple(data) == (STARTER,):
        if val:
            fix = "leave it out, or give --data"
            raise UserError("--val is for questions from files", value=" ".join(val), fix=fix)
        return (), ()
    if STARTER in data:
        fix = "keep one of them"
        raise UserError("questions come from the starter or from files, not both", value=" ".join(data), fix=fix)
    for name in (*data, *val):
        bare, _, share = name.rpartition(":")
        if name in PUBLIC or (bare and not Path(name).expanduser().exists() and share.replace(".", "", 1).isdigit()):
            what = "questions with answers are not mixed by shares" if bare else f"{name} has no answers to check"
            fix = "name .jsonl files of questions and answers, or leave out --data for the starter's"
            raise UserError(what, value=name, fix=fix)
    train, held_out = find_files(data)
    if val:
        held_out = [path for found in find_files(val) for path in found]
    for path in (*train, *held_out):
        if file_type(path) != ".jsonl" or path.suffix != ".jsonl":
            raise UserError(f"questions are read from .jsonl files, not from {path}", value=str(path), fix=ROW_FIX)
    return tuple(str(path.absolute()) for path in train), tuple(str(path.absolute()) for path in held_out)


def read_questions(files: Sequence[str]) -> list[Question]:
    """All questions of files, in their order, each once. Raises UserError that names the file and the line."""
    found: dict[str, Question] = {}
    for name in files:
        path = Path(name)
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            fix = "see that it is there, and in UTF-8"
            raise UserError(f"{path} cannot be read: {error}", value=name, fix=fix) from None
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                question = parse_question(json.loads(line), path.stem)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{path}, line {number}: no JSON ({error})", value=name, fix=ROW_FIX) from None
            except UserError as error:
                text = f"{path}, line {number}: {error.message}"
                raise UserError(text, value=error.value, fix=error.fix or ROW_FIX) from None
            found.setdefault(key_of(question), question)
    return list(found.values())


def parse_question(row: Any, kind: str) -> Question:
    """A row with `messages` or `question`, and `answer`; a conversation may hold its answer as its last message.

    Raises UserError for a row without them. Other columns are not read.
    """
    if not isinstance(row, Mapping) or ("messages" in row) == ("question" in row):
        raise UserError(
            "a row needs `messages` or `question`, one of them, and `answer`",
            value=sorted(map(str, row))[:8] if isinstance(row, Mapping) else type(row).__name__,
        )
    if "question" in row:
        if not isinstance(row["question"], str) or not row["question"].strip():
            raise UserError("`question` must be a text", value=row["question"])
        messages = [Message("user", row["question"].strip())]
    else:
        messages = parse_messages(row["messages"])
    answer = row.get("answer")
    if messages[-1].role == "assistant":
        reply = messages.pop()
        answer = reply.visible if answer is None else answer
    if isinstance(answer, (int, float)) and not isinstance(answer, bool):
        answer = str(answer)
    if not isinstance(answer, str) or not answer.strip() or not messages:
        raise UserError("`answer` must be a text or a number, after a question", value=answer)
    return Question([*messages, Message("assistant", answer)], answer, kind, rule_of(answer))


def key_of(question: Question) -> str:
    """What makes two questions the same: the whole conversation before the reply."""
    return json.dumps([[message.role, message.visible] for message in question.asked])


def divided(train: list[Question], held_out: list[Question]) -> tuple[list[Question], list[Question]]:
    """(questions to learn from, held-out ones): those that are given, or one in ten; no question is in both."""
    if not held_out:
        held_out = [question for question in train if is_held_out((key_of(question),))]
    keys = {key_of(question) for question in held_out}
    return [question for question in train if key_of(question) not in keys], held_out


def by_kind(questions: Sequence[Question], most: int) -> dict[str, list[Question]]:
    """At most so many questions of each kind, a fixed sample of them."""
    kinds: dict[str, list[Question]] = {}
    for place in shuffled(len(questions), 0):
        group = kinds.setdefault(questions[place].kind, [])
        if len(group) < most:
            group.append(questions[place])
    return {kind: kinds[kind] for kind in sorted(kinds)}
