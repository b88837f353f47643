"""The web pages, `/` to chat and `/runs` to watch training, with the JSON behind the second; needs no torch."""

import hashlib
from collections.abc import Awaitable, Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from fastapi import APIRouter, Request
from fastapi.params import Depends
from fastapi.responses import JSONResponse, Response

from intone.errors import UserError
from intone.serve.watching import find_watched, log_since, overview, run_view

HERE = Path(__file__).parent / "ui"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# everything from this server and nothing inline: text that a model wrote cannot become a script or a request
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


class Loaded(Protocol):
    """A model that answers now: its id in requests, and the step of its save, None where there are none."""

    @property
    def model(self) -> str: ...

    @property
    def step(self) -> int | None: ...


Load = Callable[[str], Awaitable[Loaded]]


def pages_router(*, guard: Sequence[Depends] = (), load: Load | None = None) -> APIRouter:
    """GET `/`, `/runs`, `/ui/FILE`, open to all: they hold no secret. Behind guard: `/api/runs` and below.

    load makes the newest save of a run answer under an id and raises UserError; None: no run can be loaded.
    """
    router = APIRouter()
    router.include_router(_files())
    router.include_router(_runs(load), prefix="/api", dependencies=list(guard))
    return router


@cache
def _file(name: str) -> tuple[bytes, str, str] | None:
    """(content, type, tag) of a file of the pages; None where there is none of this name."""
    path = HERE / name
    if path.parent != HERE or path.suffix not in TYPES or not path.is_file():
        return None
    content = path.read_bytes()
    return content, TYPES[path.suffix], f'"{hashlib.sha256(content).hexdigest()[:16]}"'


def _served(request: Request, name: str) -> Response:
    found = _file(name)
    if found is None:
        return Response(f"there is no {name!r} here\n", 404, HEADERS, "text/plain; charset=utf-8")
    content, kind, tag = found
    headers = HEADERS | {"ETag": tag}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(content, headers=headers, media_type=kind)


def _files() -> APIRouter:
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    def chat_page(request: Request) -> Response:
        return _served(request, "chat.html")

    @router.get("/runs")
    def runs_page(request: Request) -> Response:
        return _served(request, "runs.html")

    @router.get("/favicon.ico")
    def icon(request: Request) -> Response:
        return _served(request, "icon.svg")

    @router.get("/ui/{name}")
    def file(request: Request, name: str) -> Response:
        return _served(request, name)

    return router


def _runs(load: Load | None) -> APIRouter:
    router = APIRouter(tags=["runs"])

    @router.get("/runs")
    def list_of_runs() -> Response:
        """The runs on this machine, newest first, each in a few words; can_load: whether one can be chatted with."""
        return _json({**overview(), "can_load": load is not None})

    @router.get("/runs/{name}")
    def one_run(name: str) -> Response:
        """Everything about a run but its logs: state, plan with reasons, samples."""
        return _answered(lambda: run_view(name))

    @router.get("/runs/{name}/log")
    def log_of_run(name: str, stage: str, file: str = "", offset: int = 0) -> Response:
        """What a stage's log has behind an offset; file and offset come from the answer before."""
        return _answered(lambda: log_since(name, stage, file=file, offset=offset))

    @router.post("/runs/{name}/load")
    async def load_run(name: str, stage: str | None = None) -> Response:
        """Makes the newest save of a run, or of one of its stages, answer -> the id for "model" in requests."""
        try:
            run = find_watched(name)
            if load is None:
                raise UserError("this server keeps to the model it started with", value=name)
            if stage is not None and stage not in run.stages:
                raise UserError(f"run {name} has no stage {stage!r}", value=stage, fix=f"it has: {run.stages}")
            loaded = await load(f"{name}/{stage}" if stage else name)
        except UserError as error:
            return _refused(error)
        return _json({"model": loaded.model, "step": loaded.step})

    return router


def _answered(read: Callable[[], dict[str, Any]]) -> Response:
    try:
        return _json(read())
    except UserError as error:
        return _refused(error)


def _json(value: dict[str, Any]) -> Response:
    return JSONResponse(value, headers={"Cache-Control": "no-store"})


def _refused(error: UserError) -> Response:
    """An error in OpenAI's shape, as everywhere on this server."""
    words = f"{error.message}; {error.fix}" if error.fix else error.message
    code = 404 if error.message.startswith("there is no run") else 400
    kind = "not_found_error" if code == 404 else "invalid_request_error"
    return JSONResponse({"error": {"message": words, "type": kind, "param": None, "code": None}}, status_code=code)
