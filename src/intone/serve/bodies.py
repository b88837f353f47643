"""What a client may send: every field with its kind and bounds; anything else is refused by name."""

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from intone.data.chat import Message, parse_messages
from intone.errors import UserError

MOST_SAMPLES = 128  # of one prompt in one request (OpenAI's bound)
MOST_TOP = 20
MOST_PROMPTS = 1024
INT64 = 1 << 63

Stop = Annotated[str, StringConstraints(min_length=1, max_length=1000)]
TokenId = Annotated[int, Field(ge=0)]


class Body(BaseModel):
    """Values are taken as they are written: no "5" for 5, no NaN, and no field that nothing comes of."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class TextPart(Body):
    """A piece of a message."""

    type: Literal["text"]
    text: str


Content = str | list[TextPart]


class SystemMessage(Body):
    role: Literal["system", "developer"]
    content: Content


class UserMessage(Body):
    role: Literal["user"]
    content: Content


class CalledFunction(Body):
    """The tool's name, and its input as the text of a JSON object: {"input": "6*7"}."""

    name: str
    arguments: str


class CalledTool(Body):
    id: str
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = None


class ToolMessage(Body):
    """What a tool answered; content null: it refused."""

    role: Literal["tool"]
    content: Content | None
    tool_call_id: str
    name: str | None = None


class AssistantMessage(Body):
    """An earlier answer. With tool_messages the calls came before the text, as an answer of this server shows them."""

    role: Literal["assistant"]
    content: Content | None = None
    tool_calls: list[CalledTool] | None = None
    tool_messages: list[ToolMessage] | None = None
    refusal: None = None
    annotations: None = None
    audio: None = None
    function_call: None = None


AnyMessage = Annotated[SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")]


class StreamOptions(Body):
    """include_usage: a last chunk with the numbers of tokens."""

    include_usage: bool = False


class TextFormat(Body):
    type: Literal["text"]


class JsonFormat(Body):
    """Any JSON object."""

    type: Literal["json_object"]


class NamedSchema(Body):
    """A JSON schema that the answer follows; it is always followed strictly."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=64)]
    schema_: dict[str, Any] = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None


class SchemaFormat(Body):
    type: Literal["json_schema"]
    json_schema: NamedSchema


class StructuredOutputs(Body):
    """A form of the answer: one of these."""

    json_: dict[str, Any] | None = Field(default=None, alias="json")
    regex: str | None = None
    choice: list[str] | None = None

    @model_validator(mode="after")
    def _one(self) -> "StructuredOutputs":
        if sum(value is not None for value in (self.json_, self.regex, self.choice)) != 1:
            raise ValueError("give one of json, regex and choice")
        return self


Format = Annotated[TextFormat | JsonFormat | SchemaFormat, Field(discriminator="type")]


class Sampling(Body):
    """What both kinds of requests share. Without temperature and top_k the server's own hold: see /v1/models."""

    model: str | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: int = Field(default=1, ge=1, le=MOST_SAMPLES)
    seed: int | None = Field(default=None, ge=-INT64, le=INT64 - 1)
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=64)] | None = None
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=1, le=INT64 - 1)
    min_p: float | None = Field(default=None, ge=0, le=1)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    repetition_penalty: float | None = Field(default=None, gt=0, le=100)
    logit_bias: Annotated[dict[str, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=1024)] | None = None
    min_tokens: int = Field(default=0, ge=0, le=INT64 - 1)
    builtin_tools: list[Literal["calculator", "python"]] | None = None
    structured_outputs: StructuredOutputs | None = None
    # names whoever asks; the answer does not depend on it and it is not kept
    user: str | None = None

    @field_validator("logit_bias")
    @classmethod
    def _token_ids(cls, bias: dict[str, float] | None) -> dict[str, float] | None:
        for token in bias or ():
            if not (token.isascii() and token.isdigit() and len(token) <= 10):
                raise ValueError("keys must be token ids")
        return bias

    @model_validator(mode="after")
    def _options_need_a_stream(self) -> "Sampling":
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options needs stream: true")
        return self

    @property
    def stops(self) -> list[str | int]:
        """stop and stop_token_ids together, as the engine takes them."""
        texts = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return [*texts, *(self.stop_token_ids or [])]


class ChatBody(Sampling):
    """POST /v1/chat/completions."""

    messages: list[AnyMessage] = Field(min_length=1, max_length=4096)
    max_tokens: int | None = Field(default=None, ge=1, le=INT64 - 1)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=INT64 - 1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=MOST_TOP)
    response_format: Format | None = None
    # none: the model may not use its tools; auto: it may
    tool_choice: Literal["none", "auto"] | None = None
    store: Literal[False] | None = None

    @model_validator(mode="after")
    def _combinations(self) -> "ChatBody":
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise ValueError("max_tokens and max_completion_tokens are two names of one field; give one")
        if self.tool_choice == "none" and self.builtin_tools:
            raise ValueError("tool_choice none and builtin_tools contradict each other")
        if self.structured_outputs is not None and not isinstance(self.response_format, TextFormat | None):
            raise ValueError("response_format and structured_outputs are both given")
        return self

    @property
    def form(self) -> dict[str, Any] | None:
        """The form of the answer as the engine takes it."""
        if isinstance(self.response_format, JsonFormat):
            return {"json_schema": {"type": "object"}}
        if isinstance(self.response_format, SchemaFormat):
            return {"json_schema": self.response_format.json_schema.schema_}
        return form_of(self.structured_outputs)

    def conversation(self) -> list[Message]:
        """The messages as the engine takes them. Raises UserError where they are no conversation."""
        rows: list[dict[str, Any]] = []
        for message in self.messages:
            text = _text(message.content)
            if isinstance(message, AssistantMessage):
                parts = _assistant_parts(message, text)
                if rows and rows[-1]["role"] == "assistant" and rows[-1]["content"][-1]["type"] == "call":
                    rows[-1]["content"] += parts  # the tool refused, and the model went on
                elif parts:
                    rows.append({"role": "assistant", "content": parts})
                else:
                    rows.append({"role": "assistant", "content": [{"type": "text", "text": ""}]})
            elif not isinstance(message, ToolMessage):
                role = "user" if isinstance(message, UserMessage) else "system"
                rows.append({"role": role, "content": text})
            elif message.content is not None:
                rows.append({"role": "tool", "content": text})
        return parse_messages(rows)


class CompletionBody(Sampling):
    """POST /v1/completions."""

    prompt: (
        str
        | Annotated[list[str], Field(min_length=1, max_length=MOST_PROMPTS)]
        | Annotated[list[TokenId], Field(min_length=1)]
        | Annotated[list[Annotated[list[TokenId], Field(min_length=1)]], Field(min_length=1, max_length=MOST_PROMPTS)]
    )
    # of every answer; as in OpenAI's API, few where nothing is said
    max_tokens: int | None = Field(default=16, ge=1, le=INT64 - 1)
    # likeliest tokens to report with each token
    logprobs: int | None = Field(default=None, ge=0, le=MOST_TOP)
    echo: bool = False

    @model_validator(mode="after")
    def _echo_has_no_numbers(self) -> "CompletionBody":
        if self.echo and self.logprobs is not None:
            raise ValueError("echo and logprobs together are not supported: prompts have no logprobs here")
        return self

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """One or more prompts, each a text or token ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [self.prompt]
        return self.prompt


def form_of(outputs: StructuredOutputs | None) -> dict[str, Any] | None:
    """structured_outputs as the engine takes it."""
    if outputs is None:
        return None
    if outputs.json_ is not None:
        return {"json_schema": outputs.json_}
    return {"regex": outputs.regex} if outputs.regex is not None else {"choice": outputs.choice}


def _text(content: Content | None) -> str:
    if isinstance(content, list):
        return "".join(part.text for part in content)
    return content or ""


def _assistant_parts(message: AssistantMessage, text: str) -> list[dict[str, str]]:
    texts = [{"type": "text", "text": text}] if text else []
    outputs = {entry.tool_call_id: entry for entry in message.tool_messages or ()}
    called: list[dict[str, str]] = []
    for call in message.tool_calls or ():
        called.append({"type": "call", "text": _input_of(call)})
        answer = outputs.pop(call.id, None)
        if answer is not None and answer.content is not None:
            called.append({"type": "output", "text": _text(answer.content)})
    if outputs:
        raise UserError(f"tool_messages answer calls {sorted(outputs)} that are not in tool_calls")
    return [*called, *texts] if message.tool_messages else [*texts, *called]


def _input_of(call: CalledTool) -> str:
    try:
        found = json.loads(call.function.arguments)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or set(found) != {"input"} or not isinstance(found["input"], str):
        raise UserError('arguments of a tool call must be {"input": TEXT} as JSON text')
    return found["input"]
