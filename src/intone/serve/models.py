"""Which models a server answers with: the one it was started for, and others while somebody asks for them."""

import asyncio
import contextlib
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from intone.data.tokenizer import Tokenizer
from intone.engine.text import Specials
from intone.errors import UserError, unknown_name
from intone.records import read_choices
from intone.runs import find_stage
from intone.serve.link import RUN_LOADER, EngineGone, EngineLink
from intone.serve.problems import Problem, unavailable

MOST_OTHERS = 1  # engines besides the default one: each has its weights and its cache
SAVE = re.compile(r"step_(\d+)")


@dataclass
class Served:
    """One engine that is ready. name: what "model" of a request says."""

    name: str
    link: EngineLink
    tokenizer: Tokenizer
    created: int
    specials: Specials
    used_s: float = field(default_factory=time.monotonic)
    num_open: int = 0  # HTTP requests that it answers now

    @property
    def context(self) -> int:
        return int(self.link.facts["context"])

    @property
    def vocab_size(self) -> int:
        return int(self.link.facts["vocab_size"])

    @property
    def step(self) -> int:
        return int(self.link.facts["step"])

    @property
    def folder(self) -> Path:
        return Path(self.link.facts["folder"])


@dataclass(frozen=True)
class Loaded:
    """What load() says: the name that requests may use now, the step of its save, and its context in tokens."""

    model: str
    step: int
    context: int


class Models:
    """Starts and ends engines. For one event loop; close it after use.

    run: the default. arguments: what open_run() gets besides the run. loader: what opens it, for tests and benchmarks.
    """

    def __init__(
        self, run: str, *, arguments: Mapping[str, Any] | None = None, loader: str = RUN_LOADER
    ) -> None:
        self._run = run
        self._arguments = dict(arguments or {})
        self._loader = loader
        self._default: Served | None = None
        self._others: dict[str, Served] = {}
        self._lock = asyncio.Lock()

    async def start(self) -> Served:
        """Starts the default engine. Raises UserError, EngineGone."""
        self._default = await self._started(self._run)
        return self._default

    @property
    def default(self) -> Served | None:
        """The engine that the server was started for, None before it is ready."""
        return self._default

    @property
    def is_healthy(self) -> bool:
        return self._default is not None and self._default.link.is_alive

    @property
    def all(self) -> list[Served]:
        """The default one first."""
        return [*([self._default] if self._default else []), *self._others.values()]

    def find(self, name: str | None) -> Served:
        """The engine that a request means. Raises Problem: 404 for an unknown name, 503 where it does not answer."""
        if self._default is None:
            raise unavailable("the model is being loaded", code="loading")
        known = {served.name: served for served in reversed(self.all)}
        known |= {self._default.name.partition("/")[0]: self._default}
        served = self._default if name is None else known.get(name)
        if served is None:
            error = unknown_name("model", (name or "")[:200], known)
            raise Problem(404, f"{error.message}; {error.fix}", param="model", code="model_not_found")
        if not served.link.is_alive:
            raise unavailable(f"the engine of {served.name} has stopped", code="engine_stopped")
        served.used_s = time.monotonic()
        return served

    async def load(self, reference: str) -> Loaded:
        """The newest save of RUN or RUN/STAGE, ready to answer; also of a stage that is still training.

        Raises UserError where there is none, Problem where there is no room for another engine.
        """
        place = await asyncio.to_thread(find_stage, reference)
        async with self._lock:
            name = f"{place.run.name}/{place.stage}" if place.run is not None else str(place.folder)
            served = next((served for served in self.all if served.folder == place.folder), None)
            if served is not None and not served.link.is_alive and served is not self._default:
                await self._end(served)
                served = None
            if served is None:
                await self._make_room()
                try:
                    served = await self._started(name)
                except EngineGone as error:
                    raise unavailable(f"{name} could not be loaded: {error}") from None
                self._others[served.name] = served
            elif newest_step(served.folder) > served.step:
                await served.link.update()
            served.used_s = time.monotonic()
            return Loaded(served.name, served.step, served.context)

    async def close(self) -> None:
        """Ends all engines."""
        served, self._others = self.all, {}
        await asyncio.gather(*(entry.link.close() for entry in served))

    async def _make_room(self) -> None:
        while len(self._others) >= MOST_OTHERS:
            idle = [served for served in self._others.values() if not served.num_open]
            if not idle:
                raise unavailable("another model is answering; try again when it is done", code="models_busy")
            await self._end(min(idle, key=lambda served: served.used_s))

    async def _end(self, served: Served) -> None:
        self._others = {name: other for name, other in self._others.items() if other is not served}
        await served.link.close()

    async def _started(self, run: str) -> Served:
        environment: Mapping[str, str] = {}
        if self._loader == RUN_LOADER:
            place = await asyncio.to_thread(find_stage, run)
            with contextlib.suppress(UserError):
                environment = read_choices(place.folder).environment
        link = await EngineLink.start({"run": run, **self._arguments}, loader=self._loader, environment=environment)
        facts = link.facts
        tokenizer = await asyncio.to_thread(Tokenizer.load, Path(facts["tokenizer"]))
        name = f"{facts['run']}/{facts['stage']}" if facts["run"] is not None else Path(facts["folder"]).name
        return Served(name, link, tokenizer, int(time.time()), Specials.of(tokenizer))


def newest_step(folder: Path) -> int:
    """The step of the newest complete save of a job; -1 where there is none."""
    saves = (folder / "checkpoints").glob("step_*/manifest.json")
    steps = [int(match[1]) for save in saves if (match := SAVE.fullmatch(save.parent.name))]
    return max(steps, default=-1)
