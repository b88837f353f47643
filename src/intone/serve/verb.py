"""`intone serve`: binds the port, starts the engine, says where it answers, and serves until it is told to end."""

import asyncio
import dataclasses
import logging
import os
import socket
from collections.abc import Callable, Mapping

from intone.errors import EXIT_CHECK_FAILED, EXIT_DONE, UserError
from intone.log import say
from intone.model.native.build import build_to_generate
from intone.records import Answer, json_line
from intone.resolving import Resolved
from intone.runs import find_stage
from intone.serve.app import create_app
from intone.serve.gate import is_loopback
from intone.serve.link import EngineGone
from intone.serve.listening import bind, listener, url_of
from intone.serve.models import Models, Served
from intone.serve.settings import ServeSettings


def serve(settings: ServeSettings, _origins: Mapping[str, Resolved]) -> Answer:
    """Serves until SIGTERM or Ctrl-C; the result is printed when it is ready, not at the end. Raises UserError."""
    if settings.api_key is None and (key := os.environ.get("INTONE_API_KEY")):
        settings = dataclasses.replace(settings, api_key=key)
    place = find_stage(settings.from_run)  # a mistyped run is said before anything is started
    build_to_generate(settings.device)  # while the server and the engine's process start
    run, path = place.run.name if place.run else None, str(place.folder)

    def ready(served: Served, url: str) -> None:
        result = {"url": url, "model": served.name, "step": served.step, "context": served.context}
        answer = Answer(result, f"{served.name} answers at {url} (Ctrl-C ends it)", run=run, path=path)
        print(json_line("serve", answer) if settings.json else answer.text, flush=True)

    if not is_loopback(settings.host) and settings.api_key is None:
        say(f"everybody who reaches {settings.host} may use this server: it has no --api-key")
    arguments = {"device": settings.device, "dtype": settings.dtype, "weights": settings.weights}
    if settings.num_slots != "auto":
        arguments["num_slots"] = settings.num_slots  # type: ignore[assignment]
    code = serve_models(Models(settings.from_run, arguments=arguments), settings, ready)
    outcome = {EXIT_DONE: "done", EXIT_CHECK_FAILED: "error"}.get(code, "stopped")
    return Answer({}, run=run, path=path, outcome=outcome, exit=code, is_said=True)


def serve_models(models: Models, settings: ServeSettings, ready: Callable[[Served, str], None]) -> int:
    """Serves models until a signal -> exit code. Raises UserError where the port or the model is not to be had."""
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # its warnings quote what clients sent
    listening = bind(settings.host, settings.port)
    try:
        return asyncio.run(_serve(models, settings, ready, listening))
    finally:
        listening.close()


async def _serve(
    models: Models, settings: ServeSettings, ready: Callable[[Served, str], None], listening: socket.socket
) -> int:
    server = listener(create_app(models, settings), drain_s=settings.drain_s)
    url = url_of(listening)
    serving = asyncio.create_task(server.serve(sockets=[listening]))

    async def start() -> None:
        served = await models.start()
        ready(served, url)

    starting = asyncio.create_task(start())
    try:
        await asyncio.wait((serving, starting), return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
        await serving
    except EngineGone as error:
        raise UserError(str(error), fix="what it said stands above") from None
    finally:
        starting.cancel()
        server.should_exit = True
        server.force_exit = server.force_exit or not models.is_healthy
        await asyncio.gather(serving, starting, return_exceptions=True)
        await models.close()
    return server.exit_code
