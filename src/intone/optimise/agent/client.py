"""Asks a language model behind an OpenAI-compatible address for its next message, and counts what that cost."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from intone.errors import UserError

RETRIES = 3
RETRY_WAIT_S = 2.0  # doubled each time; guess: a local server that is busy answers within seconds
TIMEOUT_S = 300.0  # of one answer; guess: a small model on a CPU writes 2,000 tokens in four minutes
MAX_REPLY_TOKENS = 4096

Message = dict[str, str]


@dataclass(frozen=True)
class Reply:
    """One message of the model. tokens: prompt and answer together, as the server counted them; None: it did not."""

    text: str
    tokens: int | None
    is_cut: bool = False  # it reached the limit of one reply


@dataclass
class ChatClient:
    """A model by name at an address. key: "none" where the server asks for none."""

    model: str
    base_url: str
    key: str = "none"
    wait: Callable[[float], None] = time.sleep

    def ask(self, messages: Sequence[Message]) -> Reply:
        """The model's next message. Raises UserError where the server cannot be reached or refuses."""
        openai = import_openai()
        client = openai.OpenAI(base_url=self.base_url, api_key=self.key, timeout=TIMEOUT_S, max_retries=0)
        wait_s = RETRY_WAIT_S
        for attempt in range(RETRIES + 1):
            try:
                found = client.chat.completions.create(
                    model=self.model, messages=list(messages), temperature=0.0, max_tokens=MAX_REPLY_TOKENS
                )
                break
            except (openai.APIConnectionError, openai.RateLimitError, openai.InternalServerError) as problem:
                if attempt == RETRIES:
                    raise self._unreachable(problem) from problem
                self.wait(wait_s)
                wait_s *= 2
            except openai.APIStatusError as problem:
                raise self._refused(problem) from problem
        if not found.choices:
            raise UserError(f"{self.base_url} answered without a message", value=self.model, fix="try another model")
        first = found.choices[0]
        tokens = found.usage.total_tokens if found.usage else None
        return Reply(first.message.content or "", tokens, first.finish_reason == "length")

    def _unreachable(self, problem: Exception) -> UserError:
        return UserError(
            f"no answer from {self.base_url}: {problem}", value=self.base_url,
            fix="start the server, or correct --base-url; it ends in /v1 for most servers",
        )  # fmt: skip

    def _refused(self, problem: Any) -> UserError:
        fixes = {
            401: "set the key in OPENAI_API_KEY", 403: "set the key in OPENAI_API_KEY",
            404: "look at the names in GET /v1/models and correct --model; --base-url ends in /v1 for most servers",
        }  # fmt: skip
        fix = fixes.get(problem.status_code, "correct what the server says there")
        return UserError(f"{self.base_url} refused: {problem.message}", value=self.model, fix=fix)


def import_openai() -> Any:
    """The client library. Raises UserError with the command where it is not installed."""
    try:
        import openai
    except ImportError:
        raise UserError(
            "--model needs the openai client, which is not installed", value="openai",
            fix="pip install 'intone[agent]', or pip install openai",
        ) from None  # fmt: skip
    return openai
