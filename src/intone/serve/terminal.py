"""The chat in a terminal: answers appear as they are written, commands change how, Ctrl-C stops one."""

import contextlib
import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from intone.data.chat import Message
from intone.errors import EXIT_CHECK_FAILED, EXIT_DONE, EXIT_STOPPED, UserError, unknown_name
from intone.fields import shown
from intone.log import say
from intone.paths import home, write_atomic
from intone.serve.partners import Answer, Called, Forgot, Partner, Piece, Said, Waiting
from intone.serve.remote import as_openai
from intone.settings import ChatSettings

COMMANDS = {
    "/help": "show these commands",
    "/new": "forget the conversation",
    "/retry": "answer the last message again, with other random numbers",
    "/system [TEXT]": "what stands before the first message; without a text: nothing",
    "/set [NAME VALUE]": "change a setting of answers; without a name: show them",
    "/model [NAME]": "answer by another model of the server; without a name: show them",
    "/save FILE": "write the conversation as JSON",
    "/quit": "leave (Ctrl-D does the same)",
}
CHANGEABLE = ("temperature", "top_k", "top_p", "max_tokens", "min_tokens", "seed", "tools", "python")
FENCE = '"""'
NUM_REMEMBERED = 1000  # lines of the prompt's history


def chat_loop(
    partner: Partner, *, settings: ChatSettings, read: Callable[[str], str] = input, out: TextIO | None = None
) -> int:
    """Talks until /quit or the end of input -> exit code.

    Answers go to out (default: stdout), everything else to stderr. Ctrl-C stops an answer, which stays in the
    conversation as far as it came; a second one at the prompt leaves. read and out may be replaced by tests.
    """
    chat = _Chat(partner, settings, sys.stdout if out is None else out)
    say(f'Talking to {partner.about}. Type a message, or /help; {FENCE} begins and ends one of many lines.')
    say("Ctrl-C stops an answer.")
    was_interrupted = False
    while True:
        try:
            line = _message(read)
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
                was_interrupted = chat.obey(line)
            elif line:
                was_interrupted = chat.reply(line)
        except UserError as error:
            say(str(error))
        except RuntimeError as error:
            say(f"the model failed: {error}")
            return EXIT_CHECK_FAILED


def _message(read: Callable[[str], str]) -> str:
    """What a person types: a line, lines that end in a backslash, or lines between two fences."""
    line = read("> ")
    if line.strip().startswith(FENCE):
        lines = [line.strip().removeprefix(FENCE)]
        while not lines[-1].rstrip().endswith(FENCE):
            lines.append(read(". "))
        lines[-1] = lines[-1].rstrip().removesuffix(FENCE)
        return "\n".join(lines).strip()
    while line.endswith("\\"):
        line = line[:-1] + "\n" + read(". ")
    return line.strip()


@contextlib.contextmanager
def line_editing() -> Iterator[None]:
    """Arrow keys and the lines of earlier chats in input(), where the system has readline."""
    try:
        import readline
    except ImportError:
        yield
        return
    path = home() / "chat_history"
    with contextlib.suppress(OSError):
        readline.read_history_file(path)
    readline.set_history_length(NUM_REMEMBERED)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(mode=0o600)
            readline.write_history_file(path)


def answer_once(partner: Partner, prompt: str, *, settings: ChatSettings, out: TextIO | None = None) -> str:
    """The answer to one message, without a conversation; with out it also appears there as it is written.

    Raises UserError for a prompt that does not fit, RuntimeError where the model fails.
    """
    answer = Answer()
    messages = _with_system([Message("user", prompt)], settings)
    with contextlib.closing(partner.answer(messages, settings, seed=settings.seed)) as pieces:
        for piece in pieces:
            answer.take(piece)
            _show(piece, out)
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

    def __init__(self, partner: Partner, settings: ChatSettings, out: TextIO) -> None:
        self.partner = partner
        self.settings = settings
        self.out = out
        self.history: list[Message] = []
        self.num_turns = 0

    def obey(self, line: str) -> bool:
        """Carries out a command -> whether Ctrl-C stopped it. Raises UserError for an unknown one or a wrong value."""
        name, _, value = line.partition(" ")
        value = value.strip()
        known = {command.split()[0]: command for command in COMMANDS}
        if name not in known:
            raise unknown_name("command", name, known)
        if value and known[name] == name:
            raise UserError(f"{name} stands alone, without {value!r}", value=value, fix="see /help")
        if name == "/retry":
            return self.retry()
        if name == "/help":
            width = max(len(command) for command in COMMANDS)
            say("\n".join(f"{command:<{width}}  {meaning}" for command, meaning in COMMANDS.items()))
        elif name == "/new":
            self.history = []
            say("forgot the conversation")
        elif name == "/system":
            self._change(system=value or None)
            say("it stands before the first message now" if value else "nothing stands before the first message now")
        elif name == "/set":
            self.set(value)
        elif name == "/model":
            self.model(value)
        elif name == "/save":
            self.save(value)
        return False

    def reply(self, text: str) -> bool:
        """Answers a message and remembers both -> whether Ctrl-C stopped the answer.

        Raises UserError where the message does not fit even alone, RuntimeError where the model fails.
        """
        turns = [*self.history, Message("user", text)]
        answer, calls, num_forgotten, was_interrupted = Answer(), list[Called](), 0, False
        # every turn draws its own numbers from the one seed
        pieces = self.partner.answer(
            _with_system(turns, self.settings), self.settings, seed=self.settings.seed + self.num_turns
        )
        try:
            with contextlib.closing(pieces):
                for piece in pieces:
                    answer.take(piece)
                    if isinstance(piece, Called):
                        calls.append(piece)
                    elif isinstance(piece, Forgot):
                        num_forgotten = piece.num_messages
                        self._say_forgotten(num_forgotten)
                    _show(piece, self.out)
        except KeyboardInterrupt:
            was_interrupted = True
        except UserError as error:
            if not answer.parts:
                raise
            _write(self.out, "\n")  # what came of the answer stays
            say(str(error))
        else:
            _write(self.out, "\n")
        if was_interrupted:
            _write(self.out, "\n")
        self.num_turns += 1
        kept = turns[num_forgotten:]
        # a question without any answer would leave two messages of the user in a row
        self.history = [*kept, answer.message] if answer.parts else kept[:-1]
        for call in calls:
            say(f"({call.name}: {call.input} = {'refused' if call.output is None else call.output})")
        if answer.reason == "length":
            say("(the answer was cut here: it reached --max-tokens or the end of the context)")
        return was_interrupted

    def _say_forgotten(self, num_messages: int) -> None:
        context = self.partner.context
        holds = f": the context holds {context:,} tokens" if context is not None else ""
        say(f"(forgot the oldest {num_messages} messages{holds})")

    def retry(self) -> bool:
        """Answers the last message anew -> whether Ctrl-C stopped it. Raises UserError where there is none."""
        if not self.history:
            raise UserError("there is nothing to answer again", fix="type a message")
        before, num_before = self.history, len(self.history)
        self.history = before[:-2]
        try:
            return self.reply(before[-2].visible)
        finally:
            if len(self.history) < num_before and (not self.history or self.history[-1] in before):
                self.history = before  # nothing new came

    def set(self, words: str) -> None:
        """Changes a setting, or shows them. Raises UserError."""
        name, _, text = words.partition(" ")
        if not name:
            rows = [f"{_spelled(entry):<12} {shown(getattr(self.settings, entry))}" for entry in CHANGEABLE]
            say("\n".join(rows))
            return
        field = name.removeprefix("--").replace("-", "_")
        if field not in CHANGEABLE:
            raise unknown_name("setting", name, map(_spelled, CHANGEABLE))
        self._change(**{field: _value(field, text.strip())})
        say(f"{name} is {shown(getattr(self.settings, field))} now")

    def model(self, name: str) -> None:
        """Talks to another model, or shows which there are. Raises UserError."""
        if name:
            self.partner.use(name)
            say(f"talking to {self.partner.about} now")
        else:
            say("\n".join([f"talking to {self.partner.about}", *self.partner.models()]))

    def save(self, path: str) -> None:
        """Writes the conversation. Raises UserError where there is none, or the file is there already."""
        if not path:
            raise UserError("/save needs the name of a file", fix="for example /save talk.json")
        place = Path(path).expanduser()
        if place.exists():
            raise UserError(f"{place} exists already", value=str(place), fix="choose another name")
        turns = _with_system(self.history, self.settings)
        rows = [row for message in turns for row in as_openai(message)]
        content = {"format": 1, "kind": "intone conversation", "model": self.partner.about, "messages": rows}
        write_atomic(place, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        say(f"saved {len(rows)} messages to {place}")

    def _change(self, **changes: Any) -> None:
        """Takes new settings if a request may have them. Raises UserError."""
        settings = dataclasses.replace(self.settings, **changes)
        self.partner.check(settings)
        self.settings = settings


def _with_system(turns: list[Message], settings: ChatSettings) -> list[Message]:
    return [*([Message("system", settings.system)] if settings.system else []), *turns]


def _value(field: str, text: str) -> Any:
    """A typed value as the setting takes it. Raises UserError."""
    if field in ("tools", "python"):
        words = {"yes": True, "on": True, "no": False, "off": False}
        if text not in words:
            raise UserError(f"{text!r} is neither yes nor no", value=text, fix=f"/set {field} yes")
        return words[text]
    if text == "none" and field in ("top_k", "top_p"):
        return None
    kind = int if field in ("top_k", "max_tokens", "min_tokens", "seed") else float
    try:
        return kind(text)
    except ValueError:
        what = "a whole number" if kind is int else "a number"
        raise UserError(f"{text!r} is not {what}", value=text, fix=f"for example /set {_spelled(field)} 1") from None


def _spelled(field: str) -> str:
    return field.replace("_", "-")


def _show(piece: Piece, out: TextIO | None) -> None:
    if isinstance(piece, Said):
        _write(out, piece.text)
    elif isinstance(piece, Waiting):
        say(f"({piece.words})")


def _write(out: TextIO | None, text: str) -> None:
    if out is not None:
        out.write(text)
        out.flush()
