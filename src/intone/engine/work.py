"""The engine's own thread: it obeys commands, runs steps, and gives every request exactly one end."""

import queue
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from intone.engine.ahead import Ahead
from intone.engine.budget import page_bytes, pages_per_text, settle_cache
from intone.engine.burst import Bursts
from intone.engine.choose import Setup, decoder_of, limits_of, step_kernels_of, steps_of, stored_weights, with_prompts
from intone.engine.fixed import ROWS, FixedSteps, Result
from intone.engine.kv import Cache, PageStore, page_groups
from intone.engine.native_decoder import NativeDecoder, Weights
from intone.engine.requests import Reason, ToolCall
from intone.engine.rows import Group, Handle, Row, Taken
from intone.engine.runner import Drawn, Runner, not_finite
from intone.engine.scheduler import Scheduler, Segment
from intone.engine.stats import Account, EngineStats
from intone.engine.text import Specials, Tokenizer
from intone.engine.tools import Call, ToolRunner, ToolsBusy
from intone.errors import UserError
from intone.log import human_bytes


class Worker:
    """Everything that the engine's thread owns. Methods that others may call say so."""

    def __init__(
        self, model: Any, tokenizer: Tokenizer, setup: Setup, specials: Specials,
        commands: "queue.SimpleQueue[Callable[[], None] | None]",
    ) -> None:  # fmt: skip
        self.failure: Exception | None = None
        self.updates: list[Callable[[], None]] = []
        self.settled: dict[str, tuple[Any, str]] = {}
        self._commands = commands
        self._tokenizer = tokenizer
        self._specials = specials
        self._deterministic = setup.deterministic
        self._groups: dict[Handle, Group] = {}
        decoder, device, how = decoder_of(model, setup)
        steps = steps_of(decoder, device, setup)
        step_kernels = step_kernels_of(decoder, device, setup, steps[0])
        limits, buckets, how_much = limits_of(setup, device, steps[0])
        self.settled |= how | {"steps": steps} | how_much
        config, context = decoder.config, setup.context
        groups = page_groups(config, context)
        size = settle_cache(
            config, groups, context=context, num_slots=limits.num_slots, step_tokens=limits.alone_tokens,
            dtype=decoder.dtype, device=device, cache_bytes=setup.cache_bytes,
        )  # fmt: skip
        self.settled["cache"] = (human_bytes(size.bytes), size.reason)
        self._cache_bytes = size.bytes
        is_fixed = steps[0] == "captured"
        if is_fixed:
            self.settled["step_kernels"] = step_kernels
        store = PageStore(config, groups, size.num_pages, dtype=decoder.dtype, device=device, has_spare=is_fixed)
        most_pages = [pages_per_text(group, context=context, step_tokens=limits.alone_tokens) for group in groups]
        self._cache = Cache(
            store, size.num_pages, most_pages=most_pages, remembers=setup.share_prefixes,
            whole_pages=setup.deterministic,
        )  # fmt: skip
        self.runner = Runner(decoder, store, deterministic=setup.deterministic)
        self._step_tokens = limits.alone_tokens
        self._num_slots = limits.num_slots
        # a row has one call at most, but rows that wait for theirs may lose their slot to others
        most_calls = 4 * limits.num_slots
        self.tools = ToolRunner(on_done=self._tools_are_done, max_calls=most_calls, sandbox=setup.sandbox)
        self._calls: dict[Call, Row] = {}
        self._scheduler = Scheduler(self._cache, limits)
        self._account = Account([page_bytes(config, group, decoder.dtype) for group in groups])
        self._ahead: Ahead | None = None
        self._bursts: Bursts | None = None
        if isinstance(decoder, NativeDecoder) and not limits.num_guesses:
            self._bursts = Bursts(decoder, self._scheduler, take=self._take_ahead, note_step=self._note_ahead)
        if is_fixed:
            fixed = FixedSteps(
                decoder, store, context=context, scale=self.runner.scale, most_rows=min(limits.num_slots, ROWS[-1]),
                buckets=buckets, is_fused=step_kernels[0] == "triton",
            )  # fmt: skip
            self._ahead = Ahead(
                fixed, self._scheduler, take=self._take_ahead, note_step=self._note_ahead,
                is_wanted=lambda: not self._commands.empty(),
            )  # fmt: skip

    @property
    def num_waiting(self) -> int:
        """Requests with samples that have no slot; any thread may ask, the answer may be a step old."""
        num_free = self._scheduler.limits.num_slots - len(self._scheduler.rows)
        return max(0, len(self._scheduler.waiting) + self._commands.qsize() - num_free)

    def stats(self) -> EngineStats:
        """The numbers of this moment; on the engine's thread, or after its end."""
        return self._account.picture(
            self._cache, self._scheduler, is_healthy=self.failure is None,
            num_token_forwards=self.runner.num_token_forwards, cache_bytes=self._cache_bytes,
        )  # fmt: skip

    def scored_together(self, texts: Sequence[Sequence[int]]) -> list[list[int]]:
        """Batches of places for score(); any thread may ask."""
        return self.runner.scored_together(texts, self._step_tokens)

    def score(self, texts: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """On the engine's thread: log-probabilities of one batch."""
        # scan: ok[S45] the engine's thread runs all of this in inference mode
        return self.runner.score(texts)

    def load(self, weights: dict[str, Tensor], stored_as: Weights | None = None) -> None:
        """On the engine's thread, while nothing runs: other weights, stored as before or otherwise."""
        decoder = self.runner.decoder
        if stored_as is None:
            decoder.load(weights)
        elif isinstance(decoder, NativeDecoder):
            decoder.load(weights, stored_as=stored_as)
            self.settled["weights"] = stored_weights(decoder, stored_as)
        else:
            raise UserError(f"weights {stored_as} cannot be had: PyTorch computes here", value=stored_as)
        if self._ahead is not None:
            self._ahead.forget()
        self._scheduler.forget_prompts()
        self._cache.forget_all()

    def limit(self, num_slots: int | None, prompt_tokens: int | None, buckets: tuple[int, ...] | None) -> None:
        """On the engine's thread, while nothing runs: less at once than it was opened with."""
        for name, value, most in (("num_slots", num_slots, self._num_slots),
                                  ("prompt_tokens", prompt_tokens, self._step_tokens)):  # fmt: skip
            if value is not None and value > most:
                raise UserError(f"{name} is {value:,}, and this engine was opened with {most:,}", value=value)
        limits = self._scheduler.limits
        limits = with_prompts(limits, prompt_tokens or limits.alone_tokens, self.runner.device)
        self._scheduler.limits = replace(limits, num_slots=num_slots or limits.num_slots)
        if buckets is not None:
            if self._ahead is None:
                raise UserError("buckets are lengths of captured steps, and these are eager", value=list(buckets))
            self._ahead.use_buckets(buckets)

    def run(self) -> None:
        """The thread: until close."""
        is_busy = True
        if self.runner.device.type == "cuda" and self.runner.device.index is not None:
            torch.cuda.set_device(self.runner.device)  # streams and captures are those of a thread's own device
        with torch.inference_mode():
            while True:
                try:
                    if not self._receive(wait=not is_busy):
                        break
                    is_busy = self.failure is None and self._step()
                except Exception as error:
                    self._fail(error)
                if not any(group.active for group in self._groups.values()):
                    is_busy = self._apply_updates() or is_busy
        for group in list(self._groups.values()):
            self._end(group, "cancelled")
        self._apply_updates()
        self.tools.close()

    def enqueue(self, group: Group) -> None:
        """On the engine's thread: a request arrives."""
        self._groups[group.handle] = group
        if self.failure is not None:
            self._end(group, "error", error=self.failure)
        else:
            self._scheduler.add(group)

    def cancel(self, handle: Handle) -> None:
        """On the engine's thread: ends a request that has not ended."""
        if handle in self._groups:
            self._end(self._groups[handle], "cancelled")

    def _receive(self, *, wait: bool) -> bool:
        """Obeys all commands; with wait at least one. False: close."""
        while wait or not self._commands.empty():
            command = self._commands.get()
            if command is None:
                return False
            command()
            wait = False
        return True

    def _apply_updates(self) -> bool:
        """Runs what waited for the end of all samples -> whether there was something."""
        had_some = bool(self.updates)
        while self.updates:
            self.updates.pop(0)()
        return had_some

    def _step(self) -> bool:
        """Admits, feeds, draws. False where nothing can be done before the next command."""
        did_something = False
        while forked := self._scheduler.admit(only_evicted=bool(self.updates)):
            did_something = True
            self._take_all([row for row, _ in forked], torch.stack([logits for _, logits in forked]))
        if self._ahead is not None and self._runs_ahead(self._ahead):
            return True
        if self._bursts is not None and self._bursts.run():
            return True
        segments = self._scheduler.plan()
        if not segments:
            is_stuck = self._scheduler.waiting and not self._scheduler.rows and not self.updates
            assert did_something or not is_stuck, "requests wait and nothing runs"
            return did_something
        begin_s, num_tokens = perf_counter(), sum(part.count + len(part.guesses) for part in segments)
        unfinished = [part for part in segments if not part.is_last]  # tokens that are drawn change that
        logits, others = self.runner.feed(segments)
        self._account.note_step(self._scheduler, num_tokens)
        self._advance(segments, logits)
        self._check(unfinished, others)
        self._scheduler.portion.note(num_tokens, perf_counter() - begin_s)
        return True

    def _runs_ahead(self, ahead: Ahead) -> bool:
        """Whether steps ran by themselves. Where a device cannot do that, the engine goes on step by step."""
        try:
            return ahead.run()
        except Exception as error:  # triton's errors have nothing else in common
            # nothing is lost: tokens that were not read are computed again
            words = next(iter(str(error).splitlines()), type(error).__name__)
            if ahead.leave_kernels():
                self.settled["step_kernels"] = ("torch", f"ours failed here: {words}")
                return False
            if self.runner.device.type == "cpu" or not isinstance(error, RuntimeError):
                raise  # nothing is captured on a CPU: it is a fault of ours
            self._ahead = None
            self.settled["steps"] = ("eager", f"captured steps failed here: {words}")
            return False

    def _take_ahead(self, row: Row, result: Result) -> None:
        """A token that the device or our kernels drew: its text's last key counts, then the token."""
        assert row.table is not None, "a row that was stepped has pages"
        up_to = len(row.group.prompt) if self._deterministic else None
        self._cache.advance(row.table, 1, row.tokens, up_to=up_to)
        problem = None
        if not result.is_finite:
            problem = not_finite(row.position)
        logprob = result.logprob if row.group.request.logprobs else None
        self._take(row, Drawn(result.id, logprob, (), problem))

    def _note_ahead(self, num_tokens: int) -> None:
        self._account.note_step(self._scheduler, num_tokens)
        self.runner.num_token_forwards += num_tokens

    def _advance(self, segments: list[Segment], logits: Tensor) -> None:
        """After a pass: keys that were written count, and every row that is up to date gets its next token."""
        rows: list[Row] = []
        positions: list[int] = []
        for segment in segments:
            row, table = segment.row, segment.row.table
            assert table is not None, "a row with a segment has pages"
            self._account.num_fed_tokens += max(0, min(segment.start + segment.count, row.num_given) - segment.start)
            up_to = len(row.group.prompt) if self._deterministic else None
            self._cache.advance(table, segment.count, row.tokens, up_to=up_to)
            if segment.is_last:
                if not row.ids:
                    self._scheduler.keep_prompt(row, logits[len(rows)])
                    self._cache.remember_end(table, row.tokens)
                rows += [row] * (1 + len(segment.guesses))
                positions += range(row.position, row.position + 1 + len(segment.guesses))
        drawn = self.runner.sync_draw(rows, positions, logits) if rows else []
        place = 0
        for segment in segments:
            if segment.is_last:
                count = 1 + len(segment.guesses)
                self._take_verified(segment, drawn[place : place + count])
                place += count

    def _check(self, segments: list[Segment], logits: Tensor) -> None:
        """Parts of prompts behind which no token is drawn yet, and the logits (B, V) behind them: they are looked at
        because others may find these keys from here on."""
        for segment, is_finite in zip(segments, self.runner.sync_finite(logits) if segments else [], strict=True):
            row = segment.row
            if row.has_ended:
                continue  # with another sample of its request
            assert row.table is not None, "nobody gives way in the middle of a step"
            if is_finite:
                self._cache.trust(row.table)
            else:
                self._end(row.group, "error", error=not_finite(segment.start + segment.count))

    def _take_verified(self, segment: Segment, drawn: list[Drawn]) -> None:
        """Takes the drawn tokens of a row as long as the guesses before them were right."""
        row, num_right = segment.row, 0
        for place, entry in enumerate(drawn):
            self._take(row, entry)
            if row.has_ended or row.is_paused or place == len(segment.guesses) or entry.id != segment.guesses[place]:
                break
            # the guess was right: its keys, written in the same pass, are those of this token
            assert row.table is not None
            num_right += 1
            up_to = len(row.group.prompt) if self._deterministic else None
            self._cache.advance(row.table, 1, row.tokens, up_to=up_to)
        if segment.guesses:
            self._account.num_guessed += len(segment.guesses)
            self._account.num_right_guesses += num_right
            row.lookup.learn(row.position, num_guessed=len(segment.guesses), num_right=num_right)

    def _take_all(self, rows: list[Row], logits: Tensor) -> None:
        """Next tokens of rows from their logits (B, V)."""
        for row, entry in zip(rows, self.runner.sync_draw(rows, [row.position for row in rows], logits), strict=True):
            self._take(row, entry)

    def _take(self, row: Row, drawn: Drawn) -> None:
        """One token for a row. What goes wrong here is this request's affair alone."""
        if row.has_ended:
            return  # another sample ended the whole request
        if drawn.problem is not None:
            self._end(row.group, "error", error=drawn.problem)
            return
        for table in (row.table, row.group.prompt_table):
            if table is not None:
                self._cache.trust(table)
        try:
            taken = row.take(drawn.id, drawn.logprob, drawn.top)
        except Exception as error:
            self._end(row.group, "error", error=error)
            return
        self._account.num_new_tokens += 1
        self._follow(row, taken)
        if taken.call is not None:
            self._ask_tool(row, taken.call)

    def _follow(self, row: Row, taken: Taken) -> None:
        """Hands events over, and ends the sample where it is at its end."""
        group = row.group
        group.handle.put(taken.events)
        if taken.reason is None:
            return
        group.end_row(row, taken.reason)
        self.runner.adjuster.forget(row)
        self._scheduler.release(row)
        if not group.active and not group.num_waiting:
            self._scheduler.drop(group)
            del self._groups[group.handle]
        group.close_if_done()

    def _ask_tool(self, row: Row, text: str) -> None:
        """Has the request's tools answer a call; the row goes on when they have."""
        try:
            call = self.tools.submit(row.group.tools, text)
        except ToolsBusy as error:
            self._fail_row(row, error)
            return
        if call.is_done:
            # not at once: this row may be in the middle of verified guesses
            self._commands.put(partial(self._answer, row, call))
        else:
            self._calls[call] = row

    def _tools_are_done(self) -> None:
        """On a tool's thread: has the engine's thread look."""
        self._commands.put(self._answer_calls)

    def _answer_calls(self) -> None:
        for call in self.tools.poll():
            self._answer(self._calls.pop(call), call)

    def _answer(self, row: Row, call: Call) -> None:
        if row.has_ended:
            return
        if call.error is not None:
            self._fail_row(row, call.error)
            return
        called = ToolCall(row.sample, call.name, call.text, call.output)
        try:
            forced = [] if called.output is None else self._specials.as_output(self._tokenizer.encode(called.output))
            taken = row.answer(called, forced)
        except Exception as error:
            self._fail_row(row, error)
            return
        self._follow(row, taken)

    def _fail_row(self, row: Row, error: Exception) -> None:
        if not row.has_ended:
            self._end(row.group, "error", error=error)

    def _end(self, group: Group, reason: Reason, *, error: Exception | None = None) -> None:
        """Takes a whole request out: cancelled, or with an error."""
        self._scheduler.drop(group)
        for row in group.active:
            self.runner.adjuster.forget(row)
        for call in [call for call, row in self._calls.items() if row.group is group]:
            call.cancel()
            del self._calls[call]
        del self._groups[group.handle]
        group.end(reason, error=error)

    def _fail(self, error: Exception) -> None:
        """The model broke: everybody who waits is told, and so is everybody who comes."""
        self.failure = error
        # not by _end: an error in the book-keeping itself must not keep anybody waiting
        self._scheduler.clear()
        self.runner.adjuster.clear()
        for call in self._calls:
            call.cancel()
        self._calls.clear()
        groups = list(self._groups.values())
        self._groups.clear()
        for group in groups:
            group.end("error", error=error)
