"""What clients may do to a server, each with the status that is right; drawn from a seed and its OpenAPI document."""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

MAX_BODY_BYTES = 1 << 18  # of the server that is asked
ROUTES = {"/v1/chat/completions": "ChatBody", "/v1/completions": "CompletionBody"}
LEFT = "left"  # instead of a status, where a client did not wait for one


@dataclass(frozen=True)
class Case:
    """One thing that a client does. expected: statuses that are right; LEFT: it did not wait for one."""

    name: str
    content: bytes
    expected: tuple[int | str, ...]
    then: str = "read"  # read | leave | crawl | half: what it does after sending
    leave_after: int = 0  # bytes it reads before it leaves


class Cases:
    """Draws cases from a seed. Fields and their kinds come from the server's own OpenAPI document."""

    def __init__(self, document: dict[str, Any], seed: int) -> None:
        self._draw = random.Random(seed)
        self._schemas = document["components"]["schemas"]
        self._kinds: list[tuple[float, Callable[[], Case]]] = [
            (30, self._good), (8, self._good_stream), (18, self._wrong_kind), (6, self._unknown_field),
            (6, self._not_json), (4, self._huge_number), (4, self._elsewhere), (3, self._too_large), (3, self._no_http),
            (6, self._leaves), (4, self._half_a_body), (3, self._nested), (2, self._bad_form), (0.1, self._crawls),
        ]  # fmt: skip

    def next(self) -> Case:
        """The next case."""
        shares, kinds = zip(*self._kinds, strict=True)
        return self._draw.choices(kinds, shares)[0]()

    def chat(self, **fields: Any) -> dict[str, Any]:
        """A good body."""
        text = "".join(self._draw.choices('abc äß漢😀\n"\\', k=self._draw.randrange(1, 40)))
        body = {"messages": [{"role": "user", "content": text}], "max_tokens": self._draw.randrange(1, 6)}
        return {**body, **fields}

    def completion(self, **fields: Any) -> dict[str, Any]:
        prompts: list[Any] = ["one", ["one", "two"], [1, 2, 3], [[1], [2, 3]]]
        return {"prompt": self._draw.choice(prompts), "max_tokens": self._draw.randrange(1, 6), **fields}

    def _body(self) -> tuple[str, dict[str, Any]]:
        if self._draw.random() < 0.7:
            return "/v1/chat/completions", self.chat()
        return "/v1/completions", self.completion()

    def _options(self) -> dict[str, Any]:
        draw = self._draw
        options = {
            "temperature": draw.choice([0, 0.5, 2]), "top_p": draw.choice([0.1, 1]), "top_k": draw.choice([1, 5, None]),
            "seed": draw.choice([0, -1, 2**63 - 1]), "n": draw.choice([1, 2]), "stop": draw.choice(["x", ["a"], None]),
            "presence_penalty": draw.choice([-2, 2]), "frequency_penalty": 0.5, "logit_bias": {"65": 5, "66": -100},
            "min_p": 0.05, "repetition_penalty": 1.2, "user": "somebody",
            "builtin_tools": draw.choice([[], ["calculator"]]),
        }  # fmt: skip
        return {name: options[name] for name in draw.sample(list(options), draw.randrange(4))}

    def _good(self) -> Case:
        path, body = self._body()
        return Case("good", post(path, {**body, **self._options()}), (200,))

    def _good_stream(self) -> Case:
        path, body = self._body()
        usage = {"stream_options": {"include_usage": True}} if self._draw.random() < 0.5 else {}
        return Case("good stream", post(path, {**body, "stream": True, **usage}), (200,))

    def _wrong_kind(self) -> Case:
        """A field that breaks its own schema."""
        path, body = self._body()
        fields = self._schemas[ROUTES[path]]["properties"]
        name = self._draw.choice([name for name in fields if name != "model"])
        wrong = [value for value in WRONG if not accepts(fields[name], value, self._schemas)]
        return Case("wrong kind", post(path, {**body, name: self._draw.choice(wrong)}), (400,))

    def _unknown_field(self) -> Case:
        path, body = self._body()
        name = self._draw.choice(
            ["tools", "temprature", "", "__proto__", "x" * 5000, "\ud800", "best_of", "constructor"]
        )
        return Case("unknown field", post(path, {**body, name: 1}), (400,))

    def _not_json(self) -> Case:
        path, body = self._body()
        whole = json.dumps(body).encode()
        cut = whole[: self._draw.randrange(len(whole))]
        content = self._draw.choice([cut, b"", b"null", b"[]", b"\xff\x00", whole + b"}", b'{"a":1,}'])
        return Case("not JSON", raw_post(path, content), (400,))

    def _huge_number(self) -> Case:
        path, _ = self._body()
        own = '"messages":[{"role":"user","content":"x"}]' if path.startswith("/v1/chat") else '"prompt":"x"'
        name = self._draw.choice(["temperature", "max_tokens", "n", "seed", "top_p", "top_k", "min_tokens"])
        number = self._draw.choice(["1e400", "-1e400", "NaN", "Infinity", "9" * 5000, "1" + "0" * 30, "-" + "9" * 25])
        return Case("huge number", raw_post(path, f'{{{own},"{name}":{number}}}'.encode()), (400,))

    def _elsewhere(self) -> Case:
        kinds = [
            (
                "unknown model",
                post("/v1/chat/completions", self.chat(model="nobody" * self._draw.randrange(1, 100))),
                404,
            ),
            ("unknown path", get("/v1/" + "%2e%2e/" * self._draw.randrange(5) + "nothing"), 404),
            ("wrong method", get("/v1/chat/completions"), 405),
            ("strange method", b"BREW /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", 405),
            ("foreign host", b"GET /v1/models HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n", 421),
            ("foreign page", post("/v1/completions", self.completion(), "Origin: https://evil.example"), 403),
            ("health", get("/health"), 200),
            ("models", get("/v1/models"), 200),
            ("metrics", get("/metrics"), 200),
        ]
        name, content, status = self._draw.choice(kinds)
        return Case(name, content, (status,))

    def _too_large(self) -> Case:
        large = json.dumps(self.chat(user="x" * (MAX_BODY_BYTES + self._draw.randrange(1 << 16)))).encode()
        if self._draw.random() < 0.5:
            return Case("too large", raw_post("/v1/chat/completions", large), (413,))
        chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (large[:9000], large[9000:]))
        head = request_head("/v1/chat/completions", "Transfer-Encoding: chunked")
        return Case("too large in chunks", head + chunks + b"0\r\n\r\n", (413,))

    def _no_http(self) -> Case:
        content = self._draw.choice(
            [b"\x16\x03\x01\x00\xa5\x01\x00\r\n\r\n", b"GET / HTTP/9.9.9\r\n\r\n", b"\r\n\r\n\x00\r\n\r\n",
             b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 100_000,
             b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
             b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"]
        )  # fmt: skip
        return Case("no HTTP", content, (400,))

    def _leaves(self) -> Case:
        """A client that goes away before, at or after the first words."""
        body = self.chat(stream=self._draw.random() < 0.7, max_tokens=200, min_tokens=150)
        return Case(
            "leaves", post("/v1/chat/completions", body), (LEFT, 200), "leave", self._draw.choice([0, 0, 1, 400])
        )

    def _half_a_body(self) -> Case:
        whole = post("/v1/chat/completions", self.chat())
        then = self._draw.choice(["leave", "half"])
        return Case("half a body", whole[: -self._draw.randrange(1, 20)], (LEFT, 400), then)

    def _nested(self) -> Case:
        depth = self._draw.choice([100, 5_000, 50_000])
        content = self._draw.choice(
            [b"[" * depth, b'{"a":' * depth, b'{"messages":' + b"[" * depth + b"]" * depth + b"}"]
        )
        return Case("nested", raw_post("/v1/chat/completions", content), (400,))

    def _bad_form(self) -> Case:
        schemas: list[Any] = [
            {"type": "what"}, {"$ref": "#/nowhere"}, {"type": "string", "pattern": "("}, {"type": "object", "allOf": 3},
            {"$ref": "http://evil.example/x"},
        ]  # fmt: skip
        form = {"type": "json_schema", "json_schema": {"name": "x", "schema": self._draw.choice(schemas)}}
        return Case("bad form", post("/v1/chat/completions", self.chat(response_format=form)), (400,))

    def _crawls(self) -> Case:
        """Reads a byte now and then; it gets what it asked for, since that fits into the sockets."""
        return Case("crawls", post("/v1/chat/completions", self.chat(stream=True, max_tokens=50)), (200,), "crawl")


# values of every kind; a field is sent one that its schema does not take
WRONG: list[Any] = [
    "x", "", "5", 1.5, -1, -3.7, 10**18, 10**25, True, False, [], {}, [[]], [None], {"a": None}, [1.5], ["x", 1], [{}],
    {"type": "x"}, [{"role": "robot", "content": "x"}], [{"role": "user"}], [{"role": "user", "content": 5}],
    {"65": "x"},
    "\x00", ["", ""], [-1], [10**25],
]  # fmt: skip


def accepts(schema: dict[str, Any], value: Any, schemas: dict[str, Any]) -> bool:
    """Whether a value may fit a JSON schema of the document. Where that is not certain: True."""
    if "$ref" in schema:
        return accepts(schemas[schema["$ref"].rsplit("/", 1)[1]], value, schemas)
    for word in ("anyOf", "oneOf"):
        if word in schema:
            return any(accepts(option, value, schemas) for option in schema[word])
    if "const" in schema or "enum" in schema:
        return value in schema.get("enum", [schema.get("const")])
    kind = schema.get("type")
    if kind == "null":
        return value is None
    if kind == "boolean":
        return isinstance(value, bool)
    if kind == "string":
        low, high = schema.get("minLength", 0), schema.get("maxLength", 1 << 60)
        return isinstance(value, str) and low <= len(value) <= high
    if kind in ("integer", "number"):
        is_kind = isinstance(value, int if kind == "integer" else int | float) and not isinstance(value, bool)
        return is_kind and _within(schema, value)
    if kind == "array":
        low, high = schema.get("minItems", 0), schema.get("maxItems", 1 << 60)
        is_kind = isinstance(value, list) and low <= len(value) <= high
        return is_kind and all(accepts(schema.get("items", {}), entry, schemas) for entry in value)
    if kind == "object":
        return _accepts_object(schema, value, schemas)
    return True


def _within(schema: dict[str, Any], value: float) -> bool:
    return (
        value >= schema.get("minimum", value)
        and value <= schema.get("maximum", value)
        and value > schema.get("exclusiveMinimum", value - 1)
        and value < schema.get("exclusiveMaximum", value + 1)
    )


def _accepts_object(schema: dict[str, Any], value: Any, schemas: dict[str, Any]) -> bool:
    if not isinstance(value, dict) or any(name not in value for name in schema.get("required", ())):
        return False
    fields, others = schema.get("properties", {}), schema.get("additionalProperties", True)
    for name, entry in value.items():
        rule = fields.get(name, others)
        if rule is False or (isinstance(rule, dict) and not accepts(rule, entry, schemas)):
            return False
    return True


# --- bytes of requests ----------------------------------------------------------------------------------------------


def request_head(path: str, *more: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json", *more]
    return "\r\n".join([*lines, "", ""]).encode()


def raw_post(path: str, content: bytes, *more: str) -> bytes:
    return request_head(path, f"Content-Length: {len(content)}", "Connection: close", *more) + content


def post(path: str, body: dict[str, Any], *more: str) -> bytes:
    return raw_post(path, json.dumps(body).encode(), *more)


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
