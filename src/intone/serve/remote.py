"""The chat partner behind a URL: any server with OpenAI's API, asked with nothing but the standard library."""

import contextlib
import http.client
import json
import math
import ssl
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote, urlsplit

from intone.data.chat import Message
from intone.errors import UserError, unknown_name
from intone.log import say
from intone.serve.partners import Called, Ended, Forgot, Piece, Said, Waiting, tools_of
from intone.settings import ChatSettings

CONNECT_S = 10.0
SILENCE_S = 180.0  # without a byte; a queue may hold a request for two minutes
BUSY_TRIES = 5
MOST_WAIT_S = 60.0  # for a busy server, whatever it asks for
LOADING_S = 120.0  # a server that has just been started may read its model for so long
LOADING_POLL_S = 0.5


class ServerPartner:
    """A server with OpenAI's API. Asks it at once which models it has.

    url: http(s)://HOST[:PORT], with or without /v1. model None: its first. The key is sent, and never shown.
    No redirect is followed: the key would go to whom the answer names. Raises UserError.
    """

    def __init__(self, url: str, *, api_key: str | None = None, model: str | None = None) -> None:
        self._place = _Place(url)
        self._api_key = api_key
        self._entries: dict[str, Mapping[str, Any]] = {}
        self._look()
        self._model = next(iter(self._entries))
        if model is not None:
            self.use(model)

    @property
    def about(self) -> str:
        return f"{self._model} at {self._place.shown}"

    @property
    def context(self) -> int | None:
        context = self._entries.get(self._model, {}).get("context")
        return context if isinstance(context, int) else None

    @property
    def is_ours(self) -> bool:
        """Whether the server takes what OpenAI's API has no name for: top_k, min_tokens, builtin_tools."""
        return self._entries.get(self._model, {}).get("owned_by") == "intone"

    def check(self, settings: ChatSettings) -> None:
        pass  # the server knows its bounds, and names the field

    def models(self) -> list[str]:
        self._look()
        return list(self._entries)

    def use(self, model: str) -> None:
        self._look()
        if model not in self._entries:
            self._load(model)
        self._model = model

    def _look(self) -> None:
        data = self._models().get("data")
        names = [entry for entry in data or () if isinstance(entry, dict) and isinstance(entry.get("id"), str)]
        if not names:
            raise UserError(f"{self._place.shown} names no model", value=self._place.shown)
        self._entries = {entry["id"]: entry for entry in names}

    def _models(self) -> dict[str, Any]:
        """The server's list of models; one that is still loading its model is waited for."""
        deadline_s = time.monotonic() + LOADING_S
        is_said = False
        while True:
            try:
                return self._json("GET", "/v1/models")
            except _Loading:
                if time.monotonic() > deadline_s:
                    raise
                if not is_said:
                    say(f"{self._place.shown} is loading its model; waiting (Ctrl-C gives up)")
                    is_said = True
                time.sleep(LOADING_POLL_S)

    def _load(self, model: str) -> None:
        """Has an intone server load a run that it does not hold yet. Raises UserError where that cannot be."""
        run, _, stage = model.partition("/")
        if not any(entry.get("owned_by") == "intone" for entry in self._entries.values()):
            raise unknown_name("model", model, self._entries)
        query = f"?stage={quote(stage, safe='')}" if stage else ""
        loaded = self._json("POST", f"/api/runs/{quote(run, safe='')}/load{query}").get("model")
        self._look()
        if loaded not in self._entries:
            raise unknown_name("model", model, self._entries)
        self._entries[model] = self._entries[str(loaded)]

    def answer(self, messages: Sequence[Message], settings: ChatSettings, *, seed: int) -> Generator[Piece, None, None]:
        rows = [row for message in messages for row in as_openai(message)]
        num_forgotten = 0
        begins = [index for index, row in enumerate(rows) if row["role"] == "user"]
        while True:
            try:
                for piece in self._patiently(self._body(rows, settings, seed)):
                    if num_forgotten:
                        yield Forgot(num_forgotten)
                        num_forgotten = 0
                    yield piece
                return
            except _ContextFull:
                if len(begins) < 2:
                    raise
                del rows[begins[0] : begins[1]]
                begins = [index for index, row in enumerate(rows) if row["role"] == "user"]
                num_forgotten += 2

    def _patiently(self, body: Mapping[str, Any]) -> Iterator[Piece]:
        """The answer, asked for again while the server is busy."""
        for tries_left in reversed(range(BUSY_TRIES)):
            try:
                yield from self._streamed(body)
                return
            except _Busy as busy:
                if not tries_left:
                    raise
                yield Waiting(f"the server is busy; trying again in {busy.wait_s:g} s (Ctrl-C gives up)")
                time.sleep(busy.wait_s)  # as long as the server asked

    def _body(self, rows: list[dict[str, Any]], settings: ChatSettings, seed: int) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self._entries.get(self._model, {}).get("id", self._model),
            "messages": rows,
            "max_tokens": settings.max_tokens,
            "temperature": settings.temperature,
            "seed": seed,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if settings.top_p is not None:
            body["top_p"] = settings.top_p
        if self.is_ours:
            extra = {"top_k": settings.top_k, "min_tokens": settings.min_tokens, "builtin_tools": tools_of(settings)}
            return {**body, **extra}
        return body

    def _streamed(self, body: Mapping[str, Any]) -> Iterator[Piece]:
        reason, num_tokens = None, None
        calls: dict[str, Mapping[str, Any]] = {}
        with self._asked("POST", "/v1/chat/completions", body) as response:
            for chunk in _chunks(response):
                usage, choices = chunk.get("usage"), chunk.get("choices") or ()
                if usage:
                    num_tokens = usage.get("completion_tokens")
                for choice in choices:
                    delta = choice.get("delta") or {}
                    for call in delta.get("tool_calls") or ():
                        calls[call.get("id", "")] = call.get("function") or {}
                    for output in delta.get("tool_messages") or ():
                        function = calls.get(output.get("tool_call_id", ""), {})
                        yield Called(output.get("name") or "tool", _input_of(function), output.get("content"))
                    if text := delta.get("content"):
                        yield Said(text)
                    reason = choice.get("finish_reason") or reason
        yield Ended(reason or "stop", num_tokens)

    def _json(self, method: str, path: str) -> dict[str, Any]:
        with self._asked(method, path) as response:
            try:
                value = json.loads(response.read())
            except ValueError:
                value = None
        if not isinstance(value, dict):
            raise UserError(
                f"{self._place.shown} does not answer as OpenAI's API does", value=self._place.shown,
                fix="give the address that intone serve prints",
            )  # fmt: skip
        return value

    @contextlib.contextmanager
    def _asked(
        self, method: str, path: str, body: Mapping[str, Any] | None = None
    ) -> Iterator[http.client.HTTPResponse]:
        """The response to one request, on a connection of its own. Raises UserError with what the server says."""
        headers = {"Accept": "application/json", "Content-Type": "application/json"}
        if self._api_key:
            headers["Authorization"] = f"Bearer {self._api_key}"
        connection = self._place.connection()
        try:
            try:
                connection.connect()
                connection.sock.settimeout(SILENCE_S)
                data = None if body is None else json.dumps(body).encode()
                connection.request(method, self._place.path + path, data, headers)
                response = connection.getresponse()
            except (OSError, http.client.HTTPException) as error:
                raise self._place.unreachable(error) from None
            if response.status != 200:
                raise _refusal(response, self._place.shown, has_key=bool(self._api_key))
            try:
                yield response
            except (OSError, http.client.HTTPException) as error:
                raise UserError(
                    f"the connection to {self._place.shown} broke: {_words(error)}", value=self._place.shown,
                    fix="ask again with /retry",
                ) from None  # fmt: skip
        finally:
            connection.close()


class _Busy(UserError):
    """The server is full."""

    def __init__(self, message: str, wait_s: float) -> None:
        super().__init__(message, fix="ask again later")
        self.wait_s = wait_s


class _Loading(UserError):
    """The server has no model yet, and will have one soon."""


class _ContextFull(UserError):
    """The conversation is longer than the model sees."""


class _Place:
    """Where a server is. Raises UserError for what is no such address."""

    def __init__(self, url: str) -> None:
        fix = "for example http://127.0.0.1:8000"
        parts = urlsplit(url.strip())
        try:
            port = parts.port
        except ValueError:
            raise UserError(f"--url {url} has no port that could be", value=url, fix=fix) from None
        if parts.username or parts.password:
            raise UserError("--url holds a name or password", fix="give the key as INTONE_API_KEY or --api-key")
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise UserError(f"--url {url!r} is no address of a server", value=url, fix=fix)
        self.path = parts.path.rstrip("/").removesuffix("/v1")
        self.shown = f"{parts.scheme}://{parts.netloc}{self.path}"
        self._host, self._port, self._is_safe = parts.hostname, port, parts.scheme == "https"

    def connection(self) -> http.client.HTTPConnection:
        if self._is_safe:
            context = ssl.create_default_context()
            return http.client.HTTPSConnection(self._host, self._port, timeout=CONNECT_S, context=context)
        return http.client.HTTPConnection(self._host, self._port, timeout=CONNECT_S)

    def unreachable(self, error: Exception) -> UserError:
        return UserError(
            f"no answer from {self.shown}: {_words(error)}", value=self.shown,
            fix="start a server with intone serve, or check the address",
        )  # fmt: skip


def _words(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "it took too long"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def _refusal(response: http.client.HTTPResponse, shown: str, *, has_key: bool) -> UserError:
    """What a server's refusal means for the person."""
    try:
        found = json.loads(response.read(1 << 20))
    except (ValueError, OSError, http.client.HTTPException):
        found = None
    error = found.get("error") if isinstance(found, dict) else None
    error = error if isinstance(error, dict) else {}
    message = str(error.get("message") or f"status {response.status} ({response.reason})")
    if response.status == 401:
        what = "does not accept this key" if has_key else "asks for a key"
        return UserError(f"{shown} {what}", fix="set INTONE_API_KEY, or give --api-key")
    if response.status == 429:
        return _Busy(f"the server is busy: {message}", _wait_s(response.headers.get("Retry-After")))
    if response.status == 503 and error.get("code") == "loading":
        return _Loading(f"the server refused: {message}", fix="ask again when it says that it is ready")
    if error.get("code") == "context_length_exceeded":
        return _ContextFull(message, fix="shorten it, or begin anew with /new")
    if 300 <= response.status < 400:
        return UserError(f"{shown} sends on to another address", fix="give that address as --url")
    if response.status >= 500 and response.status != 503:
        return UserError(f"the server failed: {message}", fix="its log says more")
    return UserError(f"the server refused: {message}", value=error.get("param"))


def _wait_s(text: str | None) -> float:
    try:
        wait_s = float(text or "")
    except ValueError:
        return 1.0
    return min(max(wait_s, 0.0), MOST_WAIT_S) if math.isfinite(wait_s) else 1.0


def _chunks(response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    """The objects of a stream of server-sent events. Raises UserError for an error in it, or where it breaks off."""
    for line in response:
        if not line.startswith(b"data:"):
            continue
        data = line[5:].strip()
        if data == b"[DONE]":
            return
        try:
            chunk = json.loads(data)
        except ValueError:
            chunk = None
        if not isinstance(chunk, dict):
            raise UserError("the server sent what is no answer", fix="is it a server with OpenAI's API?")
        if error := chunk.get("error"):
            words = error.get("message") if isinstance(error, dict) else error
            raise UserError(f"the server broke the answer off: {words}", fix="ask again with /retry")
        yield chunk
    raise UserError("the server broke the answer off", fix="ask again with /retry")


def _input_of(function: Mapping[str, Any]) -> str:
    text = str(function.get("arguments") or "")
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value["input"] if isinstance(value, dict) and isinstance(value.get("input"), str) else text


def as_openai(message: Message) -> list[dict[str, Any]]:
    """A turn as OpenAI messages: one with tools becomes several."""
    if isinstance(message.content, str):
        return [{"role": message.role, "content": message.content}]
    rows: list[dict[str, Any]] = []
    calls = 0
    for part in message.content:
        if part.kind == "output":
            rows.append({"role": "tool", "tool_call_id": f"call_{calls - 1}", "content": part.text})
            continue
        if not rows or rows[-1]["role"] == "tool" or (part.kind == "text" and "tool_calls" in rows[-1]):
            rows.append({"role": "assistant", "content": ""})
        if part.kind == "text":
            rows[-1]["content"] += part.text
        else:
            function = {"name": "calculator", "arguments": json.dumps({"input": part.text}, ensure_ascii=False)}
            called = {"id": f"call_{calls}", "type": "function", "function": function}
            rows[-1].setdefault("tool_calls", []).append(called)
            calls += 1
    return rows
