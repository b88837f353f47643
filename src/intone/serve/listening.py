"""The sockets' side: one port, connections that cannot be held open for nothing, signals that drain before they end."""

import asyncio
import contextlib
import errno
import os
import signal
import socket
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from intone.errors import EXIT_DONE, EXIT_STOPPED, UserError

HEADERS_S = 20.0  # for the head of a request, once its first byte is there
IDLE_S = 75.0  # a connection without a request; browsers and proxies keep theirs for about a minute
MOST_HEADER_BYTES = 64 << 10
BACKLOG = 2048


class Connection(H11Protocol):
    """A connection that ends where its client sends half a request's head, or does not read what it was sent."""

    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Gives every request of the connection a way to end it at once."""
        super().connection_made(transport)
        self.app_state = {**self.app_state, "abort": transport.abort}
        self._await_head()

    def data_received(self, data: bytes) -> None:
        """Watches for heads that do not get complete."""
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._head_is_here()
        elif self._head_timer is None and self.timeout_keep_alive_task is None:
            self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Leaves no timer behind."""
        self._head_is_here()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def timeout_keep_alive_handler(self) -> None:
        """Nothing more came: the connection ends, and with it what its client does not read."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            super().timeout_keep_alive_handler()

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(HEADERS_S, self.transport.abort)

    def _head_is_here(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


class Listener(uvicorn.Server):
    """uvicorn's server, whose signals end it in order and with an exit code of ours."""

    exit_code = EXIT_DONE

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """SIGTERM and Ctrl-C begin to drain; a second one ends what is left. Only a main thread has signals."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called by the signal."""
        if self.should_exit:
            self.force_exit = True
        elif sig == signal.SIGINT:
            self.exit_code = EXIT_STOPPED
        self.should_exit = True


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens nowhere else; port 0: a free one. Raises UserError where it is taken or not ours."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror:
        raise UserError(f"no address here is called {host}", value=host, fix="use --host 127.0.0.1") from None
    family, kind, protocol, _, address = found[0]
    listening = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(BACKLOG)  # at once, so that two servers cannot both believe to have it
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRINUSE:
            raise UserError(
                f"port {port} of {host} is taken", value=port, fix="use --port 0 for a free one, or end what has it"
            ) from None
        if error.errno in (errno.EACCES, errno.EADDRNOTAVAIL):
            raise UserError(
                f"cannot listen on {host}:{port}: {error.strerror}", value=f"{host}:{port}",
                fix="ports below 1024 are the system's; addresses must be this machine's",
            ) from None  # fmt: skip
        raise
    listening.setblocking(False)
    return listening


def url_of(listening: socket.socket) -> str:
    """http://HOST:PORT of a socket, with an address that a client can use."""
    host, port = listening.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def listener(app: FastAPI, *, drain_s: float) -> Listener:
    """The server of an application; serve(sockets=[...]) runs it."""
    settings: dict[str, Any] = dict(log_config=None, access_log=False, ws="none", lifespan="off", server_header=False)
    config = uvicorn.Config(
        app, http=Connection, timeout_keep_alive=IDLE_S,  # type: ignore[arg-type]
        h11_max_incomplete_event_size=MOST_HEADER_BYTES, timeout_graceful_shutdown=drain_s,  # type: ignore[arg-type]
        backlog=BACKLOG, **settings,
    )  # fmt: skip
    return Listener(config)
