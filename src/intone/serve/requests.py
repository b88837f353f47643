"""From a checked body to what the engine is asked: prompts as token ids, sampling, tools that are on."""

import asyncio
from dataclasses import dataclass
from typing import Any, Literal

from intone.data.chat import render_prompt
from intone.data.tokenizer import Tokenizer
from intone.engine.requests import Request, check_ids, check_prompt
from intone.errors import UserError
from intone.serve.bodies import ChatBody, CompletionBody, Sampling, form_of
from intone.serve.models import Served
from intone.serve.problems import Problem, bad_value
from intone.serve.settings import ServeSettings

LONG_CHARACTERS = 4_000  # a text that takes a millisecond or more is made tokens beside the event loop


@dataclass(frozen=True)
class Asked:
    """One HTTP request as the engine gets it: a request per prompt, as JSON for Request."""

    kind: Literal["chat", "text"]
    requests: list[dict[str, Any]]
    n: int
    num_top: int | None
    echoes: list[str]
    stream: bool
    include_usage: bool
    param: str  # the field that holds the prompts

    @property
    def num_prompt_tokens(self) -> int:
        return sum(len(request["prompt"]) for request in self.requests)


async def asked_of(body: ChatBody | CompletionBody, served: Served, settings: ServeSettings) -> Asked:
    """Raises Problem that names the field."""
    fields = type(body).model_fields
    is_chat = isinstance(body, ChatBody)
    param = "messages" if is_chat else "prompt"
    prompts = await _prompts(body, served.tokenizer)
    for prompt in prompts:
        _check_length(prompt, served, param)
    try:
        shared = sampling(body, served, settings)
        requests = [{**shared, "prompt": prompt} for prompt in prompts]
        bias = {int(token): value for token, value in shared["logit_bias"].items()}
        Request(**{**requests[0], "logit_bias": bias})
        check_ids("stop_token_ids", body.stop_token_ids or (), vocab_size=served.vocab_size)
        check_ids("logit_bias", list(bias), vocab_size=served.vocab_size)
    except UserError as error:
        raise bad_value(error, [*fields]) from None
    num_top: int | None = None
    echoes: list[str] = []
    if isinstance(body, ChatBody):
        num_top = (body.top_logprobs or 0) if body.logprobs else None
    else:
        num_top = body.logprobs
        if body.echo:
            echoes = [text if isinstance(text, str) else served.tokenizer.decode(text) for text in body.prompts]
    options = body.stream_options
    return Asked(
        "chat" if is_chat else "text", requests, body.n, num_top, echoes, body.stream,
        options is not None and options.include_usage, param,
    )  # fmt: skip


def sampling(body: Sampling, served: Served, settings: ServeSettings) -> dict[str, Any]:
    """What all prompts of a body share, by the names of Request. Raises Problem, UserError."""
    asked: dict[str, Any] = {
        "temperature": settings.temperature if body.temperature is None else body.temperature,
        "top_k": body.top_k if "top_k" in body.model_fields_set else settings.top_k,
        "top_p": 1.0 if body.top_p is None else body.top_p,
        "min_p": body.min_p or 0.0,
        "seed": body.seed,
        "n": body.n,
        "stop": body.stops,
        "min_tokens": body.min_tokens,
        "repetition_penalty": 1.0 if body.repetition_penalty is None else body.repetition_penalty,
        "presence_penalty": body.presence_penalty or 0.0,
        "frequency_penalty": body.frequency_penalty or 0.0,
        "logit_bias": body.logit_bias or {},
        "tools": _tools(body, served, settings),
    }
    if isinstance(body, ChatBody):
        limit = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
        num_top = body.top_logprobs or 0
        return {**asked, "max_tokens": limit, "logprobs": bool(body.logprobs), "top_logprobs": num_top,
                "structured": body.form}  # fmt: skip
    assert isinstance(body, CompletionBody), "there are two kinds"
    has_logprobs = body.logprobs is not None
    return {**asked, "max_tokens": body.max_tokens, "logprobs": has_logprobs, "top_logprobs": body.logprobs or 0,
            "structured": form_of(body.structured_outputs)}  # fmt: skip


async def _prompts(body: ChatBody | CompletionBody, tokenizer: Tokenizer) -> list[list[int]]:
    if isinstance(body, CompletionBody):
        size = sum(len(prompt) for prompt in body.prompts)

        def encoded() -> list[list[int]]:
            return [
                [tokenizer.bos, *tokenizer.encode(prompt)] if isinstance(prompt, str) else prompt
                for prompt in body.prompts
            ]

        return await asyncio.to_thread(encoded) if size > LONG_CHARACTERS else encoded()
    try:
        messages = body.conversation()
    except UserError as error:
        raise _bad_messages(error) from None
    contents = [message.content for message in messages]
    size = sum(
        len(content) if isinstance(content, str) else sum(len(part.text) for part in content) for content in contents
    )
    try:
        if size > LONG_CHARACTERS:
            return [await asyncio.to_thread(render_prompt, messages, tokenizer)]
        return [render_prompt(messages, tokenizer)]
    except UserError as error:
        raise _bad_messages(error) from None


def _bad_messages(error: UserError) -> Problem:
    return Problem(400, f"messages: {error}".replace("\n  fix:", ";"), param="messages")


def _check_length(prompt: list[int], served: Served, param: str) -> None:
    if len(prompt) >= served.context:
        raise Problem(
            400, f"{param}: {len(prompt):,} tokens do not fit into this model's context of {served.context:,} with an "
            "answer; shorten the text", param=param, code="context_length_exceeded",
        )  # fmt: skip
    try:
        check_prompt(prompt, vocab_size=served.vocab_size, context=served.context)
    except UserError as error:
        raise Problem(400, f"{param}: {error}".replace("\n  fix:", ";"), param=param) from None


def _tools(body: Sampling, served: Served, settings: ServeSettings) -> list[str]:
    """Names of the tools that the answer may call."""
    if isinstance(body, ChatBody) and body.tool_choice == "none":
        return []
    if body.builtin_tools is None:
        return ["calculator"] * settings.tools + ["python"] * settings.python
    state = served.link.facts["tools"].get("python", "off")
    if "python" in body.builtin_tools and not (settings.python and state == "on"):
        why = "it was not started with --python" if not settings.python else state
        raise Problem(400, f"builtin_tools: python is off on this server: {why}", param="builtin_tools")
    return list(dict.fromkeys(body.builtin_tools))
