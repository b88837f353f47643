"""The one way to generate and score text: requests in from any thread, events out, one thread owns the model."""

import queue
import secrets
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
import torch
from torch import Tensor

from intone.data.chat import Message, render_prompt
from intone.engine.requests import Completion, Prompt, Request, check_prompt
from intone.engine.rows import Group, Handle, Row
from intone.engine.runner import Drawn, Runner, default_num_slots
from intone.engine.scheduler import Admitted, Scheduler
from intone.engine.text import Specials, Tokenizer
from intone.errors import UserError


class EngineStopped(RuntimeError):
    """The engine was closed, or its model failed earlier; it takes no more work."""


class Engine:
    """Continuous batching over a model with a key-value cache.

    device None: where the model is. dtype None: the model's compute_dtype. Where the model's matrices have this dtype
    on this device already they are shared, so the engine follows a training that changes them; else they are packed
    into a snapshot that update_weights() renews. context None: the model's. num_slots None: as many rows at once as
    suit the device. Close it after use: it owns a thread. Do not train the model while it generates.
    """

    def __init__(
        self, model: Any, tokenizer: Tokenizer, *, device: torch.device | str | None = None,
        dtype: torch.dtype | None = None, num_slots: int | None = None, context: int | None = None,
    ) -> None:  # fmt: skip
        config = model.config
        self.context: int = config.context if context is None else context
        if not 1 <= self.context <= config.context:
            raise UserError(f"context {self.context:,} is not between 1 and the model's {config.context:,}")
        if tokenizer.vocab_size != config.vocab_size:
            raise UserError(
                f"the tokenizer has {tokenizer.vocab_size:,} entries and the model {config.vocab_size:,}",
                value=tokenizer.vocab_size,
                fix="use the tokenizer that was saved with this model",
            )
        if device is None:
            device = next((parameter.device for parameter in model.parameters()), "cpu")
        device = torch.device(device)
        dtype = model.compute_dtype if dtype is None else dtype
        if num_slots is None:
            num_slots = default_num_slots(config, capacity=self.context, dtype=dtype, device=device)
        if num_slots < 1:
            raise UserError(f"num_slots is {num_slots}, it must be at least 1", value=num_slots)
        self.tokenizer = tokenizer
        self._specials = Specials.of(tokenizer)
        self._runner = Runner(model, device=device, dtype=dtype, num_slots=num_slots, capacity=self.context)
        self._scheduler = Scheduler(num_slots)
        self._groups: dict[Handle, Group] = {}
        self._updates: list[Callable[[], None]] = []
        self._late: list[Row] = []  # samples that wait for their first token, their prompt being fed
        self._failure: Exception | None = None
        self._is_closed = False
        self._commands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._work, name="intone-engine", daemon=True)
        self._thread.start()

    @property
    def num_token_forwards(self) -> int:
        """Tokens that went through the model so far, padding not counted."""
        return self._runner.num_token_forwards

    def submit(self, request: Request) -> Handle:
        """Starts a request -> its handle, at once. Raises UserError for a prompt that cannot be answered.

        Raises EngineStopped after close() or a failure of the model.
        """
        return self._start(self._prepared(request))

    def generate(self, requests: Sequence[Request]) -> list[list[Completion]]:
        """Answers all requests together -> per request its n completions.

        Every request is checked before the first starts. A failure is a completion with reason "error".
        Interrupted (Ctrl-C), it cancels what still runs.
        """
        groups = [self._prepared(request) for request in requests]
        handles = [self._start(group) for group in groups]
        try:
            return [handle.result() for handle in handles]
        except BaseException:
            for handle in handles:
                handle.cancel()
            raise

    def score(self, texts: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """Log-probability of every token given those before it: texts of T ids -> arrays (T - 1,) float32, nats.

        Raises UserError for an empty text, an unknown id, or one longer than the context.
        """
        vocab = self._runner.vocab_size
        checked = [check_prompt(ids, vocab_size=vocab, context=self.context, room=0) for ids in texts]
        return self._call(lambda: self._runner.score(checked))

    def update_weights(self, state: dict[str, Tensor]) -> None:
        """Copies new weights in, converted to the engine's dtype. Waits until no sample is half done.

        Requests that wait meanwhile get the new weights. Raises RuntimeError where names or shapes differ.
        """
        self._call(lambda: self._runner.model.load_state_dict(state), when_idle=True)

    def close(self) -> None:
        """Cancels what runs and ends the thread; harmless when called twice."""
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                self._commands.put(None)
        self._thread.join()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # from here to _work: the callers' threads

    def _prepared(self, request: Request) -> Group:
        ids = check_prompt(
            _prompt_ids(request.prompt, self.tokenizer), vocab_size=self._runner.vocab_size, context=self.context
        )
        seed = secrets.randbits(63) if request.seed is None else request.seed
        handle = Handle(request, seed=seed, on_cancel=self._cancel_soon)
        room = self.context - len(ids)
        limit = room if request.max_tokens is None else min(room, request.max_tokens)
        return Group(handle, ids, limit, self.tokenizer, self._specials)

    def _start(self, group: Group) -> Handle:
        self._put(lambda: self._enqueue(group))
        return group.handle

    def _put(self, command: Callable[[], None]) -> None:
        if self._failure is not None:
            raise EngineStopped(f"the engine stopped: {self._failure}") from self._failure
        with self._lock:
            if self._is_closed:
                raise EngineStopped("the engine is closed")
            self._commands.put(command)

    def _cancel_soon(self, handle: Handle) -> None:
        with self._lock:
            if not self._is_closed:
                self._commands.put(lambda: self._cancel(handle))

    def _call(self, function: Callable[[], Any], *, when_idle: bool = False) -> Any:
        """Runs function on the engine's thread -> its result, or raises its exception here."""
        future: Future[Any] = Future()

        def run() -> None:
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)

        self._put((lambda: self._updates.append(run)) if when_idle else run)
        return future.result()

    # from here on: the engine's thread

    def _work(self) -> None:
        with torch.inference_mode():
            while True:
                try:
                    if not self._receive():
                        break
                    if self._failure is None:
                        self._step()
                except Exception as error:
                    self._fail(error)
                if not self._scheduler.rows:
                    self._apply_updates()
        for group in list(self._groups.values()):
            self._end(group)
        self._apply_updates()

    def _receive(self) -> bool:
        """Obeys all commands; waits for one when there is nothing to compute. False: close."""
        is_idle = self._scheduler.is_idle and not self._updates
        while is_idle or not self._commands.empty():
            command = self._commands.get()
            if command is None:
                return False
            command()
            is_idle = False
        return True

    def _apply_updates(self) -> None:
        while self._updates:
            self._updates.pop(0)()

    def _enqueue(self, group: Group) -> None:
        self._groups[group.handle] = group
        if self._failure is not None:
            self._end(group, error=self._failure)
        else:
            self._scheduler.waiting.append(group)

    def _cancel(self, handle: Handle) -> None:
        if handle in self._groups:
            self._end(self._groups[handle])

    def _end(self, group: Group, *, error: Exception | None = None) -> None:
        """Takes a whole request out: cancelled, or with an error."""
        for row in self._scheduler.drop(group):
            self._runner.cache.free(row.slot)
        del self._groups[group.handle]
        group.end("cancelled" if error is None else "error", error=error)

    def _fail(self, error: Exception) -> None:
        """The model broke: everybody who waits is told, and so is everybody who comes."""
        self._failure = error
        # not by _end: an error in the book-keeping itself must not keep anybody waiting
        self._scheduler.clear()
        groups = list(self._groups.values())
        self._groups.clear()
        for group in groups:
            group.end("error", error=error)

    def _step(self) -> None:
        """Admits, feeds what has several tokens to feed, then gives every row one more token."""
        admitted = [] if self._updates else self._scheduler.admit()
        siblings = {entry.rows[0]: entry.rows[1:] for entry in admitted if entry.source is None}
        for entry in admitted:
            if entry.source is not None:
                self._copy_prompt(entry)
        self._draw_late()
        for rows in self._scheduler.fed_together(self._runner.prefill_tokens):
            self._feed(rows, siblings)
        for source, hole in self._scheduler.compact():
            self._runner.cache.copy(source, [hole])
            self._runner.cache.free(source)
        if rows := self._scheduler.fed_singly():
            self._feed(rows, siblings)

    def _feed(self, rows: list[Row], siblings: dict[Row, list[Row]]) -> None:
        """One forward pass over rows; those that just fed a prompt share it with their siblings."""
        logits = self._runner.feed(rows)
        drawing, source = list(rows), list(range(len(rows)))
        for index, row in enumerate(rows):
            others = siblings.pop(row, [])
            self._runner.cache.copy(row.slot, [other.slot for other in others])
            drawing += others
            source += [index] * len(others)
            if row.group.num_waiting and row.group.prompt_end is None:
                row.group.prompt_end = (logits[index].clone(), self._runner.cache.previous[row.slot].clone())
        if len(drawing) > len(rows):
            logits = logits[source]
        self._draw(drawing, logits)

    def _copy_prompt(self, entry: Admitted) -> None:
        """Starts late samples from the prompt's keys in a sibling's slot, without feeding it again."""
        assert entry.source is not None, "late samples need a sibling"
        length = len(entry.group.prompt)
        self._runner.cache.copy(entry.source.slot, [row.slot for row in entry.rows], length=length)
        for row in entry.rows:
            self._start_late(row)

    def _start_late(self, row: Row) -> None:
        """A sample whose slot holds its prompt, and perhaps more, begins right after the prompt."""
        assert row.group.prompt_end is not None, "a late sample before the prompt was fed"
        self._runner.cache.rewind(row.slot, len(row.group.prompt), row.group.prompt_end[1])
        self._late.append(row)

    def _draw_late(self) -> None:
        """First tokens of late samples; those that end with it let others start, so: until none is left."""
        while self._late:
            rows = [row for row in self._late if not row.has_ended]
            self._late = []
            if rows:
                ends = [row.group.prompt_end for row in rows]
                self._draw(rows, torch.stack([end[0] for end in ends if end is not None]))

    def _draw(self, rows: list[Row], logits: Tensor) -> None:
        for row, drawn in zip(rows, self._runner.sync_draw(rows, logits), strict=True):
            # an earlier row of this loop may have ended the whole request
            if not row.has_ended:
                self._take(row, drawn)

    def _take(self, row: Row, drawn: Drawn) -> None:
        group = row.group
        if drawn.id is None:
            error = FloatingPointError(f"the model's logits are not finite at position {row.position}")
            slots = [other.slot for other in group.active]
            self._end(group, error=error)
            for slot in slots:
                self._runner.cache.scrub(slot)
            return
        events, reason = row.take(drawn.id, drawn.logprob, drawn.top)
        group.handle.put(events)
        if reason is None:
            return
        group.end_row(row, reason)
        self._scheduler.release(row)
        if group.num_waiting:
            # the prompt is in this slot already
            self._start_late(self._scheduler.start_in(row.slot, group))
            return
        self._runner.cache.free(row.slot)
        if not group.active:
            del self._groups[group.handle]
        group.close_if_done()


def _prompt_ids(prompt: Prompt, tokenizer: Tokenizer) -> Sequence[int]:
    """Token ids of any kind of prompt. Raises UserError where a conversation does not end with the user."""
    if isinstance(prompt, str):
        return [tokenizer.bos, *tokenizer.encode(prompt)]
    messages = [entry for entry in prompt if isinstance(entry, Message)]
    if not messages:
        return prompt  # type: ignore[return-value]
    if len(messages) < len(prompt):
        raise UserError("the prompt mixes messages with something else", fix="give only messages, or only token ids")
    return render_prompt(messages, tokenizer)
