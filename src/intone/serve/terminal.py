"""The chat in a terminal: answers appear as they are written, commands change how, Ctrl-C stops one."""

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal, TextIO, TypeVar

from intone.data.chat import Message, Part, render_prompt
from intone.engine.engine import Engine
from intone.engine.requests import Done, Failed, Reason, Request, Token, ToolCall
from intone.engine.rows import Handle
from intone.engine.text import Tokenizer
from intone.errors import EXIT_CHECK_FAILED, EXIT_DONE, EXIT_STOPPED, UserError, unknown_name
from intone.log import say
from intone.settings import ChatSettings

N = TypeVar("N", int, float)

COMMANDS = {
    "/help": "show these commands",
    "/clear": "forget the conversation",
    "/temperature X": "0: always the likeliest word, 1: as varied as the training text",
    "/top-k N": "choose among the N likeliest tokens; none: among all",
    "/quit": "leave (Ctrl-D does the same)",
}


@dataclass
class Answer:
    """What came of one request so far; grows while its events are read. reason None: no end yet."""

    parts: list[Part] = field(default_factory=list)
    reason: Reason | None = None

    @property
    def message(self) -> Message:
        """The turn as the model wrote it, tool calls included, for the next prompt."""
        is_plain = all(part.kind == "text" for part in self.parts)
        return Message("assistant", self.text if is_plain else tuple(self.parts))

    @property
    def text(self) -> str:
        """What a person reads."""
        return "".join(part.text for part in self.parts if part.kind == "text")

    def add(self, kind: Literal["text", "call", "output"], text: str) -> None:
        if self.parts and self.parts[-1].kind == kind == "text":
            text = self.parts.pop().text + text
        self.parts.append(Part(kind, text))


def chat_loop(
    engine: Engine, tokenizer: Tokenizer, *, settings: ChatSettings,
    read: Callable[[str], str] = input, out: TextIO | None = None,
) -> int:  # fmt: skip
    """Talks until /quit or the end of input -> exit code.

    Answers go to out (default: stdout), everything else to stderr. Ctrl-C stops an answer, which stays in the
    conversation as far as it came; a second one at the prompt leaves. read and out may be replaced by tests.
    """
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  arrow keys and history in input(), where the system has it
    chat = _Chat(engine, tokenizer, settings, sys.stdout if out is None else out)
    say("Type a message, or /help. Ctrl-C stops an answer.")
    was_interrupted = False
    while True:
        try:
            line = read("> ").strip()
        except EOFError:
            say()
            return EXIT_DONE
        except KeyboardInterrupt:
            if was_interrupted:
                return EXIT_STOPPED
            was_interrupted = True
            say("\nCtrl-C again, or /quit, to leave")
            continue
        was_interrupted = False
        try:
            if line == "/quit":
                return EXIT_DONE
            if line.startswith("/"):
                chat.obey(line)
            elif line:
                was_interrupted = chat.reply(line)
        except UserError as error:
            say(str(error))
        except RuntimeError as error:
            say(f"the model failed: {error}")
            return EXIT_CHECK_FAILED


def answer_once(engine: Engine, prompt: str, *, settings: ChatSettings, out: TextIO | None = None) -> str:
    """The answer to one message, without a conversation; with out it also appears there as it is written.

    Raises UserError for a prompt that does not fit, RuntimeError where the model fails.
    """
    answer = Answer()
    handle = engine.submit(_request([Message("user", prompt)], settings, turn=0))
    try:
        for text in _streamed(handle, answer):
            _write(out, text)
    except KeyboardInterrupt:
        handle.cancel()
        raise
    _write(out, "\n")
    return answer.text


def piped_prompt(source: TextIO) -> str | None:
    """The text piped into the program, None where source is a terminal. Raises UserError where it is blank."""
    if source.isatty():
        return None
    text = source.read().strip()
    if not text:
        raise UserError("nothing was piped in", value="", fix='give a question: --prompt "..."')
    return text


class _Chat:
    """The conversation so far and the settings that commands change."""

    def __init__(self, engine: Engine, tokenizer: Tokenizer, settings: ChatSettings, out: TextIO) -> None:
        self.engine = engine
        self.tokenizer = tokenizer
        self.settings = settings
        self.out = out
        self.history: list[Message] = []
        self.num_turns = 0

    def obey(self, line: str) -> None:
        """Carries out a command. Raises UserError for one that is unknown or has a wrong value."""
        name, _, value = line.partition(" ")
        known = {command.split()[0] for command in COMMANDS}
        if name not in known:
            raise unknown_name("command", name, known)
        if name == "/help":
            width = max(len(command) for command in COMMANDS)
            say("\n".join(f"{command:<{width}}  {meaning}" for command, meaning in COMMANDS.items()))
        elif name == "/clear":
            self.history = []
            say("forgot the conversation")
        elif name == "/temperature":
            self._change(dataclasses.replace(self.settings, temperature=_number(value, float)))
            say(f"temperature is {self.settings.temperature:g} now")
        elif name == "/top-k":
            top_k = None if value.strip() == "none" else _number(value, int)
            self._change(dataclasses.replace(self.settings, top_k=top_k))
            say(f"top-k is {top_k or 'none'} now")

    def reply(self, text: str) -> bool:
        """Answers a message and remembers both -> whether Ctrl-C stopped the answer.

        Raises UserError where the message does not fit even alone, RuntimeError where the model fails.
        """
        messages = self._fitting([*self.history, Message("user", text)])
        answer = Answer()
        handle = self.engine.submit(_request(messages, self.settings, turn=self.num_turns))
        if num_forgotten := len(self.history) + 1 - len(messages):
            say(f"(forgot the oldest {num_forgotten} messages: the context holds {self.engine.context:,} tokens)")
        was_interrupted = False
        try:
            for piece in _streamed(handle, answer):
                _write(self.out, piece)
        except KeyboardInterrupt:
            handle.cancel()
            was_interrupted = True
        _write(self.out, "\n")
        self.num_turns += 1
        # a question without any answer would leave two messages of the user in a row
        self.history = [*messages, answer.message] if answer.parts else messages[:-1]
        if answer.reason == "length":
            say("(the answer was cut here: it reached --max-tokens or the end of the context)")
        return was_interrupted

    def _change(self, settings: ChatSettings) -> None:
        """Takes new settings if a request may have them. Raises UserError."""
        _request([Message("user", "?")], settings, turn=0)
        self.settings = settings

    def _fitting(self, messages: list[Message]) -> list[Message]:
        """The messages without the oldest turns, as many as must go to leave room for an answer."""
        room = min(self.settings.max_tokens, self.engine.context // 4)
        kept = messages
        while len(kept) > 1 and len(render_prompt(kept, self.tokenizer)) + room > self.engine.context:
            kept = kept[2:]
        return kept


def _number(text: str, kind: Callable[[str], N]) -> N:
    """text as a number of this kind. Raises UserError."""
    try:
        return kind(text)
    except ValueError:
        raise UserError(f"{text.strip()!r} is not a number", value=text, fix="see /help") from None


def _request(messages: list[Message], settings: ChatSettings, *, turn: int) -> Request:
    """The request for the next answer; every turn draws its own numbers from the one seed."""
    tools = ["calculator"] * settings.tools + ["python"] * settings.python
    return Request(
        messages,
        max_tokens=settings.max_tokens,
        temperature=settings.temperature,
        top_k=settings.top_k,
        top_p=1.0 if settings.top_p is None else settings.top_p,
        seed=settings.seed + turn,
        tools=tools,
    )


def _streamed(handle: Handle, answer: Answer) -> Iterator[str]:
    """The readable text of a request of one sample, piece by piece, while answer is filled.

    Raises RuntimeError where the request failed.
    """
    for event in handle:
        if isinstance(event, Token) and event.text:
            answer.add("text", event.text)
            yield event.text
        elif isinstance(event, ToolCall):
            answer.add("call", event.input)
            if event.output is not None:
                answer.add("output", event.output)
        elif isinstance(event, Done):
            answer.reason = event.reason
        elif isinstance(event, Failed):
            raise RuntimeError(str(event.error)) from event.error


def _write(out: TextIO | None, text: str) -> None:
    if out is not None:
        out.write(text)
        out.flush()
