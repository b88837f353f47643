"""From an engine's messages to the JSON of OpenAI's API: whole answers and the chunks of a stream, for both routes."""

import json
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from intone.data.chat import SPECIALS
from intone.data.tokenizer import Tokenizer

LEAST_LOGPROB = -9999.0  # what OpenAI's API says for impossible; JSON has no infinity


@dataclass
class Choice:
    """One answer as it grows."""

    text: list[str] = field(default_factory=list)
    calls: list[dict[str, Any]] = field(default_factory=list)
    outputs: list[dict[str, Any]] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    text_size: int = 0
    reason: str | None = None
    inside: str | None = None  # the special token that must come before text is read again
    has_begun: bool = False


class Answers:
    """All answers of one HTTP request. kind: the route. num_top None: no log-probabilities were asked for.

    echoes: per prompt the text that a completion repeats in front. Messages are those of Generation.messages().
    """

    def __init__(
        self, kind: Literal["chat", "text"], *, model: str, n: int, num_prompts: int, tokenizer: Tokenizer,
        num_top: int | None, echoes: Sequence[str] = (), include_usage: bool = False,
    ) -> None:  # fmt: skip
        self.id = ("chatcmpl-" if kind == "chat" else "cmpl-") + secrets.token_hex(12)
        self.created = int(time.time())
        self._kind = kind
        self._model = model
        self._n = n
        self._tokenizer = tokenizer
        self._num_top = num_top
        self._include_usage = include_usage
        self._choices = [Choice() for _ in range(n * num_prompts)]
        self._prompt_tokens = [0] * num_prompts
        self._cached_tokens = [0] * num_prompts
        self._new_tokens = 0
        self._specials = {tokenizer.special(name): name for name in SPECIALS}
        for place, text in enumerate(echoes):
            for choice in self._choices[place * n : (place + 1) * n]:
                choice.text.append(text)
                choice.text_size = len(text)
        self._echoes = list(echoes)

    def chunks(self, messages: Sequence[Sequence[Any]]) -> list[dict[str, Any]]:
        """What a stream says for these messages."""
        found: list[dict[str, Any]] = []
        for message in messages:
            index = message[1] * self._n + message[2]
            choice = self._choices[index]
            if not choice.has_begun:
                choice.has_begun = True
                found += self._first_chunk(index, message[1])
            gained = self._take(choice, message)
            if gained or message[0] == "done":
                found.append(self._chunk(index, gained, choice.reason))
        return found

    def last_chunks(self) -> list[dict[str, Any]]:
        """What a stream says when all has ended."""
        if not self._include_usage:
            return []
        return [{**self._head(is_chunk=True), "choices": [], "usage": self.usage}]

    def add(self, messages: Sequence[Sequence[Any]]) -> None:
        """Takes messages for whole()."""
        for message in messages:
            self._take(self._choices[message[1] * self._n + message[2]], message)

    def whole(self) -> dict[str, Any]:
        """The answer of a request that did not ask for a stream."""
        choices = [self._whole_choice(index, choice) for index, choice in enumerate(self._choices)]
        return {**self._head(is_chunk=False), "choices": choices, "usage": self.usage}

    @property
    def usage(self) -> dict[str, Any]:
        """Every prompt counts once, however many answers it has."""
        prompt, new = sum(self._prompt_tokens), self._new_tokens
        return {
            "prompt_tokens": prompt,
            "completion_tokens": new,
            "total_tokens": prompt + new,
            "prompt_tokens_details": {"cached_tokens": sum(self._cached_tokens)},
        }

    def _head(self, *, is_chunk: bool) -> dict[str, Any]:
        name = "text_completion" if self._kind == "text" else "chat.completion" + (".chunk" if is_chunk else "")
        head = {"id": self.id, "object": name, "created": self.created, "model": self._model}
        return {**head, "usage": None} if is_chunk and self._include_usage else head

    def _first_chunk(self, index: int, place: int) -> list[dict[str, Any]]:
        if self._kind == "chat":
            return [self._chunk(index, {"role": "assistant", "content": ""}, None)]
        return [self._chunk(index, {"text": self._echoes[place]}, None)] if self._echoes else []

    def _chunk(self, index: int, gained: dict[str, Any], reason: str | None) -> dict[str, Any]:
        logprobs = gained.pop("logprobs", None)
        content = {"delta": gained} if self._kind == "chat" else {"text": gained.get("text", "")}
        choice = {"index": index, **content, "logprobs": logprobs, "finish_reason": reason}
        return {**self._head(is_chunk=True), "choices": [choice]}

    def _take(self, choice: Choice, message: Sequence[Any]) -> dict[str, Any]:
        """Adds a message to a choice -> what is new, as a stream says it."""
        kind, place = message[0], message[1]
        if kind == "done":
            _, _, _, reason, prompt, new, cached = message
            choice.reason = reason
            self._new_tokens += new
            if message[2] == 0:
                self._prompt_tokens[place], self._cached_tokens[place] = prompt, cached
            return {}
        if kind == "call":
            return self._called(choice, *message[3:])
        text, details = message[3], message[5]
        gained: dict[str, Any] = {}
        if self._num_top is not None:
            found = self._details(choice, details or [])
            if found:
                gained["logprobs"] = self._as_logprobs(choice, found)
                choice.logprobs += found
        if text:
            choice.text.append(text)
            choice.text_size += len(text)
            gained["content" if self._kind == "chat" else "text"] = text
        return gained

    def _called(self, choice: Choice, name: str, text: str, output: str | None) -> dict[str, Any]:
        if self._kind == "text":
            return {}
        number = f"call_{self.id[-8:]}_{len(choice.calls)}"
        function = {"name": name, "arguments": json.dumps({"input": text}, ensure_ascii=False)}
        call = {"id": number, "type": "function", "function": function}
        answer = {"role": "tool", "tool_call_id": number, "name": name, "content": output}
        choice.calls.append(call)
        choice.outputs.append(answer)
        return {"tool_calls": [{"index": len(choice.calls) - 1, **call}], "tool_messages": [answer]}

    def _whole_choice(self, index: int, choice: Choice) -> dict[str, Any]:
        text = "".join(choice.text)
        logprobs: dict[str, Any] | None = None
        if self._num_top is not None:
            logprobs = self._as_logprobs(choice, choice.logprobs)
        if self._kind == "text":
            return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": choice.reason}
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if choice.calls:
            message |= {"tool_calls": choice.calls, "tool_messages": choice.outputs}
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": choice.reason}

    def _details(self, choice: Choice, details: Sequence[Sequence[Any]]) -> list[dict[str, Any]]:
        """The tokens of the readable text with their log-probabilities: no special tokens, no tool's words."""
        found = []
        for token, logprob, top in details:
            name = self._specials.get(token)
            if name in ("<|python_start|>", "<|output_start|>"):
                choice.inside = name.replace("start", "end")
            elif name is not None:
                choice.inside = None if name == choice.inside else choice.inside
            elif choice.inside is None and logprob is not None:
                likeliest = [self._token(other, value) for other, value in top]
                found.append({**self._token(token, logprob), "top_logprobs": likeliest})
        return found

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        content = self._tokenizer.decode_bytes([token])
        text = content.decode("utf-8", "replace")
        return {"token": text, "logprob": max(LEAST_LOGPROB, logprob), "bytes": list(content)}

    def _as_logprobs(self, choice: Choice, found: Sequence[dict[str, Any]]) -> dict[str, Any]:
        if self._kind == "chat":
            return {"content": list(found), "refusal": None}
        offsets, place = [], choice.text_size if found is not choice.logprobs else 0
        for entry in found:
            offsets.append(place)
            place += len(entry["token"])
        tops = [{other["token"]: other["logprob"] for other in entry["top_logprobs"]} for entry in found]
        return {
            "tokens": [entry["token"] for entry in found],
            "token_logprobs": [entry["logprob"] for entry in found],
            "top_logprobs": tops if self._num_top else None,
            "text_offset": offsets,
        }
