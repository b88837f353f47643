"""What is asked of the engine and what comes back: requests, events while a text grows, and finished texts."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Literal

from intone.data.chat import Message
from intone.engine.structured import Form, parse_form
from intone.engine.tools import tool_names
from intone.errors import UserError

Reason = Literal["stop", "length", "cancelled", "error"]
Prompt = Sequence[int] | str | Sequence[Message]


@dataclass(frozen=True)
class Request:
    """One prompt to be continued n times.

    prompt: token ids as they are; a text to go on with (a document's start is put before it); or a conversation
    whose last message is the user's. max_tokens None: as many as the context leaves; it counts every new token, those
    of tools too. min_tokens: before so many, special ones not counted (nobody reads them), what would end the answer
    is not drawn, and stop texts do not count; a form that is complete ends it all the same.

    temperature 0 takes the likeliest token. Filters apply in the order top_k, top_p (share of probability kept),
    min_p (share of the likeliest token's probability); tokens as likely as the last one kept are kept too. Before
    them: repetition_penalty divides (positive) or multiplies (negative) the logits of every token that the text has,
    prompt included; presence_penalty is subtracted from those of new tokens, frequency_penalty once per occurrence;
    logit_bias is added, -inf excludes a token. seed None: a new one per request.

    stop: texts and token ids that end an answer, besides the end of an assistant's turn and of a document; a stop
    text is left out of the text. tools: which answer calls: True the calculator, False none, or names of
    tools.TOOLS, of which "python" gets what the calculator refuses. structured: the form of the answer, an object
    for structured.parse_form(); the answer ends where its form is complete. logprobs False: tokens come without,
    which saves a pass over the vocabulary. top_logprobs: report this many likeliest tokens with every token.
    Raises UserError for a value out of range.
    """

    prompt: Prompt
    max_tokens: int | None = None
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    n: int = 1
    stop: str | int | Sequence[str | int] = ()
    tools: bool | str | Sequence[str] = True
    top_logprobs: int = 0
    _: KW_ONLY
    logprobs: bool = True
    min_tokens: int = 0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    structured: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.prompt, str | Sequence) or isinstance(self.prompt, bytes):
            raise UserError(f"prompt is a {type(self.prompt).__name__}, it must be token ids, text or messages")
        if len(self.prompt) == 0:
            raise UserError("the prompt is empty", value=self.prompt, fix="give at least one token, letter or message")
        _check_whole("max_tokens", self.max_tokens, low=1, or_none=True)
        _check_whole("min_tokens", self.min_tokens, low=0, fix="0 lets the model end its answer at once")
        _check_whole("top_k", self.top_k, low=1, or_none=True)
        _check_whole("n", self.n, low=1)
        _check_whole("top_logprobs", self.top_logprobs, low=0)
        _check_whole("seed", self.seed, or_none=True)
        if not isinstance(self.logprobs, bool):
            raise UserError(f"logprobs {self.logprobs!r} is neither True nor False", value=self.logprobs)
        _check_number("temperature", self.temperature, low=0.0, fix="0 takes the likeliest token, 1 samples as trained")
        _check_number("top_p", self.top_p, low=0.0, high=1.0, fix="1 keeps every token, 0.9 drops the unlikeliest")
        _check_number("min_p", self.min_p, low=0.0, high=1.0, fix="0 keeps every token, 0.05 is usual")
        for name in ("presence_penalty", "frequency_penalty"):
            _check_number(name, getattr(self, name), low=-100.0, high=100.0, fix="0 changes nothing, 0.5 is usual")
        _check_number("repetition_penalty", self.repetition_penalty, low=0.0, fix="1 changes nothing, 1.1 is usual")
        tool_names(self.tools)
        if self.structured is not None:
            parse_form(self.structured)
        self._check_combinations()

    def _check_combinations(self) -> None:
        if self.top_p == 0:
            raise UserError("top_p 0 keeps no token", value=0, fix="use temperature 0 for the likeliest token")
        if self.repetition_penalty == 0:
            raise UserError("repetition_penalty 0 would divide by 0", value=0, fix="1 changes nothing, 1.1 is usual")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise UserError(
                f"min_tokens {self.min_tokens:,} is more than max_tokens {self.max_tokens:,}",
                value=self.min_tokens,
                fix=f"use a min_tokens of {self.max_tokens:,} or less, or a larger max_tokens",
            )
        if self.top_logprobs and not self.logprobs:
            raise UserError(f"top_logprobs is {self.top_logprobs} and logprobs is False", value=self.top_logprobs)
        for stop in self.stops:
            if isinstance(stop, bool) or not isinstance(stop, str | int) or stop == "":
                raise UserError(f"stop {stop!r} is neither a text nor a token id", value=stop)
        if not isinstance(self.logit_bias, Mapping):
            raise UserError(f"logit_bias {self.logit_bias!r} is no mapping of token ids to numbers")
        for token, bias in self.logit_bias.items():
            _check_whole("logit_bias of token", token, low=0)
            if bias != -math.inf:
                _check_number(f"logit_bias of token {token}", bias, low=-1e4, high=1e4, fix="-inf excludes a token")

    @property
    def stops(self) -> tuple[str | int, ...]:
        """stop as a tuple."""
        return (self.stop,) if isinstance(self.stop, str | int) else tuple(self.stop)

    @property
    def tool_names(self) -> tuple[str, ...]:
        """tools as names, in the order in which they are asked."""
        return tool_names(self.tools)

    @property
    def form(self) -> Form | None:
        """structured as a form that can be compiled."""
        return None if self.structured is None else parse_form(self.structured)

    @property
    def has_penalties(self) -> bool:
        """Whether the tokens so far change what may come."""
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0


@dataclass(frozen=True)
class Usage:
    """Tokens of the prompt, and new tokens of one sample (stop token and tool results included).

    cached_tokens: those of the prompt whose keys were there already, from another sample or an earlier text.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


@dataclass(frozen=True)
class Token:
    """One new token of one sample.

    text is what became readable by it: "" inside a tool call, for special tokens, for half a letter and while it may
    be the start of a stop text. logprob is the model's own (temperature 1, unfiltered, no penalties), None for a token
    that a tool put there or where nobody asked for it. top: (id, logprob) of the likeliest tokens, best first.
    """

    sample: int
    id: int
    text: str
    logprob: float | None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class ToolCall:
    """The model asked a tool; output None: the tool refused and nothing was put into the text."""

    sample: int
    name: str
    input: str
    output: str | None


@dataclass(frozen=True)
class Done:
    """One sample has ended."""

    sample: int
    reason: Reason
    usage: Usage


@dataclass(frozen=True)
class Failed:
    """The whole request has ended without an answer; no other event follows."""

    error: Exception


Event = Token | ToolCall | Done | Failed


@dataclass(frozen=True)
class Completion:
    """One finished sample.

    ids: every new token, the stop token and tool results included. text: the readable part, without tool calls.
    logprobs: per id, None where a tool put it or nobody asked. error: why, where reason is "error".
    """

    sample: int
    ids: list[int]
    text: str
    logprobs: list[float | None]
    reason: Reason
    usage: Usage
    tool_calls: list[ToolCall]
    seed: int
    error: str | None = None


def check_prompt(ids: Sequence[int], *, vocab_size: int, context: int, room: int = 1) -> list[int]:
    """The ids as a list of ints. Raises UserError for ids the model does not know, or too many of them.

    room: positions of the context that must stay free for an answer.
    """
    if len(ids) == 0:
        raise UserError("the prompt is empty", value=[], fix="give at least one token")
    checked = check_ids("token id", ids, vocab_size=vocab_size)
    if len(checked) > context - room:
        raise UserError(
            f"{len(checked):,} tokens do not fit into the context of {context:,}{' with an answer' if room else ''}",
            value=len(checked),
            fix=f"shorten the text to {context - room:,} tokens or fewer",
        )
    return checked


def check_ids(what: str, ids: Sequence[int], *, vocab_size: int) -> list[int]:
    """The ids as a list of ints. Raises UserError for one that the model does not know; what: where it stood."""
    checked = []
    for token in ids:
        if isinstance(token, bool) or not hasattr(token, "__index__"):
            raise UserError(f"{what} {token!r} is not a whole number", value=repr(token))
        if not 0 <= int(token) < vocab_size:
            raise UserError(
                f"unknown {what} {int(token):,}", value=int(token), fix=f"this model knows 0 to {vocab_size - 1:,}"
            )
        checked.append(int(token))
    return checked


def _check_whole(
    name: str, value: Any, *, low: int | None = None, or_none: bool = False, fix: str | None = None
) -> None:
    if value is None and or_none:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise UserError(f"{name} {value!r} is not a whole number", value=value)
    if low is not None and value < low:
        raise UserError(f"{name} is {value}, it must be at least {low}", value=value, fix=fix)


def _check_number(name: str, value: Any, *, low: float, high: float = math.inf, fix: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{name} {value!r} is not a number", value=value, fix=fix)
    if not math.isfinite(value):
        raise UserError(f"{name} {value} is not a finite number", value=str(value), fix=fix)
    if not low <= value <= high:
        limits = f"at least {low:g}" if high == math.inf else f"between {low:g} and {high:g}"
        raise UserError(f"{name} is {value:g}, it must be {limits}", value=value, fix=fix)
