"""Answers of a given form: which tokens may come next so that the text matches a regex, a list or a JSON schema."""

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from intone.data.chat import SPECIALS
from intone.engine.text import Specials, Tokenizer
from intone.errors import UserError, unknown_name

KINDS = ("regex", "choice", "json_schema")
# compiled forms that are kept: a server asks for the same few again and again (guess)
MAX_KEPT = 64
# between the words of JSON one blank or none: a weak model that may write more of them writes them for ever
JSON_STYLE = {"whitespace_pattern": " ?"}


@dataclass(frozen=True)
class Form:
    """What a text has to look like, in a shape that can be compared: see parse_form()."""

    kind: str
    text: str


class FormFailed(RuntimeError):
    """A form that compiled turned out to be too complex on the way."""


def parse_form(value: Mapping[str, Any]) -> Form:
    """{"regex": R}, {"choice": [TEXT, ...]} or {"json_schema": S} -> a form. Needs no library and compiles nothing.

    A regex has the syntax of Rust's regex crate and must match the whole text. A schema is an object, true, or JSON
    text of these. Raises UserError for anything else.
    """
    if not isinstance(value, Mapping) or len(value) != 1:
        raise UserError(
            f"structured must be an object with one of {', '.join(KINDS)}, not {value!r}",
            value=repr(value),
            fix='for example {"regex": "[0-9]+"}',
        )
    ((kind, content),) = value.items()
    if kind == "regex":
        return Form(kind, _text(content))
    if kind == "choice":
        if not isinstance(content, list | tuple) or not content:
            raise UserError("a choice must be a list of one text or more", value=repr(content))
        return Form(kind, json.dumps([_text(text) for text in content]))
    if kind == "json_schema":
        return Form(kind, _schema_text(content))
    raise unknown_name("form", kind, KINDS)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise UserError(f"{value!r} must be text, it is a {type(value).__name__}", value=repr(value))
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UserError(f"{value!r} is not Unicode text: it has half a surrogate pair", value=repr(value)) from None
    return value


def _schema_text(schema: Any) -> str:
    try:
        if isinstance(schema, str):
            schema = json.loads(schema)
        if schema is True:
            schema = {}
        if not isinstance(schema, dict):
            raise ValueError("false allows nothing" if schema is False else f"it is a {type(schema).__name__}")
        return json.dumps(schema, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UserError(f"json_schema is not a JSON schema: {error}", value=repr(schema)) from None


class Matcher:
    """Follows one growing text and knows which tokens may come next. For one thread; the masks are made in another."""

    def __init__(self, follower: Any, vocab_size: int, helper: ThreadPoolExecutor) -> None:
        self._follower = follower
        self._vocab_size = vocab_size
        self._helper = helper
        self._next: Future[np.ndarray] | None = None

    @property
    def is_complete(self) -> bool:
        """Whether the text has its form and no token can follow. Waits for a mask that is being made."""
        self._wait()
        return bool(self._follower.is_stopped())

    @property
    def is_ready(self) -> bool:
        """Whether mask() will not wait."""
        return self._next is not None and self._next.done()

    def prepare(self) -> None:
        """Begins to make the mask of the next token in the helper's thread; harmless when called twice."""
        if self._next is None:
            self._next = self._helper.submit(self._made)

    def mask(self) -> np.ndarray:
        """(V,) bool: tokens that may come next; tokens that end an answer where the text may end here.

        Waits for the helper. Raises FormFailed where the form is too complex to follow.
        """
        self.prepare()
        assert self._next is not None, "prepared"
        return self._next.result()

    def accept(self, token: int) -> None:
        """Goes on by a token that mask() allowed. Raises ValueError for any other."""
        if not self.mask()[token]:
            raise ValueError(f"token {token} does not fit the form")
        self._next = None
        self._follower.consume_token(token)

    def _wait(self) -> None:
        if self._next is not None:
            self._next.exception()

    def _made(self) -> np.ndarray:
        packed = np.frombuffer(self._follower.compute_bitmask(), dtype=np.uint8)
        if self._follower.is_error():
            raise FormFailed(f"the form of the answer is too complex: {_problem(self._follower.get_error())}")
        return np.unpackbits(packed, count=self._vocab_size, bitorder="little").view(np.bool_)


class Grammar:
    """A compiled form. Safe to use from several threads."""

    def __init__(self, compiled: Any, vocab_size: int, helper: ThreadPoolExecutor) -> None:
        self._compiled = compiled
        self._vocab_size = vocab_size
        self._helper = helper

    def matcher(self) -> Matcher:
        """A matcher at the start of a text; takes microseconds."""
        return Matcher(self._compiled.deep_copy(), self._vocab_size, self._helper)


class Forms:
    """Compiles forms for one tokenizer and keeps them. Safe to use from several threads; close it after use."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._library_tokenizer: Any = None
        self._grammars: OrderedDict[Form, Grammar] = OrderedDict()
        self._lock = threading.Lock()
        self._helper = ThreadPoolExecutor(1, thread_name_prefix="intone-masks")

    def grammar(self, form: Form) -> Grammar:
        """The form, compiled or from memory. Raises UserError that says what is wrong with it."""
        with self._lock:
            if form not in self._grammars:
                self._grammars[form] = Grammar(self._compiled(form), self._tokenizer.vocab_size, self._helper)
            self._grammars.move_to_end(form)
            if len(self._grammars) > MAX_KEPT:
                self._grammars.popitem(last=False)
            return self._grammars[form]

    def close(self) -> None:
        """Ends the helper's thread; harmless when called twice."""
        self._helper.shutdown(cancel_futures=True)

    def _compiled(self, form: Form) -> Any:
        library = _library()
        if self._library_tokenizer is None:
            self._library_tokenizer = _library_tokenizer(library, self._tokenizer)
        if form.kind == "json_schema":
            grammar = library.LLMatcher.grammar_from_json_schema(form.text, defaults=JSON_STYLE)
        else:
            grammar = library.grammar_from(form.kind, form.text)
        compiled = library.LLMatcher(self._library_tokenizer, grammar, log_level=0)
        if compiled.is_error():
            raise UserError(
                f"this {form.kind.replace('_', ' ')} cannot be used: {_problem(compiled.get_error())}", value=form.text
            )
        return compiled


def _library() -> Any:
    """llguidance, imported when the first answer of a given form is asked for."""
    try:
        import llguidance
    except ImportError:
        raise UserError(
            "answers of a given form need the package llguidance", value="llguidance", fix="pip install llguidance"
        ) from None
    return llguidance


def _library_tokenizer(library: Any, tokenizer: Tokenizer) -> Any:
    specials = Specials.of(tokenizer)

    class Wrapper:
        """Our tokenizer as the library wants to see it."""

        is_tokenizer_wrapper = True
        bos_token_id = tokenizer.bos
        eos_token_id = tokenizer.special("<|assistant_end|>")
        special_token_ids = [tokenizer.special(name) for name in SPECIALS]
        tokens = [tokenizer.decode_bytes([token]) for token in range(tokenizer.vocab_size)]

        def __call__(self, text: str) -> list[int]:
            return tokenizer.encode(text)

    return library.LLTokenizer(Wrapper(), eos_token=sorted(specials.ends))


def _problem(message: str) -> str:
    """The library's words without its drawings of the place: one line."""
    if explained := re.search(r"^error: (.+)$", message, re.MULTILINE):
        return explained[1]
    return re.sub(r"^at \d+\(\d+\): ", "", message.strip()).splitlines()[0]
