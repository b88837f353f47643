"""Conversations: the message types, and how they become token ids with a mask of what is learned."""

from dataclasses import dataclass
from typing import Any, Literal, Protocol

from intone.errors import UserError

# nanochat's nine special tokens, in its order; the checkpoint format and the chat template rely on it
BOS = "<|bos|>"
SPECIALS = (
    BOS,
    "<|user_start|>",
    "<|user_end|>",
    "<|assistant_start|>",
    "<|assistant_end|>",
    "<|python_start|>",
    "<|python_end|>",
    "<|output_start|>",
    "<|output_end|>",
)

# render() and render_prompt() in the language of transformers' chat templates: they must change together
CHAT_TEMPLATE = """
{{- bos_token -}}
{%- set state = namespace(system='', last='', open=false, after_output=false) -%}
{%- for message in messages -%}
  {%- if message.role == 'system' -%}
    {%- if not loop.first -%}{{ raise_exception('a system message must be the first') }}{%- endif -%}
    {%- set state.system = message.content + '\\n\\n' -%}
  {%- elif message.role == 'user' -%}
    {%- if state.last == 'user' -%}{{ raise_exception('user and assistant must alternate') }}{%- endif -%}
    {%- if state.open -%}{{- '<|assistant_end|>' -}}{%- endif -%}
    {{- '<|user_start|>' + state.system + message.content + '<|user_end|>' -}}
    {%- set state.system = '' -%}
    {%- set state.open = false -%}
  {%- elif message.role == 'assistant' -%}
    {%- if state.last != 'user' and not state.after_output -%}
      {{- raise_exception('user and assistant must alternate, starting with user') -}}
    {%- endif -%}
    {%- if not state.open -%}{{- '<|assistant_start|>' -}}{%- endif -%}
    {%- set state.open = true -%}
    {%- set state.after_output = false -%}
    {%- if message.content is string -%}
      {{- message.content -}}
    {%- else -%}
      {%- for part in message.content -%}
        {%- set state.after_output = part.type == 'output' -%}
        {%- if part.type == 'text' -%}
          {{- part.text -}}
        {%- elif part.type == 'call' -%}
          {{- '<|python_start|>' + part.text + '<|python_end|>' -}}
        {%- elif part.type == 'output' -%}
          {{- '<|output_start|>' + part.text + '<|output_end|>' -}}
        {%- else -%}
          {{- raise_exception('unknown content part ' + part.type) -}}
        {%- endif -%}
      {%- endfor -%}
    {%- endif -%}
  {%- elif message.role == 'tool' -%}
    {%- if not state.open -%}{{ raise_exception('a tool message must follow an assistant message') }}{%- endif -%}
    {{- '<|output_start|>' + message.content + '<|output_end|>' -}}
    {%- set state.after_output = true -%}
  {%- else -%}
    {{- raise_exception('unknown role ' + message.role) -}}
  {%- endif -%}
  {%- set state.last = message.role -%}
{%- endfor -%}
{%- if state.open -%}{{- '<|assistant_end|>' -}}{%- endif -%}
{%- if add_generation_prompt -%}
  {%- if state.last != 'user' -%}{{ raise_exception('the last message must be from the user') }}{%- endif -%}
  {{- '<|assistant_start|>' -}}
{%- endif -%}
""".strip()

Role = Literal["system", "user", "assistant", "tool"]
ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class Part:
    """A piece of an assistant's turn: text it says, a tool call it writes, or the tool's output."""

    kind: Literal["text", "call", "output"]
    text: str


@dataclass(frozen=True)
class Message:
    """One turn. content is text, or for an assistant that used a tool a tuple of parts in order."""

    role: Role
    content: str | tuple[Part, ...]

    @property
    def visible(self) -> str:
        """What a person reads: the text without tool calls and outputs."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content if part.kind == "text")


class Encoder(Protocol):
    """The part of a tokenizer that rendering needs."""

    def encode(self, text: str) -> list[int]: ...

    def special(self, name: str) -> int: ...


def render(messages: list[Message], tokenizer: Encoder) -> tuple[list[int], list[int]]:
    """A whole conversation -> (ids, mask), equal lengths; mask 1: the model learns to write this token.

    Learned: the assistant's text and tool calls with their end tokens. Not learned: the person's words,
    tool outputs, and the tokens that open a turn. A system message goes in front of the first user turn.
    Raises UserError where roles do not alternate user, assistant, user, ...
    """
    ids, mask = [tokenizer.special(BOS)], [0]

    def put(new: list[int], learned: int) -> None:
        ids.extend(new)
        mask.extend([learned] * len(new))

    for message in normalised(messages):
        if message.role == "user":
            start, end = tokenizer.special("<|user_start|>"), tokenizer.special("<|user_end|>")
            put([start, *tokenizer.encode(message.visible), end], 0)
            continue
        put([tokenizer.special("<|assistant_start|>")], 0)
        parts = (Part("text", message.content),) if isinstance(message.content, str) else message.content
        for part in parts:
            text = tokenizer.encode(part.text)
            if part.kind == "text":
                put(text, 1)
            elif part.kind == "call":
                put([tokenizer.special("<|python_start|>"), *text, tokenizer.special("<|python_end|>")], 1)
            else:
                put([tokenizer.special("<|output_start|>"), *text, tokenizer.special("<|output_end|>")], 0)
        put([tokenizer.special("<|assistant_end|>")], 1)
    return ids, mask


def render_prompt(messages: list[Message], tokenizer: Encoder) -> list[int]:
    """The ids after which the model writes its answer: the conversation so far and an opened assistant turn.

    The last message must be the person's. Raises UserError otherwise.
    """
    if not messages or messages[-1].role != "user":
        raise UserError(
            "the last message must be from the user",
            value=messages[-1].role if messages else None,
            fix="end the list with {'role': 'user', 'content': ...}",
        )
    ids, _ = render(messages, tokenizer)
    return [*ids, tokenizer.special("<|assistant_start|>")]


def normalised(messages: list[Message]) -> list[Message]:
    """System text merged into the first user turn; alternation checked. Raises UserError."""
    rest = list(messages)
    if rest and rest[0].role == "system":
        if len(rest) < 2 or rest[1].role != "user":
            raise UserError("a system message must be followed by a user message")
        rest[:2] = [Message("user", f"{rest[0].visible}\n\n{rest[1].visible}")]
    for number, message in enumerate(rest):
        expected = "user" if number % 2 == 0 else "assistant"
        if message.role != expected:
            raise UserError(
                f"message {number + 1} has role {message.role!r} where {expected!r} is expected",
                value=message.role,
                fix="user and assistant must alternate, starting with user",
            )
    return rest


def parse_messages(value: Any) -> list[Message]:
    """Rows of a conversations file -> messages; tool calls of an assistant are joined to its turn.

    Accepts {"role", "content"} with content a string, or for an assistant a list of
    {"type": "text" | "call" | "output", "text"}; a "tool" message after an assistant is the output of its call,
    and the assistant message that follows goes on with the same turn.
    Raises UserError that names the role or key it does not know.
    """
    if not isinstance(value, list) or not value:
        raise UserError("messages must be a non-empty list", value=type(value).__name__)
    messages: list[Message] = []
    for entry in value:
        message = _parse_message(entry)
        last = messages[-1] if messages else None
        if message.role == "tool":
            if last is None or last.role != "assistant":
                raise UserError("a tool message must follow an assistant message")
            messages[-1] = Message("assistant", (*_parts(last), Part("output", message.visible)))
        elif message.role == "assistant" and last is not None and last.role == "assistant" and _ends_in_output(last):
            messages[-1] = Message("assistant", (*_parts(last), *_parts(message)))
        else:
            messages.append(message)
    normalised(messages)
    return messages


def _parse_message(entry: Any) -> Message:
    if not isinstance(entry, dict):
        raise UserError(f"a message must be an object, not {type(entry).__name__}")
    role, content = entry.get("role"), entry.get("content")
    if role not in ROLES:
        raise UserError(f"unknown role {role!r}", value=role, fix=f"known roles: {', '.join(ROLES)}")
    if isinstance(content, str):
        return Message(role, content)
    if role == "assistant" and isinstance(content, list):
        return Message(role, _joined([_parse_part(part) for part in content]))
    raise UserError(f"content of a {role} message must be text, not {type(content).__name__}", value=str(role))


def _parse_part(part: Any) -> Part:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind not in ("text", "call", "output") or not isinstance(part.get("text"), str):
        raise UserError(f"unknown content part {kind!r}", value=kind, fix="types: text, call, output")
    return Part(kind, part["text"])


def _joined(parts: list[Part]) -> tuple[Part, ...]:
    """Neighbouring texts as one, so that ids do not depend on how a text was divided."""
    joined: list[Part] = []
    for part in parts:
        if joined and joined[-1].kind == part.kind == "text":
            joined[-1] = Part("text", joined[-1].text + part.text)
        else:
            joined.append(part)
    return tuple(joined)


def _parts(message: Message) -> tuple[Part, ...]:
    return (Part("text", message.content),) if isinstance(message.content, str) else message.content


def _ends_in_output(message: Message) -> bool:
    return not isinstance(message.content, str) and bool(message.content) and message.content[-1].kind == "output"
