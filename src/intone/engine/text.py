"""From sampled ids to readable text: whole letters only, tool calls hidden, stop texts recognised in time."""

import codecs
from dataclasses import dataclass
from typing import Literal, Protocol

from intone.data.chat import SPECIALS


class Tokenizer(Protocol):
    """What the engine needs of data/tokenizer.py, which it does not import so that it stays small."""

    @property
    def bos(self) -> int: ...

    @property
    def vocab_size(self) -> int: ...

    def encode(self, text: str) -> list[int]: ...

    def decode_bytes(self, ids: list[int]) -> bytes: ...

    def special(self, name: str) -> int: ...


@dataclass(frozen=True)
class Specials:
    """The ids of the chat format's special tokens that the engine acts on."""

    all: frozenset[int]
    ends: frozenset[int]  # a document's start and the end of an assistant's turn: always end an answer
    call_start: int
    call_end: int
    output_start: int
    output_end: int

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "Specials":
        return cls(
            all=frozenset(tokenizer.special(name) for name in SPECIALS),
            ends=frozenset((tokenizer.bos, tokenizer.special("<|assistant_end|>"))),
            call_start=tokenizer.special("<|python_start|>"),
            call_end=tokenizer.special("<|python_end|>"),
            output_start=tokenizer.special("<|output_start|>"),
            output_end=tokenizer.special("<|output_end|>"),
        )


    def as_output(self, ids: list[int]) -> list[int]:
        """The ids of a tool's output as they stand in a text."""
        return [self.output_start, *ids, self.output_end]


class VisibleText:
    """The readable text of one growing sample.

    push() takes ids one by one. After a stop text is found (is_stopped) nothing may be pushed any more. A stop text
    is looked for in what is written without a special token in between.
    """

    def __init__(self, tokenizer: Tokenizer, specials: Specials, stops: tuple[str, ...]) -> None:
        self.is_stopped = False
        self._tokenizer = tokenizer
        self._specials = specials
        self._stops = stops
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""  # may be the start of a stop text
        self._given: list[str] = []
        self._inside: Literal["text", "call", "output"] = "text"
        self._call: list[int] = []

    @property
    def text(self) -> str:
        """All text given so far."""
        return "".join(self._given)

    def push(self, token: int, *, may_stop: bool = True) -> tuple[str, str | None]:
        """-> (text that became readable, the whole tool call if this token ends one).

        may_stop False: stop texts that begin with this token's text or end in it do not count.
        """
        if token not in self._specials.all:
            if self._inside == "call":
                self._call.append(token)
            if self._inside != "text":
                return "", None
            return self._give(self._decoder.decode(self._tokenizer.decode_bytes([token])), may_stop=may_stop), None
        # half a letter before a special token will never be completed, and no stop text goes on behind it
        cut = self._give(self._decoder.decode(b"", final=True), may_stop=may_stop)
        self._decoder.reset()
        return cut + self._release(), self._enter(token)

    def finish(self) -> str:
        """The text that was held back, given now because nothing follows."""
        if self.is_stopped:
            return ""
        held, cut = self._release(), self._decoder.decode(b"", final=True)
        self._given.append(cut)
        return held + cut

    def _release(self) -> str:
        """Gives what was held back."""
        held, self._held = self._held, ""
        self._given.append(held)
        return held

    def _enter(self, token: int) -> str | None:
        """Moves between text, call and output; the call's text where it ends."""
        specials = self._specials
        if token == specials.call_end and self._inside == "call":
            self._inside = "text"
            return self._tokenizer.decode_bytes(self._call).decode(errors="replace")
        if token == specials.call_start:
            self._inside, self._call = "call", []
        elif token == specials.output_start:
            self._inside = "output"
        elif token == specials.output_end:
            self._inside = "text"
        return None

    def _give(self, new: str, *, may_stop: bool) -> str:
        """new text minus what must be held back or lies behind a stop text."""
        if not self._stops or not new or not may_stop:
            self._given.append(new)
            return new
        text = self._held + new
        found = [place for place in (text.find(stop) for stop in self._stops) if place >= 0]
        if found:
            self.is_stopped = True
            given, self._held = text[: min(found)], ""
        else:
            num_held = max(_overlap(text, stop) for stop in self._stops)
            given, self._held = text[: len(text) - num_held], text[len(text) - num_held :]
        self._given.append(given)
        return given


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of text that is a start of stop, not the whole of it."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if stop.startswith(text[-size:])), 0)
