"""Servers on real sockets with real engine processes, shared by the tests of one session."""

import asyncio
import contextlib
import faulthandler
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from tests.conftest import REPOSITORY
from tests.serve.models import make_run

from intone.serve.app import Server, create_app
from intone.serve.listening import Listener, bind, listener, url_of
from intone.serve.models import Models
from intone.serve.settings import ServeSettings

monotonic = time.monotonic  # before any test puts another clock in its place
WAIT_S = 60.0  # for what takes a second on a quiet machine


@dataclass
class Running:
    """A server that answers, in a thread of the tests' process."""

    url: str
    server: Server
    listener: Listener
    loop: asyncio.AbstractEventLoop
    http: httpx2.Client  # making one takes longer than a request

    @property
    def pid(self) -> int:
        """The process that speaks HTTP: this one."""
        return os.getpid()

    def call(self, function: Any) -> Any:
        """The result of an async function in the server's loop."""
        return asyncio.run_coroutine_threadsafe(function, self.loop).result(WAIT_S)

    def stats(self) -> dict[str, Any]:
        """The numbers of the default engine."""
        return self.call(self.server.models.default.link.stats())

    @contextlib.contextmanager
    def beside(self, **settings: Any) -> Iterator["Running"]:
        """The same models behind another port with other settings."""
        asked = ServeSettings(**{"port": 0, **settings})
        socket = bind(asked.host, asked.port)
        app = create_app(self.server.models, asked)
        server = listener(app, drain_s=asked.drain_s)
        serving = asyncio.run_coroutine_threadsafe(server.serve(sockets=[socket]), self.loop)
        with httpx2.Client(base_url=url_of(socket), timeout=WAIT_S) as http:
            yield Running(url_of(socket), app.state.server, server, self.loop, http)
        server.should_exit = True
        serving.result(WAIT_S)

    def openai(self, **settings: Any) -> openai.OpenAI:
        """OpenAI's client of this server."""
        return openai.OpenAI(base_url=f"{self.url}/v1", **{"api_key": "none", "max_retries": 0, **settings})


class SteadyLoop(asyncio.SelectorEventLoop):
    """A loop that lives through many tests, some of which change the clock: what waits then would wait for hours."""

    def time(self) -> float:
        return monotonic()


@contextlib.contextmanager
def running(models: Models, **settings: Any) -> Iterator[Running]:
    """Serves models until the end of the block."""
    settings = ServeSettings(**{"port": 0, **settings})
    socket = bind(settings.host, settings.port)
    ready: dict[str, Running] = {}
    is_ready, stop = threading.Event(), threading.Event()
    problem: list[BaseException] = []

    async def serve() -> None:
        app = create_app(models, settings)
        server = listener(app, drain_s=settings.drain_s)
        serving = asyncio.create_task(server.serve(sockets=[socket]))
        starting = asyncio.create_task(models.start())
        await asyncio.wait((serving, starting), return_when=asyncio.FIRST_COMPLETED)
        assert starting.done() or serving.result(), "ended before it was ready"
        starting.result()
        http = httpx2.Client(base_url=url_of(socket), timeout=WAIT_S)
        ready["it"] = Running(url_of(socket), app.state.server, server, asyncio.get_running_loop(), http)
        is_ready.set()
        while not stop.is_set() and not serving.done():
            await asyncio.sleep(0.01)
        server.should_exit = True
        await serving
        await models.close()

    def run() -> None:
        try:
            with asyncio.Runner(loop_factory=SteadyLoop) as runner:
                runner.run(serve())
        except BaseException as error:
            problem.append(error)
            is_ready.set()

    thread = threading.Thread(target=run, name="server of a test")
    thread.start()
    assert is_ready.wait(WAIT_S), "the server did not get ready"
    try:
        if problem:
            raise problem[0]
        yield ready["it"]
    finally:
        if "it" in ready:
            ready["it"].http.close()
        stop.set()
        thread.join(WAIT_S)
        socket.close()
    if thread.is_alive():
        tasks = [str(task.get_stack()) for task in asyncio.all_tasks(ready["it"].loop)] if "it" in ready else []
        faulthandler.dump_traceback()
        raise AssertionError("the server did not end; its tasks: " + "; ".join(tasks))


@pytest.fixture(scope="session")
def served_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An INTONE_HOME with the run "tiny", and engine processes that find the tests' modules."""
    before = {name: os.environ.get(name) for name in ("INTONE_HOME", "PYTHONPATH")}
    folder = tmp_path_factory.mktemp("served")
    native = Path(before["INTONE_HOME"] or "") / "native"  # built once for all tests
    native.mkdir(parents=True, exist_ok=True)
    (folder / "native").symlink_to(native)
    os.environ["INTONE_HOME"] = str(folder)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [before["PYTHONPATH"], str(REPOSITORY)]))
    make_run("tiny")
    yield folder
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value


@pytest.fixture(scope="session")
def server(served_home: Path) -> Iterator[Running]:
    """The run "tiny" behind HTTP, with every default but few slots."""
    with running(Models("tiny", arguments={"device": "cpu", "num_slots": 8})) as found:
        yield found


@pytest.fixture(scope="session")
def client(server: Running) -> Iterator[openai.OpenAI]:
    with server.openai() as found:
        yield found
