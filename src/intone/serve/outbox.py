"""What an engine's texts gain, gathered per text: the first token goes out at once, later ones a few together."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from intone.engine.requests import Done, Event, Failed, Token, ToolCall
from intone.engine.rows import Handle

# tokens of one text in one message, and how long the first of them may wait: below what a reader notices
MOST_TOKENS = 8
SHORT_WAIT_S = 0.025
# with many texts each message of one text is rarer, so that there are no more messages than Python handles with ease
# while it also computes: 1,000 a second are a tenth of a core (measured on one EPYC core, see BENCH.md). All texts that
# grow count, not only those with something to send: a text's messages then come at even distances
MESSAGES_PER_S = 1_000


@dataclass
class Growth:
    """What one sample gained since its last message."""

    since_s: float
    count: int = 0
    text: list[str] = field(default_factory=list)
    details: list[Any] = field(default_factory=list)


class Outbox:
    """Events of all requests on their way out of the engine's process.

    listener() is called on the engine's thread and only appends. take() belongs to one sending thread. Messages are
    lists for JSON, in the order of a text's events:
    ["start", number, started_s], ["text", number, sample, text, num_tokens, details, time_s],
    ["call", number, sample, name, input, output], ["done", number, sample, reason, prompt, completion, cached tokens],
    ["failed", number, kind of error, text], ["end", number, seed].
    details: (id, logprob, [[id, logprob], ...]) per token, or null.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._arrived: deque[tuple[int, Handle, list[Event] | None, float]] = deque()
        self._growing: dict[tuple[int, int], Growth] = {}
        self._begun: dict[int, set[int]] = {}
        self._open: set[tuple[int, int]] = set()  # texts that may still grow

    def listener(self, number: int) -> Callable[[Handle, list[Event] | None], None]:
        """The listener for the request of this number."""

        def note(handle: Handle, events: list[Event] | None) -> None:
            self._arrived.append((number, handle, events, self._clock()))

        return note

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits to be sent."""
        return not self._arrived and not self._growing

    def take(self) -> list[list[Any]]:
        """The messages that are due now."""
        messages: list[list[Any]] = []
        while self._arrived:
            number, handle, events, time_s = self._arrived.popleft()
            if events is None:
                for sample in self._begun.pop(number, ()):
                    self._open.discard((number, sample))
                messages.append(["end", number, handle.seed])
                continue
            for event in events:
                self._add(messages, number, handle, event, time_s)
        now_s = self._clock()
        wait_s = max(SHORT_WAIT_S, len(self._open) / MESSAGES_PER_S)
        due = [key for key, growth in self._growing.items() if growth.since_s + wait_s <= now_s]
        for key in due:
            self._flush(messages, key)
        return messages

    def _add(
        self, messages: list[list[Any]], number: int, handle: Handle, event: Event, time_s: float
    ) -> None:
        if isinstance(event, Failed):
            for key in [key for key in self._growing if key[0] == number]:
                self._flush(messages, key)
            messages.append(["failed", number, type(event.error).__name__, str(event.error)])
            return
        key = (number, event.sample)
        if isinstance(event, Token):
            growth = self._growing.get(key)
            if growth is None:
                growth = self._growing[key] = Growth(time_s)
            growth.count += 1
            if event.text:
                growth.text.append(event.text)
            if handle.request.logprobs:
                growth.details.append((event.id, event.logprob, event.top))
            begun = self._begun.get(number)
            if begun is None:
                begun = self._begun[number] = set()
                messages.append(["start", number, handle.started_s])
            if event.sample not in begun:
                begun.add(event.sample)
                self._open.add(key)
                self._flush(messages, key)
            elif growth.count >= MOST_TOKENS:
                self._flush(messages, key)
            return
        self._flush(messages, key)
        if isinstance(event, ToolCall):
            messages.append(["call", number, event.sample, event.name, event.input, event.output])
        elif isinstance(event, Done):
            self._open.discard(key)
            usage = event.usage
            counts = [usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens]
            messages.append(["done", number, event.sample, event.reason, *counts])

    def _flush(self, messages: list[list[Any]], key: tuple[int, int]) -> None:
        growth = self._growing.pop(key, None)
        if growth is not None:
            text = "".join(growth.text)
            details = growth.details or None
            messages.append(["text", *key, text, growth.count, details, growth.since_s])
