"""One growing sample, and the request it belongs to: what a newly chosen token does to them."""

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from torch import Tensor

from intone.engine.requests import (
    Completion,
    Done,
    Event,
    Failed,
    Reason,
    Request,
    Token,
    ToolCall,
    Usage,
)
from intone.engine.text import Specials, Tokenizer, VisibleText
from intone.engine.tools import calculator


class Handle:
    """The caller's side of a submitted request.

    Iterating gives the events of all its samples as they happen and ends with the request; one thread may iterate,
    once. cancel() and result() may be called from any thread.
    """

    def __init__(self, request: Request, *, seed: int, on_cancel: Callable[["Handle"], None]) -> None:
        self.request = request
        self.seed = seed
        self.completions: dict[int, Completion] = {}
        self._on_cancel = on_cancel
        self._events: queue.SimpleQueue[list[Event] | None] = queue.SimpleQueue()
        self._finished = threading.Event()

    def __iter__(self) -> Iterator[Event]:
        while (events := self._events.get()) is not None:
            yield from events
        self._events.put(None)  # a second iteration ends at once instead of waiting for ever

    def cancel(self) -> None:
        """Ends what still runs with reason "cancelled", soon; harmless after the end."""
        self._on_cancel(self)

    def result(self) -> list[Completion]:
        """Waits for the end: one completion per sample, in order. A failure is reason "error", not an exception."""
        self._finished.wait()
        return [self.completions[sample] for sample in range(self.request.n)]

    def put(self, events: list[Event]) -> None:
        """The engine's side: hands over events."""
        if events:
            self._events.put(events)

    def close(self) -> None:
        """The engine's side: nothing follows, completions are complete."""
        self._finished.set()
        self._events.put(None)


@dataclass(eq=False)
class Group:
    """A request inside the engine: its prompt, the samples that run, and how many still have to start.

    prompt_end: logits (V,) and embedding (D,) after the prompt, kept while samples wait for a slot.
    """

    handle: Handle
    prompt: list[int]
    limit: int  # new tokens per sample, at least 1
    tokenizer: Tokenizer
    specials: Specials
    num_started: int = 0
    active: list["Row"] = field(default_factory=list)
    prompt_end: tuple[Tensor, Tensor] | None = None

    def __post_init__(self) -> None:
        stops = self.request.stops
        self.stop_texts = tuple(stop for stop in stops if isinstance(stop, str))
        self.stop_ids = self.specials.ends | {stop for stop in stops if isinstance(stop, int)}

    @property
    def request(self) -> Request:
        return self.handle.request

    @property
    def num_waiting(self) -> int:
        """Samples that have not started."""
        return self.request.n - self.num_started

    def start_row(self, slot: int) -> "Row":
        """The next sample, in a slot; it has nothing to feed yet."""
        row = Row(self, self.num_started, slot)
        self.num_started += 1
        self.active.append(row)
        return row

    def end_row(self, row: "Row", reason: Reason, *, error: Exception | None = None) -> None:
        """Records how a sample ended and tells the caller, except of errors: these end the whole request."""
        self.active.remove(row)
        row.has_ended = True
        self._record(row.sample, row, reason, error)

    def end(self, reason: Reason, *, error: Exception | None = None) -> None:
        """Ends every sample that runs or waits."""
        for row in list(self.active):
            self.end_row(row, reason, error=error)
        while self.num_waiting:
            self._record(self.num_started, None, reason, error)
            self.num_started += 1
        if error is not None:
            self.handle.put([Failed(error)])
        self.close_if_done()

    def close_if_done(self) -> None:
        if not self.active and not self.num_waiting:
            self.prompt_end = None
            self.handle.close()

    def _record(self, sample: int, row: "Row | None", reason: Reason, error: Exception | None) -> None:
        usage = Usage(len(self.prompt), len(row.ids) if row else 0)
        self.handle.completions[sample] = Completion(
            sample=sample,
            ids=row.ids if row else [],
            text=row.visible.text if row else "",
            logprobs=row.logprobs if row else [],
            reason=reason,
            usage=usage,
            tool_calls=row.tool_calls if row else [],
            seed=self.handle.seed,
            error=str(error) if error is not None else None,
        )
        if error is None:
            self.handle.put([Done(sample, reason, usage)])


class Row:
    """One sample in one slot.

    pending: tokens that are part of the text but not yet in the cache; feeding them gives the logits for the next.
    """

    def __init__(self, group: Group, sample: int, slot: int) -> None:
        self.group = group
        self.sample = sample
        self.slot = slot
        self.has_ended = False
        self.pending: list[int] = []
        self.ids: list[int] = []
        self.logprobs: list[float | None] = []
        self.tool_calls: list[ToolCall] = []
        self.visible = VisibleText(group.tokenizer, group.specials, group.stop_texts)

    @property
    def position(self) -> int:
        """Place in the whole text of the token to be chosen next."""
        return len(self.group.prompt) + len(self.ids)

    def take(self, token: int, logprob: float, top: tuple[tuple[int, float], ...]) -> tuple[list[Event], Reason | None]:
        """Adds a chosen token, and what a tool answers to it -> (events, why the sample ends or None)."""
        group = self.group
        text, call = self.visible.push(token)
        self._append(token, logprob)
        self.pending = [token]
        events: list[Event] = []
        forced: list[int] = []
        ends = token in group.stop_ids or self.visible.is_stopped
        if call is not None and group.request.tools and not ends:
            answered = self._answered(call)
            events.append(answered)
            if answered.output is not None:
                specials = group.specials
                forced = [specials.output_start, *group.tokenizer.encode(answered.output), specials.output_end]
        room = group.limit - len(self.ids)
        is_full = room <= len(forced)
        if room < len(forced):
            forced = []  # half a tool's answer would be a wrong answer
        reason: Reason | None = "stop" if ends else "length" if is_full else None
        for entry in forced:
            self.visible.push(entry)
            self._append(entry, None)
        self.pending += forced
        rest = self.visible.finish() if reason else ""
        tokens = [Token(self.sample, token, text + ("" if forced else rest), logprob, top)]
        tokens += [Token(self.sample, entry, "", None) for entry in forced[:-1]]
        if forced:
            tokens.append(Token(self.sample, forced[-1], rest, None))
        return [tokens[0], *events, *tokens[1:]], reason

    def _append(self, token: int, logprob: float | None) -> None:
        self.ids.append(token)
        self.logprobs.append(logprob)

    def _answered(self, call: str) -> ToolCall:
        answered = ToolCall(self.sample, "calculator", call, calculator(call))
        self.tool_calls.append(answered)
        return answered
