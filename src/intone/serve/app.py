"""The HTTP application: OpenAI's routes, health, metrics, and what every answer has in common."""

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

import intone
from intone.errors import UserError
from intone.serve.admission import Admission
from intone.serve.answers import Answers
from intone.serve.bodies import ChatBody, CompletionBody, Sampling
from intone.serve.gate import Gate, is_loopback
from intone.serve.generation import ClientGone, Generation
from intone.serve.metrics import Metrics
from intone.serve.models import Models, Served
from intone.serve.pages import pages_router
from intone.serve.problems import Problem, bad_value, invalid, json_response, unavailable
from intone.serve.requests import asked_of
from intone.serve.settings import ServeSettings
from intone.serve.streams import EventStream

FIELDS: dict[str, type[Sampling]] = {"/v1/chat/completions": ChatBody, "/v1/completions": CompletionBody}
ERROR = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
            "required": ["message", "type", "param", "code"],
        }
    },
    "required": ["error"],
}
STATUSES = {
    400: "a field is wrong; param names it",
    401: "the API key is missing or wrong",
    404: "no such model",
    408: "the body did not arrive in time",
    413: "the body is too large",
    429: "too much waits; Retry-After says when to come back",
    503: "the model is not ready, has stopped, or took too long",
}


class Server:
    """What the routes share."""

    def __init__(self, models: Models, settings: ServeSettings, metrics: Metrics) -> None:
        self.models = models
        self.settings = settings
        self.metrics = metrics
        self.admission = Admission(settings.max_queue, settings.max_queue_tokens)

    async def complete(self, body: ChatBody | CompletionBody, request: Request) -> Response:
        """The answer of both kinds of requests."""
        served = self.models.find(body.model)
        served.num_open += 1
        self.metrics.open.inc()
        is_handed_on = False

        def finish() -> None:
            served.num_open -= 1
            self.metrics.open.dec()

        try:
            asked = await asked_of(body, served, self.settings)
            self.admission.check(len(asked.requests), asked.num_prompt_tokens, param=asked.param)
            answers = Answers(
                asked.kind, model=served.name, n=asked.n, num_prompts=len(asked.requests), tokenizer=served.tokenizer,
                num_top=asked.num_top, echoes=asked.echoes, include_usage=asked.include_usage,
            )  # fmt: skip
            generation = Generation(
                served.link, asked.requests, admission=self.admission, metrics=self.metrics, model=served.name,
                queue_timeout_s=self.settings.queue_timeout_s, timeout_s=self.settings.timeout_s,
                arrived_s=request.state.arrived_s,
            )  # fmt: skip
            try:
                await generation.begin(request.receive)
                if asked.stream:
                    is_handed_on = True
                    return EventStream(
                        generation, answers, write_timeout_s=self.settings.client_timeout_s, finish=finish
                    )
                async for messages in generation.messages():
                    answers.add(messages)
                return json_response(answers.whole())
            except ClientGone:
                return Response(status_code=499)  # nobody reads it
            finally:
                if not is_handed_on:
                    await generation.close()
        finally:
            if not is_handed_on:
                finish()

    def entry(self, served: Served) -> dict[str, Any]:
        """A model as /v1/models lists it."""
        return {
            "id": served.name,
            "object": "model",
            "created": served.created,
            "owned_by": "intone",
            "context": served.context,
            "step": served.step,
            "is_default": served is self.models.default,
            "defaults": {"temperature": self.settings.temperature, "top_k": self.settings.top_k},
        }


def create_app(models: Models, settings: ServeSettings) -> FastAPI:
    """The application over models, which the caller starts and closes."""
    metrics = Metrics()
    server = Server(models, settings, metrics)

    app = FastAPI(
        title="intone", version=intone.__version__,
        description="Language models that were trained here, behind OpenAI's API.",
        responses={status: {"description": text, "content": {"application/json": {"schema": ERROR}}}
                   for status, text in STATUSES.items()},
    )  # fmt: skip
    app.state.server = server
    _add_handlers(app)
    _add_routes(app, server)
    app.include_router(pages_router(load=models.load))  # the gate asks for the key below /api/
    app.add_middleware(
        Gate,
        key=settings.api_key, is_local=is_loopback(settings.host), origins=settings.cors_origin,
        max_body_bytes=int(settings.max_body_mib * 2**20), body_timeout_s=settings.client_timeout_s, metrics=metrics,
    )  # fmt: skip
    if settings.cors_origin:
        app.add_middleware(
            CORSMiddleware,  # around the gate: web pages must be able to read its refusals
            allow_origins=list(settings.cors_origin), allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "X-Request-Id"],
            expose_headers=["X-Request-Id", "Retry-After"],
        )  # fmt: skip
    return app


def _add_handlers(app: FastAPI) -> None:
    async def on_problem(_request: Request, error: Exception) -> Response:
        assert isinstance(error, Problem)
        return error.response

    async def on_http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message = {404: f"there is no {request.url.path[:200]} here", 405: f"{request.method} is not for this path"}
        text = message.get(error.status_code, str(error.detail))
        return Problem(error.status_code, text, headers=error.headers).response

    async def on_invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        body = FIELDS.get(request.url.path)
        return invalid(error.errors(), [*body.model_fields] if body is not None else []).response

    async def on_user_error(_request: Request, error: Exception) -> Response:
        assert isinstance(error, UserError)
        return bad_value(error, []).response

    app.add_exception_handler(Problem, on_problem)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(UserError, on_user_error)


def _add_routes(app: FastAPI, server: Server) -> None:
    models = server.models

    @app.post("/v1/chat/completions")
    async def chat_completions(body: ChatBody, request: Request) -> Response:
        """The next message of a conversation, whole or as a stream of server-sent events."""
        return await server.complete(body, request)

    @app.post("/v1/completions")
    async def completions(body: CompletionBody, request: Request) -> Response:
        """Texts that are gone on with."""
        return await server.complete(body, request)

    @app.get("/v1/models")
    async def list_models() -> Response:
        """The models that answer now, the default one first."""
        if models.default is None:
            raise unavailable("the model is being loaded", code="loading")
        return json_response({"object": "list", "data": [server.entry(served) for served in models.all]})

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> Response:
        """One of them."""
        return json_response(server.entry(models.find(name)))

    @app.get("/health")
    async def health() -> Response:
        """200 when requests are answered, 503 while the model loads and when its engine has stopped."""
        if models.default is None:
            raise unavailable("the model is being loaded", code="loading")
        if not models.is_healthy:
            raise unavailable("the engine has stopped; start the server again", code="engine_stopped")
        return json_response({"status": "ok", "model": models.default.name})

    @app.get("/version")
    async def version() -> Response:
        """The version of intone."""
        return json_response({"version": intone.__version__})

    @app.get("/metrics")
    async def metrics() -> Response:
        """Numbers for Prometheus."""
        found = {}
        for served in models.all:
            waiting = server.admission.num_requests if served is models.default else 0
            found[served.name] = (waiting, await served.link.stats())
        return Response(server.metrics.page(found), media_type=CONTENT_TYPE_LATEST)
