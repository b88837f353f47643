"""The process in which a served model computes: requests in and events out over a socket, one JSON object a line.

In: {"submit": NUMBER, "request": {...}}, {"cancel": NUMBER}, {"stats": NUMBER}, {"update": NUMBER}.
Out: {"ready": {...}} or {"refused_to_start": {...}}, then {"accepted": NUMBER}, {"refused": NUMBER, "kind", "message",
"fix"}, {"events": [...]} (see outbox.py), {"stats": NUMBER, "found": {...}}, {"updated": NUMBER, "step" or "error"}.
"""

import contextlib
import dataclasses
import importlib
import json
import os
import queue
import signal
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from intone.engine.collector import spare_loaded
from intone.engine.engine import EngineFull, EngineStopped
from intone.engine.requests import Request
from intone.engine.rows import Handle
from intone.errors import UserError
from intone.log import say
from intone.serve.loading import Opened, has_eight_bits, measure_eight_bits, renew
from intone.serve.outbox import Outbox

# while texts grow the sender looks so often whether something is due; it sleeps otherwise
LOOK_EVERY_S = 0.004
REFUSALS: dict[type[Exception], str] = {UserError: "bad_input", EngineFull: "full", EngineStopped: "stopped"}


class Service:
    """One engine behind one socket."""

    def __init__(self, opened: Opened, link: socket.socket) -> None:
        self._opened = opened
        self._engine = opened.engine
        self._link = link
        self._outbox = Outbox()
        self._handles: dict[int, Handle] = {}
        self._compiling: set[int] = set()  # not submitted yet: their form is compiled
        self._cancelled: set[int] = set()  # those of them that nobody wants any more
        self._lock = threading.Lock()
        self._answers: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._is_working = threading.Event()
        # a form may take long to compile, weights to load, numbers wait for the step: none of them holds up requests
        self._forms = ThreadPoolExecutor(1, thread_name_prefix="intone-forms")
        self._others = ThreadPoolExecutor(1, thread_name_prefix="intone-others")
        self._measuring = ThreadPoolExecutor(1, thread_name_prefix="intone-measuring")
        self._likes_eight_bits = has_eight_bits(opened)

    def run(self) -> None:
        """Answers until the other side closes the socket."""
        sender = threading.Thread(target=self._send_all, name="intone-sender", daemon=True)
        sender.start()
        with contextlib.suppress(ConnectionError), self._link.makefile("rb") as lines:
            for line in lines:
                self._obey(json.loads(line))

    def _obey(self, order: dict[str, Any]) -> None:
        if "submit" in order:
            number, asked = order["submit"], order["request"]
            if asked.get("structured") is None:
                self._submit(number, asked)
            else:
                with self._lock:
                    self._compiling.add(number)
                self._forms.submit(self._submit, number, asked)
        elif "cancel" in order:
            with self._lock:
                handle = self._handles.get(order["cancel"])
                if order["cancel"] in self._compiling:
                    self._cancelled.add(order["cancel"])
            if handle is not None:
                handle.cancel()
        elif "stats" in order:
            self._others.submit(self._stats, order["stats"])
        elif "update" in order:
            self._others.submit(self._update, order["update"])
        else:
            raise AssertionError(f"unknown order {sorted(order)}")

    def _submit(self, number: int, asked: dict[str, Any]) -> None:
        """Starts a request, or says why not."""
        try:
            if number in self._cancelled:
                raise EngineStopped("cancelled before it began")
            asked["logit_bias"] = {int(token): bias for token, bias in asked.get("logit_bias", {}).items()}
            handle = self._engine.submit(Request(**asked), listener=self._outbox.listener(number))
        except Exception as error:
            kind = next((kind for cls, kind in REFUSALS.items() if isinstance(error, cls)), "error")
            message = error.message if isinstance(error, UserError) else str(error)
            fix = error.fix if isinstance(error, UserError) else None
            with self._lock:
                self._compiling.discard(number)
                self._cancelled.discard(number)
            self._say({"refused": number, "kind": kind, "message": message, "fix": fix})
            return
        with self._lock:
            is_cancelled = number in self._cancelled
            self._compiling.discard(number)
            self._cancelled.discard(number)
            if not handle.is_finished:  # else its end is being sent, or was
                self._handles[number] = handle
        self._say({"accepted": number})
        if is_cancelled:
            handle.cancel()

    def _stats(self, number: int) -> None:
        found = dataclasses.asdict(self._engine.stats())
        self._say({"stats": number, "found": {**found, "threads": threading.active_count()}})

    def _update(self, number: int) -> None:
        """Newer weights of the same stage. Where 8 bits were chosen for earlier ones, and nobody knows what they cost
        these, that is measured while answers go on."""
        try:
            step, is_unknown = renew(self._opened)
        except UserError as error:
            self._say({"updated": number, "error": error.as_json()})
        except Exception as error:
            self._say({"updated": number, "error": UserError(f"{type(error).__name__}: {error}").as_json()})
        else:
            self._say({"updated": number, "step": step})
            if self._likes_eight_bits and is_unknown:
                self._measuring.submit(self._measure)

    def _measure(self) -> None:
        """What 8 bits cost the newest save; then it is settled again how its matrices are kept."""
        try:
            measure_eight_bits(self._opened.place)
            self._others.submit(renew, self._opened).result()
        except Exception as error:  # the matrices stay as they are; nobody waits for an answer
            say(f"8-bit weights of the newer save are not known: {error}")

    def _say(self, answer: dict[str, Any]) -> None:
        self._answers.put(answer)
        self._is_working.set()

    # the sending thread

    def _send_all(self) -> None:
        try:
            while True:
                self._is_working.wait()
                self._is_working.clear()
                self._send_due()
                while self._handles or not self._outbox.is_empty or not self._answers.empty():
                    time.sleep(LOOK_EVERY_S)
                    self._send_due()
        except (BrokenPipeError, ConnectionError):
            os._exit(0)  # nobody is left to answer

    def _send_due(self) -> None:
        lines = []
        while not self._answers.empty():
            lines.append(json.dumps(self._answers.get()))
        messages = self._outbox.take()
        if messages:
            for message in messages:
                if message[0] == "end":
                    with self._lock:
                        self._handles.pop(message[1], None)
            lines.append(json.dumps({"events": messages}))
        if lines:
            self._link.sendall(("\n".join(lines) + "\n").encode())
        if not self._engine.healthy and not self._handles:
            self._link.shutdown(socket.SHUT_RDWR)  # everybody was told: an engine that failed is of no use


def opened_by(loader: str, arguments: dict[str, Any]) -> Opened:
    """What "module:function" returns for these arguments."""
    module, _, function = loader.partition(":")
    found = getattr(importlib.import_module(module), function)(**arguments)
    assert isinstance(found, Opened), f"{loader} opened nothing"
    return found


def facts(opened: Opened) -> dict[str, Any]:
    """What the other side must know of an engine."""
    engine, run = opened.engine, opened.place.run
    return {
        "run": run.name if run is not None else None,
        "stage": opened.place.stage,
        "folder": str(opened.place.folder),
        "step": opened.step,
        "tokenizer": opened.tokenizer_folder,
        "context": engine.context,
        "vocab_size": engine.vocab_size,
        "settings": {name: [str(value), reason] for name, (value, reason) in engine.settings.items()},
        "tools": engine.tools(),
    }


def main() -> int:
    """`python -m intone.serve.engine_process`; the descriptor of the socket and the loader come in INTONE_ENGINE."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, which drains first
    asked = json.loads(os.environ.pop("INTONE_ENGINE"))
    with socket.socket(fileno=asked["socket"]) as link:
        try:
            opened = opened_by(asked["loader"], asked["arguments"])
        except UserError as error:
            link.sendall((json.dumps({"refused_to_start": error.as_json()}) + "\n").encode())
            return 2
        spare_loaded()
        with opened.engine:
            link.sendall((json.dumps({"ready": facts(opened)}) + "\n").encode())
            Service(opened, link).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
