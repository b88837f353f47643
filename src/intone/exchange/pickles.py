"""Reads the one pickle that comes with a nanochat checkpoint, its tokenizer, without running what a pickle can run.

A pickle is a program: its REDUCE calls anything it names. Here the words of the program are read one by one by an
interpreter that knows no call at all: plain values, dictionaries, and the making of one tiktoken Encoding, of which
only the arguments are kept. Nothing is imported and no object of a foreign class is ever made.
"""

import io
import pickletools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from intone.errors import Damaged, UserError
from intone.log import human_bytes

ENCODING = "tiktoken.core.Encoding"
LARGEST_BYTES = 64 * 2**20  # nanochat's largest, 65,536 entries, has 1.1 MB; forty times that is none
STATE_KEYS = ("name", "pat_str", "mergeable_ranks", "special_tokens")
FIX = "do not open this file with other programs either; ask its author for the tokenizer as tokenizer.json"

VALUES = {
    "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8",
    "BININT", "BININT1", "BININT2", "LONG1", "LONG4",
}  # fmt: skip
SILENT = {"PROTO", "FRAME"}  # say how the rest is written, which pickletools has dealt with
PUTS, GETS = {"BINPUT", "LONG_BINPUT"}, {"BINGET", "LONG_BINGET"}


@dataclass(frozen=True)
class PickledEncoding:
    """The arguments of a tiktoken Encoding, checked for kind: text, bytes and whole numbers only."""

    pattern: str
    ranks: dict[bytes, int]
    specials: dict[str, int]


class Blank:
    """Stands for the Encoding that the pickle makes; carries its state once BUILD has given it one."""

    state: Any = None


THE_CLASS = object()  # stands for the class Encoding itself, which is never touched


class Interpreter:
    """The stack machine of a pickle, for the words that a tokenizer needs. Every other word raises."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}  # a dictionary: an index of 2**31 costs one entry, not an array of that size

    def run(self, content: bytes) -> Any:
        """The object that the pickle leaves. Raises UserError for a forbidden word, Damaged for a broken pickle."""
        try:
            for word, argument, _ in pickletools.genops(io.BytesIO(content)):
                if word.name == "STOP":
                    return self.stack.pop()
                self.do(word.name, argument)
        except UserError:
            raise
        except (ValueError, IndexError, KeyError, OverflowError, UnicodeError) as error:
            raise self.damaged(f"{type(error).__name__}: {error}") from None
        raise self.damaged("it has no end")

    def do(self, word: str, argument: Any) -> None:
        """One word of the program."""
        stack = self.stack
        if word in VALUES:
            stack.append(argument)
        elif word in SILENT:
            pass
        elif word == "EMPTY_DICT":
            stack.append({})
        elif word == "EMPTY_TUPLE":
            stack.append(())
        elif word == "MARK":
            self.marks.append(len(stack))
        elif word == "SETITEM":
            value, key = stack.pop(), stack.pop()
            self.put([(key, value)])
        elif word == "SETITEMS":
            first = self.marks.pop()
            items, stack[first:] = stack[first:], []
            self.put(list(zip(items[::2], items[1::2], strict=True)))
        elif word == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif word in PUTS:
            self.memo[argument] = stack[-1]
        elif word in GETS:
            stack.append(self.memo[argument])
        elif word in ("GLOBAL", "INST"):
            self.name(argument.replace(" ", "."), is_call=word == "INST")
        elif word == "STACK_GLOBAL":
            last, module = stack.pop(), stack.pop()
            if not isinstance(last, str) or not isinstance(module, str):
                self.refuse("it asks for a global whose name is no text")
            self.name(f"{module}.{last}", is_call=False)
        elif word == "NEWOBJ":
            arguments, what = stack.pop(), stack.pop()
            if what is not THE_CLASS or arguments != ():
                self.refuse(f"it makes a {type(what).__name__} with arguments")
            stack.append(Blank())
        elif word == "BUILD":
            state, target = stack.pop(), stack[-1]
            if not isinstance(target, Blank) or target.state is not None:
                self.refuse("it gives a state to something that is no new tokenizer")
            target.state = state
        else:
            self.refuse(f"its word {word} can call code, or makes something that no tokenizer has")

    def put(self, items: list[tuple[Any, Any]]) -> None:
        """Fills the dictionary on top of the stack."""
        target = self.stack[-1]
        if not isinstance(target, dict) or not all(isinstance(key, (str, bytes)) for key, _ in items):
            self.refuse("it sets items of something that is no dictionary of text or bytes")
        target.update(items)

    def name(self, name: str, *, is_call: bool) -> None:
        """A global that the pickle asks for: the Encoding, as a mere name, or an error that says which one."""
        if name not in (ENCODING, "tiktoken.Encoding") or is_call:
            self.refuse(f"it asks for {name[:200]}; a tokenizer needs {ENCODING} and nothing else")
        self.stack.append(THE_CLASS)

    def refuse(self, why: str) -> NoReturn:
        raise UserError(f"{self.path} is not only a tokenizer: {why}", value=str(self.path), fix=FIX)

    def damaged(self, why: str) -> Damaged:
        return Damaged(
            f"{self.path} is not a whole pickle of a tokenizer ({why})",
            value=str(self.path),
            fix="copy it again from where nanochat wrote it (~/.cache/nanochat/tokenizer/tokenizer.pkl)",
        )


def read_encoding(path: Path) -> PickledEncoding:
    """The tokenizer in nanochat's tokenizer.pkl.

    Raises UserError where the pickle holds anything else (the name of what it asks for is in the message) and where
    it only names a published encoding, Damaged where it is cut off or no pickle.
    """
    size = path.stat().st_size
    if size > LARGEST_BYTES:
        raise UserError(
            f"{path} has {human_bytes(size)}, a tokenizer has at most {human_bytes(LARGEST_BYTES)}",
            value=size,
            fix="name the tokenizer.pkl that nanochat wrote",
        )
    interpreter = Interpreter(path)
    made = interpreter.run(path.read_bytes())
    if not isinstance(made, Blank) or made.state is None:
        interpreter.refuse(f"it holds a {type(made).__name__} where an Encoding is expected")
    if isinstance(made.state, str):
        raise UserError(
            f"{path} only names tiktoken's encoding {made.state!r}, which lacks nanochat's special tokens",
            value=made.state,
            fix="name the tokenizer that this checkpoint was trained with: --tokenizer PATH",
        )
    return _checked(interpreter, made.state)


def _checked(interpreter: Interpreter, state: Any) -> PickledEncoding:
    """The state of an Encoding with every kind checked; a rank is no bool and no other thing that counts."""
    if not isinstance(state, dict) or set(state) != set(STATE_KEYS):
        keys = sorted(map(str, state)) if isinstance(state, dict) else type(state).__name__
        interpreter.refuse(f"the state of its Encoding is {keys}, not {sorted(STATE_KEYS)}")
    pattern, ranks, specials = (state[key] for key in STATE_KEYS[1:])
    if not isinstance(pattern, str):
        interpreter.refuse(f"its pattern is a {type(pattern).__name__}")
    for name, table, kind in (("mergeable_ranks", ranks, bytes), ("special_tokens", specials, str)):
        if not isinstance(table, dict):
            interpreter.refuse(f"its {name} are a {type(table).__name__}")
        if not all(type(key) is kind and type(value) is int for key, value in table.items()):
            interpreter.refuse(f"its {name} are not all {kind.__name__} with a whole number")
    return PickledEncoding(pattern, ranks, specials)
