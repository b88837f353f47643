"""One growing sample, and the request it belongs to: what a newly chosen token does to them."""

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from intone.engine.kv import Table
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
from intone.engine.sample import streams
from intone.engine.speculate import Lookup
from intone.engine.structured import Grammar
from intone.engine.text import Specials, Tokenizer, VisibleText

MASK64 = (1 << 64) - 1
# gets every list of events of a handle, then None; called on the engine's thread, so it must be quick and not raise
Listener = Callable[["Handle", list[Event] | None], None]


class Handle:
    """The caller's side of a submitted request.

    Iterating gives the events of all its samples as they happen and ends with the request; one thread may iterate,
    once. cancel() and result() may be called from any thread. With a listener nothing is left to iterate.
    started_s: time.monotonic() when its first sample got a slot.
    """

    def __init__(
        self, request: Request, *, seed: int, on_cancel: Callable[["Handle"], None], listener: Listener | None = None
    ) -> None:
        self.request = request
        self.seed = seed
        self.started_s: float | None = None
        self.completions: dict[int, Completion] = {}
        self._on_cancel = on_cancel
        self._listener = listener
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

    @property
    def is_finished(self) -> bool:
        """Whether nothing follows."""
        return self._finished.is_set()

    def put(self, events: list[Event]) -> None:
        """The engine's side: hands over events."""
        if events and self._listener is not None:
            self._listener(self, events)
        elif events:
            self._events.put(events)

    def close(self) -> None:
        """The engine's side: nothing follows, completions are complete."""
        self._finished.set()
        if self._listener is not None:
            self._listener(self, None)
        self._events.put(None)


@dataclass(eq=False)
class Group:
    """A request inside the engine: its prompt, the samples that run, and how many still have to start.

    number: its place in the order of arrival. prompt_table, prompt_logits (V,): the whole prompt's keys and the
    logits behind it, kept while samples wait for their start. is_read: whether somebody waits for single tokens, not
    only for the end. evicted: active samples whose pages were taken away
    and that wait to go on. num_overtaken: how often a later request was let in while this one did not fit.
    """

    handle: Handle
    prompt: list[int]
    limit: int  # new tokens per sample, at least 1
    tokenizer: Tokenizer
    specials: Specials
    grammar: Grammar | None = None
    is_read: bool = True
    number: int = 0
    num_started: int = 0
    active: list["Row"] = field(default_factory=list)
    evicted: list["Row"] = field(default_factory=list)
    prompt_table: Table | None = None
    prompt_logits: Tensor | None = None
    num_overtaken: int = 0

    def __post_init__(self) -> None:
        stops = self.request.stops
        self.stop_texts = tuple(stop for stop in stops if isinstance(stop, str))
        self.stop_ids = self.specials.ends | {stop for stop in stops if isinstance(stop, int)}
        self.prompt_array = np.array(self.prompt, dtype=np.int64)
        bias = self.request.logit_bias
        self.bias = (list(bias), [float(value) for value in bias.values()]) if bias else None
        self.tools = self.request.tool_names

    @property
    def request(self) -> Request:
        return self.handle.request

    @property
    def num_waiting(self) -> int:
        """Samples that have not started."""
        return self.request.n - self.num_started

    @property
    def num_running(self) -> int:
        """Samples that hold a slot."""
        return len(self.active) - len(self.evicted)

    def start_row(self) -> "Row":
        """The next sample; it has no pages yet."""
        row = Row(self, self.num_started)
        if not self.num_started:
            self.handle.started_s = time.monotonic()
        self.num_started += 1
        self.active.append(row)
        return row

    def end_row(self, row: "Row", reason: Reason, *, error: Exception | None = None) -> None:
        """Records how a sample ended and tells the caller, except of errors: these end the whole request."""
        self.active.remove(row)
        if row in self.evicted:
            self.evicted.remove(row)
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
            self.prompt_logits = None
            self.handle.close()

    def _record(self, sample: int, row: "Row | None", reason: Reason, error: Exception | None) -> None:
        usage = Usage(len(self.prompt), len(row.ids) if row else 0, row.num_found if row else 0)
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


@dataclass(frozen=True)
class Taken:
    """What a token did: events for the caller, why the sample ends with it, or the tool call that must be answered."""

    events: list[Event]
    reason: Reason | None = None
    call: str | None = None


class Row:
    """One sample. Its text is the prompt and ids; the first table.length tokens of it are in the cache.

    is_paused: a tool works on its call; nothing is computed for it meanwhile. num_found: tokens of its prompt that
    were in the cache when it started. num_given: tokens that it had when it last got a slot. num_plain: new tokens that
    are not special ones.
    """

    def __init__(self, group: Group, sample: int) -> None:
        self.group = group
        self.sample = sample
        self.table: Table | None = None
        self.has_ended = False
        self.is_paused = False
        self.num_found = 0
        self.num_given = 0
        self.num_plain = 0
        self.ids: list[int] = []
        self.logprobs: list[float | None] = []
        self.tool_calls: list[ToolCall] = []
        self.visible = VisibleText(group.tokenizer, group.specials, group.stop_texts)
        self.lookup = Lookup()
        self.matcher = group.grammar.matcher() if group.grammar is not None else None
        if self.matcher is not None:
            self.matcher.prepare()  # made while the prompt is fed
        seed, number = (np.array([part & MASK64], dtype=np.uint64) for part in (group.handle.seed, sample))
        self.stream = streams(seed, number)[0]

    @property
    def position(self) -> int:
        """Place in the whole text of the token to be chosen next; also how many tokens there are."""
        return len(self.group.prompt) + len(self.ids)

    @property
    def num_pending(self) -> int:
        """Tokens that are part of the text but not in the cache; feeding them gives the logits for the next."""
        return self.position - (self.table.length if self.table is not None else 0)

    @property
    def is_too_short(self) -> bool:
        """Whether the sample may not end yet."""
        return self.num_plain < self.group.request.min_tokens

    def tokens(self, begin: int, end: int) -> Sequence[int]:
        """Tokens [begin, end) of the whole text."""
        prompt = self.group.prompt
        if begin >= len(prompt):
            return self.ids[begin - len(prompt) : end - len(prompt)]
        return [*prompt[begin:end], *self.ids[: max(0, end - len(prompt))]]

    def take(self, token: int, logprob: float | None, top: tuple[tuple[int, float], ...]) -> Taken:
        """Adds a chosen token. With a tool call in the result the row is paused until answer()."""
        group = self.group
        self._append(token, logprob)
        text, call = self.visible.push(token, may_stop=not self.is_too_short)
        ends = token in group.stop_ids or self.visible.is_stopped
        if self.matcher is not None and not ends:
            self.matcher.accept(token)
            ends = self.matcher.is_complete
            if not ends:
                self.matcher.prepare()  # made while the next logits are computed
        if call is not None and group.tools and not ends:
            self.is_paused = True
            return Taken([Token(self.sample, token, text, logprob, top)], call=call)
        reason: Reason | None = "stop" if ends else "length" if len(self.ids) >= group.limit else None
        if reason is not None:
            text += self.visible.finish()
        return Taken([Token(self.sample, token, text, logprob, top)], reason)

    def answer(self, called: ToolCall, forced: list[int]) -> Taken:
        """Goes on after a tool call, with the tokens of its answer (none where it was refused)."""
        self.is_paused = False
        self.tool_calls.append(called)
        room = self.group.limit - len(self.ids)
        if room < len(forced):
            return Taken([called], "length")  # half a tool's answer would be a wrong answer
        for entry in forced:
            self.visible.push(entry)
            self._append(entry, None)
        events: list[Event] = [called, *(Token(self.sample, entry, "", None) for entry in forced)]
        return Taken(events, "length" if room == len(forced) else None)

    def _append(self, token: int, logprob: float | None) -> None:
        self.ids.append(token)
        self.logprobs.append(logprob)
        self.num_plain += token not in self.group.specials.all
