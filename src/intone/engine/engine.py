"""The one way to generate and score text: requests in from any thread, events out, one thread owns the model."""

import queue
import secrets
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from intone.data.chat import Message, render_prompt
from intone.engine.choose import Setup, Steps, checked_sizes
from intone.engine.fused_decoder import StepKernels
from intone.engine.native_decoder import Weights
from intone.engine.requests import Completion, Prompt, Request, check_ids, check_prompt
from intone.engine.rows import Group, Handle, Listener
from intone.engine.sandbox.box import Sandbox
from intone.engine.stats import EngineStats
from intone.engine.structured import Forms
from intone.engine.text import Specials, Tokenizer
from intone.engine.threads import openmp_releases
from intone.engine.work import Worker
from intone.errors import UserError
from intone.model.gpt import Kernels


class EngineStopped(RuntimeError):
    """The engine was closed, or its model failed earlier; it takes no more work."""


class EngineFull(RuntimeError):
    """More requests wait than the engine was told to let wait; this one was not taken."""


class Engine:
    """Continuous batching over a model with a paged key-value cache.

    model: a GPT, whose weights are copied and packed (update_weights() renews the copy), or any Decoder.
    device None: where the model is. dtype None: the model's compute_dtype. context None: the model's.
    num_slots: samples that run at once; None: as many as suit the device. cache_bytes: memory for keys and values;
    None: for num_slots whole contexts, at most half of what is free (settings says why). deterministic: the same
    tokens and log-probabilities, to the bit, whatever else runs; slower. share_prefixes False: no request finds what
    another one computed. num_guesses: tokens guessed per step by looking them up in the text, verified, so they change
    nothing but speed; 0: none; None: as suits the device. max_waiting: requests that may wait for a slot; None: any
    number. sandbox: where Python that texts call runs; None: one with the usual limits. weights: how matrices are
    stored; auto: in dtype; int8: half the bytes of bf16, with a small loss. kernels: whether a CPU computes with our
    kernels or PyTorch; auto: ours where they run. steps: of growing texts. captured: of fixed sizes, so that a GPU
    replays them and the host reads each result while the next step runs; auto: on CUDA. step_kernels: what computes
    captured steps. triton: our kernels, a few launches a block; auto: these on CUDA where they run. prompt_tokens: of
    prompts per step; fewer while texts grow whose tokens somebody reads. buckets: lengths, besides the context, that
    captured steps are made for; a text runs in the next larger. None: as suits the device.
    Close it after use: it owns threads.
    """

    def __init__(
        self, model: Any, tokenizer: Tokenizer, *, device: torch.device | str | None = None,
        dtype: torch.dtype | None = None, num_slots: int | None = None, context: int | None = None,
        cache_bytes: int | None = None, deterministic: bool = False, share_prefixes: bool = True,
        num_guesses: int | None = None, max_waiting: int | None = None, sandbox: Sandbox | None = None,
        weights: Weights = "auto", kernels: Kernels | Literal["auto"] = "auto", steps: Steps = "auto",
        step_kernels: StepKernels = "auto", prompt_tokens: int | None = None, buckets: Sequence[int] | None = None,
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
        lengths = checked_sizes(num_slots, prompt_tokens, buckets)
        bounds = (("num_guesses", num_guesses, 0), ("max_waiting", max_waiting, 1))
        for name, value, low in bounds:
            if value is not None and value < low:
                raise UserError(f"{name} is {value}, it must be at least {low}", value=value)
        self.tokenizer = tokenizer
        self.vocab_size: int = config.vocab_size
        self._specials = Specials.of(tokenizer)
        self._max_waiting = max_waiting
        self._num_waiting = 0
        self._is_closed = False
        self._commands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        setup = Setup(
            device=device, dtype=dtype, context=self.context, num_slots=num_slots, prompt_tokens=prompt_tokens,
            buckets=lengths, cache_bytes=cache_bytes, deterministic=deterministic, share_prefixes=share_prefixes,
            num_guesses=num_guesses, sandbox=sandbox, weights=weights, kernels=kernels, steps=steps,
            step_kernels=step_kernels,
        )  # fmt: skip
        self._forms = Forms(tokenizer)
        self._worker = Worker(model, tokenizer, setup, self._specials, self._commands)
        self._releases = openmp_releases() if self._worker.runner.device.type == "cpu" else []
        self._release_threads()
        self._thread = threading.Thread(target=self._worker.run, name="intone-engine", daemon=True)
        self._thread.start()

    @property
    def num_token_forwards(self) -> int:
        """Tokens that went through the model so far, padding not counted."""
        return self._worker.runner.num_token_forwards

    @property
    def healthy(self) -> bool:
        """Whether requests are answered: not closed, and the model has not failed."""
        return not self._is_closed and self._worker.failure is None

    @property
    def settings(self) -> dict[str, tuple[Any, str]]:
        """What was settled for this machine, name -> (value, reason)."""
        return dict(self._worker.settled)

    def explain(self, name: str, reason: str) -> None:
        """Gives a setting that the caller decided the reason for which it did; settings shows it."""
        value, _ = self._worker.settled[name]
        self._worker.settled[name] = (value, reason)

    def stats(self) -> EngineStats:
        """What the engine has done so far; waits for the end of the present step."""
        if not self.healthy:
            return self._worker.stats()
        found: EngineStats = self._call(self._worker.stats)
        return found

    def tools(self) -> dict[str, str]:
        """Each tool that requests may name, and "on", or "off: " and why. The first time takes half a second."""
        return self._worker.tools.describe()

    def submit(self, request: Request, *, listener: Listener | None = None) -> Handle:
        """Starts a request -> its handle, at once. Raises UserError for a prompt that cannot be answered.

        listener gets its events instead of whoever iterates the handle: for callers with many requests and one thread.
        Raises EngineFull where too many wait, EngineStopped after close() or a failure of the model.
        """
        return self._start(self._prepared(request, listener))

    def generate(
        self, requests: Sequence[Request], *, on_answer: Callable[[], None] = lambda: None
    ) -> list[list[Completion]]:
        """Answers all requests together -> per request its n completions.

        Every request is checked before the first starts; max_waiting does not apply. A failure is a completion with
        reason "error". Interrupted (Ctrl-C), it cancels what still runs. on_answer is called after each request, in
        their order.
        """
        groups = [self._prepared(request, is_read=False) for request in requests]
        handles: list[Handle] = []
        self._release_threads()
        try:
            handles += [self._start(group, is_bounded=False) for group in groups]
            results = []
            for handle in handles:
                results.append(handle.result())
                on_answer()
            return results
        except BaseException:
            for handle in handles:
                handle.cancel()
            raise

    def score(self, texts: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """Log-probability of every token given those before it: texts of T ids -> arrays (T - 1,) float32, nats.

        Batches of texts alternate with steps of what runs meanwhile.
        Raises UserError for an empty text, an unknown id, or one longer than the context.
        """
        checked = [check_prompt(ids, vocab_size=self.vocab_size, context=self.context, room=0) for ids in texts]
        scores = [np.zeros(0, dtype=np.float32)] * len(checked)
        for places in self._worker.scored_together(checked):
            batch = [checked[place] for place in places]
            for place, score in zip(places, self._call(partial(self._worker.score, batch)), strict=True):
                scores[place] = score
        return scores

    def update_weights(self, state: dict[str, Tensor], *, stored_as: Weights | None = None) -> None:
        """Copies new weights in, converted to the engine's dtype. Waits until no sample is half done.

        stored_as: how our kernels keep matrices from here on; None: as before. Requests that wait meanwhile get the
        new weights. Raises RuntimeError where names or shapes differ, UserError where PyTorch computes.
        """
        self._release_threads()
        self._call(lambda: self._worker.load(state, stored_as), when_idle=True)

    def limit(
        self, *, num_slots: int | None = None, prompt_tokens: int | None = None, buckets: Sequence[int] | None = None
    ) -> None:
        """Computes less at once from here on than it was opened with; None: as before. Waits as update_weights() does.

        So that sizes can be compared within one engine: they change how fast texts come, not what they say.
        Raises UserError for more than it was opened with, and for buckets where steps are not captured.
        """
        lengths = checked_sizes(num_slots, prompt_tokens, buckets)
        self._call(lambda: self._worker.limit(num_slots, prompt_tokens, lengths), when_idle=True)

    def close(self) -> None:
        """Cancels what runs and ends the threads; harmless when called twice."""
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                self._commands.put(None)
        self._thread.join()
        self._forms.close()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _release_threads(self) -> None:
        """The caller's OpenMP threads go: the engine's thread computes from here on."""
        for release in self._releases:
            release()

    def _prepared(self, request: Request, listener: Listener | None = None, *, is_read: bool = True) -> Group:
        """The request, checked, ready for the engine's thread. Raises UserError."""
        ids = check_prompt(
            _prompt_ids(request.prompt, self.tokenizer), vocab_size=self.vocab_size, context=self.context
        )
        check_ids("stop", [stop for stop in request.stops if isinstance(stop, int)], vocab_size=self.vocab_size)
        check_ids("logit_bias", list(request.logit_bias), vocab_size=self.vocab_size)
        room = self.context - len(ids)
        if request.min_tokens > room:
            raise UserError(
                f"min_tokens is {request.min_tokens:,}, but a prompt of {len(ids):,} tokens leaves room for {room:,}",
                value=request.min_tokens,
                fix="shorten the prompt, or ask for fewer tokens",
            )
        self._worker.tools.require(request.tool_names)
        grammar = self._forms.grammar(request.form) if request.form is not None else None
        seed = secrets.randbits(63) if request.seed is None else request.seed
        handle = Handle(request, seed=seed, on_cancel=self._cancel_soon, listener=listener)
        limit = room if request.max_tokens is None else min(room, request.max_tokens)
        return Group(handle, ids, limit, self.tokenizer, self._specials, grammar, is_read=is_read)

    def _start(self, group: Group, *, is_bounded: bool = True) -> Handle:
        if is_bounded and self._max_waiting is not None and self._worker.num_waiting >= self._max_waiting:
            raise EngineFull(f"{self._max_waiting:,} requests wait already")
        self._put(lambda: self._worker.enqueue(group))
        return group.handle

    def _put(self, command: Callable[[], None]) -> None:
        failure = self._worker.failure
        if failure is not None:
            raise EngineStopped(f"the engine stopped: {failure}") from failure
        with self._lock:
            if self._is_closed:
                raise EngineStopped("the engine is closed")
            self._commands.put(command)

    def _cancel_soon(self, handle: Handle) -> None:
        with self._lock:
            if not self._is_closed:
                self._commands.put(lambda: self._worker.cancel(handle))

    def _call(self, function: Callable[[], Any], *, when_idle: bool = False) -> Any:
        """Runs function on the engine's thread -> its result, or raises its exception here."""
        future: Future[Any] = Future()

        def run() -> None:
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)

        self._put((lambda: self._worker.updates.append(run)) if when_idle else run)
        return future.result()


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
