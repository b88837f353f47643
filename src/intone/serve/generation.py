"""One HTTP request's share of an engine: submitted, watched for the client's leaving, and ended in every case."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any

from intone.serve.admission import Admission
from intone.serve.link import EngineGone, EngineLink, Inbox
from intone.serve.metrics import Metrics
from intone.serve.problems import Problem, unavailable

Receive = Callable[[], Awaitable[Mapping[str, Any]]]


class ClientGone(Exception):
    """The client closed its connection; nobody reads an answer."""


class Generation:
    """Engine requests of one HTTP request. Close it in every case: that frees their pages."""

    def __init__(
        self, link: EngineLink, requests: Sequence[Mapping[str, Any]], *, admission: Admission, metrics: Metrics,
        model: str, queue_timeout_s: float, timeout_s: float, arrived_s: float,
    ) -> None:  # fmt: skip
        self.num_prompts = len(requests)
        self._link = link
        self._requests = requests
        self._admission = admission
        self._metrics = metrics
        self._model = model
        self._queue_timeout_s = queue_timeout_s
        self._timeout_s = timeout_s
        self._arrived_s = arrived_s
        self._inbox = Inbox()
        self._places: dict[int, int] = {}  # number of an engine request that has not ended -> place of its prompt
        self._watch: asyncio.Task[None] | None = None
        self._early: list[list[Any]] = []
        self._times: dict[tuple[int, int], list[float]] = {}
        self._started_s: dict[int, float] = {}

    async def begin(self, receive: Receive) -> None:
        """Submits, and waits for the first thing that is written. Raises Problem, ClientGone."""
        try:
            for place, request in enumerate(self._requests):
                number = self._link.submit(request, self._inbox)
                self._places[number] = place
                self._admission.enter((self._link, number), len(request["prompt"]))
        except EngineGone as error:
            raise unavailable(str(error)) from None
        self._watch = asyncio.create_task(self._watch_client(receive))
        end_s = self._arrived_s + min(self._queue_timeout_s, self._timeout_s)
        try:
            async with asyncio.timeout(end_s - time.monotonic()):
                while not self._early:
                    self._early = self._taken(await self._inbox.take())
        except TimeoutError:
            waited_s = time.monotonic() - self._arrived_s
            raise unavailable(
                f"nothing was written within {waited_s:.0f} s: too much waits", code="queue_timeout", retry_s=waited_s
            ) from None

    async def messages(self) -> AsyncIterator[list[list[Any]]]:
        """Messages of outbox.py with the place of the prompt in place of the number, until all has ended.

        Raises Problem, ClientGone, also in the middle.
        """
        end_s = self._arrived_s + self._timeout_s
        if self._early:
            yield self._early
        while self._places:
            try:
                async with asyncio.timeout(end_s - time.monotonic()):
                    arrived = await self._inbox.take()
            except TimeoutError:
                message = f"the answer was not complete within {self._timeout_s:g} s; ask for fewer tokens"
                raise unavailable(message, code="request_timeout") from None
            taken = self._taken(arrived)
            if taken:
                yield taken

    async def close(self) -> None:
        """Cancels what still runs; harmless when called twice."""
        for number in list(self._places):
            self._end(number)
            self._link.cancel(number)
        if self._watch is not None:
            self._watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watch
            self._watch = None

    async def _watch_client(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._inbox.put(["gone", 0])

    def _end(self, number: int) -> None:
        self._places.pop(number, None)
        self._admission.leave((self._link, number))

    def _taken(self, messages: list[list[Any]]) -> list[list[Any]]:
        found = []
        for message in messages:
            kind, number = message[0], message[1]
            if kind == "gone":
                raise ClientGone
            if kind == "accepted" or number not in self._places:
                continue
            if kind == "refused":
                self._end(number)
                raise refusal(*message[2:])
            if kind == "failed":
                raise failure(*message[2:])
            place = self._places[number]
            if kind == "end":
                self._end(number)
                continue
            if kind == "start":
                self._admission.leave((self._link, number))
                self._started_s[place] = message[2]
                self._metrics.queue_s.labels(self._model).observe(max(0.0, message[2] - self._arrived_s))
                continue
            self._measure(place, message)
            found.append([kind, place, *message[2:]])
        return found

    def _measure(self, place: int, message: list[Any]) -> None:
        metrics, model, key = self._metrics, self._model, (place, message[2])
        if message[0] == "text":
            count, time_s = message[4], time.monotonic()
            metrics.new_tokens.labels(model).inc(count)
            if key not in self._times:
                self._times[key] = [time_s, time_s]
                metrics.first_token_s.labels(model).observe(time_s - self._arrived_s)
                metrics.prefill_s.labels(model).observe(max(0.0, message[6] - self._started_s[place]))
            else:
                metrics.between_tokens_s.labels(model).observe((time_s - self._times[key][1]) / count)
                self._times[key][1] = time_s
        elif message[0] == "done" and key in self._times:
            first_s, now_s, num_tokens = self._times[key][0], time.monotonic(), message[5]
            metrics.answers.labels(model, message[3]).inc()
            metrics.whole_s.labels(model).observe(now_s - self._arrived_s)
            metrics.decode_s.labels(model).observe(now_s - first_s)
            metrics.answer_size.labels(model).observe(num_tokens)
            if num_tokens > 1:
                metrics.per_token_s.labels(model).observe((now_s - first_s) / (num_tokens - 1))
            if message[2] == 0:
                metrics.prompt_tokens.labels(model).inc(message[4])
                metrics.prompt_size.labels(model).observe(message[4])


def refusal(kind: str, message: str, fix: str | None) -> Problem:
    """Why the engine did not take a request."""
    text = f"{message}; {fix}" if fix else message
    if kind == "bad_input":
        param = "response_format" if "schema" in message or "regex" in message or "choice" in message else None
        return Problem(400, text, param=param)
    return unavailable(text)


def failure(kind: str, message: str) -> Problem:
    """Why an answer broke off."""
    if kind == "FormFailed":
        return Problem(400, message, param="response_format", code="form_failed")
    if kind == "FloatingPointError" and "biases" in message:
        return Problem(400, message, param="logit_bias", code="nothing_to_choose")
    return unavailable(message, code="generation_failed")
