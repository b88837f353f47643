"""The server's side of an engine's process: starts it, hands requests over, and spreads its events."""

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Mapping
from typing import Any

from intone.child import PACKAGE_PARENT, START, end_group
from intone.errors import UserError

MOST_LINE_BYTES = 1 << 28  # a line holds what all texts gained in some milliseconds; a prompt is far smaller
STATS_S = 2.0  # so long the numbers of an engine may take; a step of a large model is shorter (guess)
CLOSE_S = 5.0
RUN_LOADER = "intone.serve.loading:open_run"


class EngineGone(Exception):
    """The engine's process ended, or was never ready."""


class Inbox:
    """What comes for one HTTP request: messages of outbox.py of all its engine requests, in order."""

    def __init__(self) -> None:
        self.messages: deque[list[Any]] = deque()
        self.arrived = asyncio.Event()

    def put(self, message: list[Any]) -> None:
        self.messages.append(message)
        self.arrived.set()

    async def take(self) -> list[list[Any]]:
        """Everything that is there, at least one message."""
        await self.arrived.wait()
        self.arrived.clear()
        found = list(self.messages)
        self.messages.clear()
        return found


class EngineLink:
    """One engine's process. All methods belong to one event loop."""

    def __init__(
        self, process: "subprocess.Popen[bytes]", reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.facts: dict[str, Any] = {}
        self._process = process
        self._reader = reader
        self._writer = writer
        self._number = 0
        self._inboxes: dict[int, Inbox] = {}
        self._asked: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._is_gone = False
        self._task: asyncio.Task[None] | None = None

    @classmethod
    async def start(
        cls, arguments: Mapping[str, Any], *, loader: str = RUN_LOADER, environment: Mapping[str, str] | None = None
    ) -> "EngineLink":
        """A process whose engine is ready. Raises UserError where there is no such model, EngineGone where it dies."""
        ours, theirs = socket.socketpair()
        variables = {**os.environ, **(environment or {}), "INTONE_PARENT": str(os.getpid())}
        variables["PYTHONPATH"] = os.pathsep.join(filter(None, [str(PACKAGE_PARENT), variables.get("PYTHONPATH")]))
        variables.pop("INTONE_PARENT_PIPE", None)
        asked = {"socket": theirs.fileno(), "loader": loader, "arguments": dict(arguments)}
        variables["INTONE_ENGINE"] = json.dumps(asked)
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", START, "intone.serve.engine_process"], env=variables,
                stdin=subprocess.DEVNULL, stdout=2, pass_fds=(theirs.fileno(),), start_new_session=True,
            )  # fmt: skip
        try:
            reader, writer = await asyncio.open_connection(sock=ours, limit=MOST_LINE_BYTES)
            link = cls(process, reader, writer)
            line = await reader.readline()
        except BaseException:
            ours.close()
            await asyncio.to_thread(end_group, process)
            raise
        first = json.loads(line) if line else {}
        if "ready" not in first:
            await link.close()
            if problem := first.get("refused_to_start"):
                raise UserError(problem["message"], value=problem["value"], fix=problem["fix"])
            raise EngineGone(f"the engine's process ended with {process.returncode} before it was ready")
        link.facts = first["ready"]
        link._task = asyncio.create_task(link._read())
        return link

    @property
    def is_alive(self) -> bool:
        """Whether requests are answered."""
        return not self._is_gone

    @property
    def pid(self) -> int:
        return self._process.pid

    def submit(self, request: Mapping[str, Any], inbox: Inbox) -> int:
        """Starts a request -> its number; what comes of it goes to inbox. Raises EngineGone."""
        self._number += 1
        self._send({"submit": self._number, "request": request})
        self._inboxes[self._number] = inbox
        return self._number

    def cancel(self, number: int) -> None:
        """Nobody wants the rest; harmless after the end."""
        if self._inboxes.pop(number, None) is not None and not self._is_gone:
            self._send({"cancel": number})

    async def stats(self) -> dict[str, Any] | None:
        """The engine's numbers; None where it does not say them in time."""
        with contextlib.suppress(TimeoutError, EngineGone):
            return (await self._ask("stats", STATS_S))["found"]
        return None

    async def update(self) -> int:
        """Loads the newest weights of the stage -> their step. Raises UserError, EngineGone."""
        answer = await self._ask("update", None)
        if problem := answer.get("error"):
            raise UserError(problem["message"], value=problem["value"], fix=problem["fix"])
        self.facts["step"] = answer["step"]
        return int(answer["step"])

    async def close(self) -> None:
        """Ends the process; whoever waits is told. Harmless when called twice."""
        if self._writer.can_write_eof() and not self._writer.is_closing():
            with contextlib.suppress(OSError):
                self._writer.write_eof()
        with contextlib.suppress(subprocess.TimeoutExpired):
            await asyncio.to_thread(self._process.wait, CLOSE_S)
        await asyncio.to_thread(end_group, self._process)
        self._writer.close()
        if self._task is not None:
            await self._task
        self._all_gone()

    async def _ask(self, what: str, timeout_s: float | None) -> dict[str, Any]:
        self._number += 1
        number = self._number
        future = self._asked[number] = asyncio.get_running_loop().create_future()
        try:
            self._send({what: number})
            async with asyncio.timeout(timeout_s):
                return await future
        finally:
            self._asked.pop(number, None)

    def _send(self, order: Mapping[str, Any]) -> None:
        if self._is_gone:
            raise EngineGone("the engine has stopped")
        self._writer.write((json.dumps(order) + "\n").encode())

    async def _read(self) -> None:
        try:
            while line := await self._reader.readline():
                self._spread(json.loads(line))
        except (ConnectionError, ValueError):
            pass  # killed in the middle of a line
        self._all_gone()

    def _spread(self, answer: dict[str, Any]) -> None:
        if "events" in answer:
            for message in answer["events"]:
                if inbox := self._inboxes.get(message[1]):
                    inbox.put(message)
                    if message[0] == "end":
                        del self._inboxes[message[1]]
        elif "accepted" in answer:
            if inbox := self._inboxes.get(answer["accepted"]):
                inbox.put(["accepted", answer["accepted"]])
        elif "refused" in answer:
            if inbox := self._inboxes.pop(answer["refused"], None):
                inbox.put(["refused", answer["refused"], answer["kind"], answer["message"], answer["fix"]])
        else:
            number = answer.get("stats") or answer.get("updated")
            future = self._asked.get(number) if number is not None else None
            if future is not None and not future.done():
                future.set_result(answer)

    def _all_gone(self) -> None:
        self._is_gone = True
        for number, inbox in self._inboxes.items():
            inbox.put(["refused", number, "stopped", "the engine has stopped", None])
        self._inboxes.clear()
        for future in self._asked.values():
            if not future.done():
                future.set_exception(EngineGone("the engine has stopped"))
