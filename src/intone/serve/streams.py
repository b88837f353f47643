"""Answers as server-sent events: every write waits for its reader, but not for ever."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from starlette.responses import Response

from intone.serve.answers import Answers
from intone.serve.gate import Receive, Scope, Send
from intone.serve.generation import ClientGone, Generation
from intone.serve.problems import Problem, as_json

HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # a proxy must not gather what should appear as it is written
]
DONE = b"data: [DONE]\n\n"


class EventStream(Response):
    """A generation that has begun, on its way to one client. finish is called once, however it ends."""

    def __init__(
        self, generation: Generation, answers: Answers, *, write_timeout_s: float, finish: Callable[[], None]
    ) -> None:
        super().__init__(status_code=200)
        self._generation = generation
        self._answers = answers
        self._write_timeout_s = write_timeout_s
        self._finish = finish

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def write(events: bytes, *, more: bool = True) -> None:
            async with asyncio.timeout(self._write_timeout_s):
                await send({"type": "http.response.body", "body": events, "more_body": more})

        try:
            await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
            try:
                async for messages in self._generation.messages():
                    chunks = self._answers.chunks(messages)
                    if chunks:
                        await write(_events(chunks))
                await write(_events(self._answers.last_chunks()) + DONE, more=False)
            except Problem as problem:
                await write(_events([problem.body]), more=False)
        except ClientGone:
            _cut(scope)
        except TimeoutError:
            _cut(scope)  # it does not read: what it has not read yet is thrown away with its connection
        finally:
            await self._generation.close()
            self._finish()


def _events(chunks: Sequence[Any]) -> bytes:
    return b"".join(b"data: " + as_json(chunk) + b"\n\n" for chunk in chunks)


def _cut(scope: Scope) -> None:
    """Ends the connection without waiting for its reader."""
    abort = scope.get("state", {}).get("abort")
    if abort is not None:
        abort()
