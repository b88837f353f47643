"""What every request passes before a route sees it: its id, key, origin, host, and a body of bounded size and time."""

import asyncio
import hmac
import ipaddress
import re
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

from starlette.datastructures import Headers

from intone.log import say
from intone.serve.metrics import Metrics
from intone.serve.problems import Problem

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

GUARDED = ("/v1/", "/api/")
PLAIN_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
# of a body that is too large so much is read and thrown away, so that the client reads our answer before it is cut off
MOST_DISCARDED_BYTES = 64 << 20
DISCARD_S = 5.0


class Gate:
    """The outermost layer. key None: everybody may ask. is_local: bound to loopback."""

    def __init__(
        self, app: App, *, key: str | None, is_local: bool, origins: Sequence[str], max_body_bytes: int,
        body_timeout_s: float, metrics: Metrics,
    ) -> None:  # fmt: skip
        self._app = app
        self._key = None if key is None else key.encode()
        self._is_local = is_local
        self._origins = tuple(origins)
        self._max_body_bytes = max_body_bytes
        self._body_timeout_s = body_timeout_s
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        asked = headers.get("x-request-id", "")
        request_id = asked if PLAIN_ID.fullmatch(asked) else secrets.token_hex(12)
        scope.setdefault("state", {})["arrived_s"] = time.monotonic()
        status = 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            self._check(scope, headers)
            await self._app(scope, self._bounded(headers, receive), answer)
        except Problem as problem:
            if status:
                raise
            await problem.response(scope, receive, answer)
        except Exception as error:
            if status:
                raise
            # no value of the request is in this line; the traceback would be the place where one could slip in
            place = error.__traceback__
            while place is not None and place.tb_next is not None:
                place = place.tb_next
            where = f"{place.tb_frame.f_code.co_filename}:{place.tb_lineno}" if place is not None else "?"
            say(f"request {request_id}: {type(error).__name__} at {where}")
            fault = Problem(500, f"a fault in this server; its log names request {request_id}")
            await fault.response(scope, receive, answer)
        finally:
            route = scope.get("route")
            path = getattr(route, "path", None) or "other"
            self._metrics.responses.labels(path, str(status or "none")).inc()

    def _check(self, scope: Scope, headers: Headers) -> None:
        path, method = scope["path"], scope["method"]
        if self._is_local and not _is_plain_host(headers.get("host", "")):
            raise Problem(
                421, "this server answers to localhost and addresses only, so that no web page can reach it by a "
                "name of its own; start it with --host to serve a name", param="Host",
            )  # fmt: skip
        origin = headers.get("origin")
        is_ours = origin is None or origin.partition("://")[2] == headers.get("host")
        if method not in ("GET", "HEAD", "OPTIONS") and not is_ours and not {origin, "*"} & set(self._origins):
            message = f"web pages of {(origin or '')[:100]} may not use this server; allow them with --cors-origin"
            raise Problem(403, message, param="Origin")
        if self._key is not None and method != "OPTIONS" and path.startswith(GUARDED):
            self._check_key(headers)

    def _check_key(self, headers: Headers) -> None:
        assert self._key is not None, "only where there is a key"
        scheme, _, given = headers.get("authorization", "").partition(" ")
        # compared in a time that does not depend on where they differ
        is_right = hmac.compare_digest(given.strip().encode("utf-8", "replace"), self._key)
        if scheme.lower() != "bearer" or not is_right:
            raise Problem(
                401, "the API key is missing or wrong; send it as Authorization: Bearer KEY", code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )  # fmt: skip

    def _bounded(self, headers: Headers, receive: Receive) -> Receive:
        """receive() that counts bytes and time of the body. It raises Problem 413 or 408."""
        length = headers.get("content-length", "")
        num_bytes, is_complete = 0, False
        end_s = time.monotonic() + self._body_timeout_s

        async def bounded() -> Message:
            nonlocal num_bytes, is_complete
            if is_complete:
                return await receive()  # waits for the client's leaving
            if length.isdigit() and int(length) > self._max_body_bytes:
                await self._discard(headers, receive)
                raise self._too_large()
            try:
                async with asyncio.timeout(end_s - time.monotonic()):
                    message = await receive()
            except TimeoutError:
                raise Problem(
                    408, f"the body did not arrive within {self._body_timeout_s:g} s", headers={"Connection": "close"}
                ) from None
            num_bytes += len(message.get("body", b""))
            is_complete = not message.get("more_body", False)
            if num_bytes > self._max_body_bytes:
                if not is_complete:
                    await self._discard(headers, receive)
                raise self._too_large()
            return message

        return bounded

    async def _discard(self, headers: Headers, receive: Receive) -> None:
        if headers.get("expect", "").lower() == "100-continue":
            return  # it waits for our word before it sends
        num_bytes = 0
        try:
            async with asyncio.timeout(DISCARD_S):
                while num_bytes < MOST_DISCARDED_BYTES:
                    message = await receive()
                    num_bytes += len(message.get("body", b""))
                    if not message.get("more_body", False):
                        return
        except TimeoutError:
            return

    def _too_large(self) -> Problem:
        return Problem(
            413, f"the body is larger than {self._max_body_bytes:,} bytes", code="body_too_large",
            headers={"Connection": "close"},
        )  # fmt: skip


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server on that host."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_plain_host(host: str) -> bool:
    """Whether a Host header names an address or localhost: what a foreign web page cannot make its own."""
    name = re.sub(r":\d*$", "", host)
    if name.startswith("[") and name.endswith("]"):
        name = name[1:-1]
    if name.lower() in ("localhost", ""):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name.lower().endswith(".localhost")
    return True
