"""Who answers in a terminal's chat: what every partner does, and the one that is a model in this process."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from intone.data.chat import Message, Part, render_prompt
from intone.engine.requests import Done, Failed, Request, Token, ToolCall
from intone.errors import UserError
from intone.settings import ChatSettings

if TYPE_CHECKING:
    from intone.engine.engine import Engine
    from intone.engine.text import Tokenizer


@dataclass(frozen=True)
class Said:
    """More readable text."""

    text: str


@dataclass(frozen=True)
class Called:
    """A tool was asked; output None: it refused."""

    name: str
    input: str
    output: str | None


@dataclass(frozen=True)
class Forgot:
    """So many of the oldest messages were left out, since the context is full; comes before all else."""

    num_messages: int


@dataclass(frozen=True)
class Waiting:
    """Nothing yet, and why: for people, at once."""

    words: str


@dataclass(frozen=True)
class Ended:
    """The answer is whole. reason: stop, length, or another word of the server."""

    reason: str
    num_tokens: int | None = None


Piece = Said | Called | Forgot | Waiting | Ended


class Partner(Protocol):
    """Something that answers conversations."""

    @property
    def about(self) -> str:
        """What answers, in a few words."""

    @property
    def context(self) -> int | None:
        """Tokens that it sees at once; None: unknown."""

    def check(self, settings: ChatSettings) -> None:
        """Raises UserError where these settings can never be asked for."""

    def use(self, model: str) -> None:
        """Answers by another model from now on. Raises UserError where there is no choice, or none of this name."""

    def models(self) -> list[str]:
        """Names for use(); empty where there is no choice."""

    def answer(self, messages: Sequence[Message], settings: ChatSettings, *, seed: int) -> Generator[Piece, None, None]:
        """The pieces of an answer; closing the iterator stops it. The first message may be the system's.

        Raises UserError for what the person can mend, RuntimeError where the model fails.
        """


@dataclass
class Answer:
    """What came of one request so far; grows while its pieces are read. reason None: no end yet."""

    parts: list[Part] = field(default_factory=list)
    reason: str | None = None

    @property
    def message(self) -> Message:
        """The turn as the model wrote it, tool calls included, for the next prompt."""
        is_plain = all(part.kind == "text" for part in self.parts)
        return Message("assistant", self.text if is_plain else tuple(self.parts))

    @property
    def text(self) -> str:
        """What a person reads."""
        return "".join(part.text for part in self.parts if part.kind == "text")

    def take(self, piece: Piece) -> None:
        """Adds a piece; what is not part of the turn changes nothing."""
        if isinstance(piece, Said):
            self._add("text", piece.text)
        elif isinstance(piece, Called):
            self._add("call", piece.input)
            if piece.output is not None:
                self._add("output", piece.output)
        elif isinstance(piece, Ended):
            self.reason = piece.reason

    def _add(self, kind: Literal["text", "call", "output"], text: str) -> None:
        if self.parts and self.parts[-1].kind == kind == "text":
            text = self.parts.pop().text + text
        self.parts.append(Part(kind, text))


class EnginePartner:
    """The model of a run, in this process."""

    def __init__(self, engine: "Engine", tokenizer: "Tokenizer", name: str = "this model") -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self.about = name

    @property
    def context(self) -> int:
        return self._engine.context

    def check(self, settings: ChatSettings) -> None:
        request_of([Message("user", "?")], settings, seed=0)

    def use(self, model: str) -> None:
        raise UserError("this chat has one model", value=model, fix="start another: intone chat --from RUN")

    def models(self) -> list[str]:
        return []

    def answer(self, messages: Sequence[Message], settings: ChatSettings, *, seed: int) -> Generator[Piece, None, None]:
        kept = self._fitting(messages, settings)
        handle = self._engine.submit(request_of(kept, settings, seed=seed))
        try:
            if num_forgotten := len(messages) - len(kept):
                yield Forgot(num_forgotten)
            for event in handle:
                if isinstance(event, Token) and event.text:
                    yield Said(event.text)
                elif isinstance(event, ToolCall):
                    yield Called(event.name, event.input, event.output)
                elif isinstance(event, Done):
                    yield Ended(event.reason, event.usage.completion_tokens)
                elif isinstance(event, Failed):
                    raise RuntimeError(str(event.error)) from event.error
        finally:
            handle.cancel()

    def _fitting(self, messages: Sequence[Message], settings: ChatSettings) -> list[Message]:
        """The messages without the oldest turns, as many as must go to leave room for an answer."""
        room = min(settings.max_tokens, self.context // 4)
        system = list(messages[:1]) if messages[0].role == "system" else []
        turns = list(messages[len(system) :])
        while len(turns) > 1 and len(render_prompt([*system, *turns], self._tokenizer)) + room > self.context:
            turns = turns[2:]
        return [*system, *turns]


def request_of(messages: Sequence[Message], settings: ChatSettings, *, seed: int) -> Request:
    """The engine's request for the next answer."""
    return Request(
        messages,
        max_tokens=settings.max_tokens,
        min_tokens=settings.min_tokens,
        temperature=settings.temperature,
        top_k=settings.top_k,
        top_p=1.0 if settings.top_p is None else settings.top_p,
        seed=seed,
        tools=tools_of(settings),
    )


def tools_of(settings: ChatSettings) -> list[str]:
    """The tools that an answer may call."""
    return ["calculator"] * settings.tools + ["python"] * settings.python
