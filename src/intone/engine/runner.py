"""The engine's hold on the device: what the scheduler planned becomes one forward pass, and its draws tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from intone.engine import sample
from intone.engine.adjust import Adjuster
from intone.engine.attend import PagedAttention, Piece, Scratch
from intone.engine.decoder import Batch, Decoder, wide_dtype
from intone.engine.kv import PageStore
from intone.engine.native_decoder import NativeDecoder, as_drawing
from intone.engine.pages import PAGE
from intone.engine.rows import Row
from intone.engine.scheduler import Segment
from intone.engine.structured import FormFailed
from intone.model.native.steps import draw, summary

# float32 logits of a batch of scored texts stay below a quarter of a GiB
MOST_SCORED_LOGITS = 1 << 26


@dataclass(frozen=True)
class Drawn:
    """The next token of one row. logprob None: nobody asked. problem: why there is none; id is worthless then."""

    id: int
    logprob: float | None
    top: tuple[tuple[int, float], ...]
    problem: Exception | None = None


class Runner:
    """Runs the model for rows of the scheduler. For one thread, inside torch.inference_mode."""

    def __init__(self, decoder: Decoder, store: PageStore, *, deterministic: bool) -> None:
        config = decoder.config
        self.decoder = decoder
        self.store = store
        self.device = store.device
        self.vocab_size = config.vocab_size
        self.num_token_forwards = 0
        self.adjuster = Adjuster(config.vocab_size, self.device)
        self._deterministic = deterministic
        self.scale = config.qk_scale**2 * config.head_width**-0.5
        # PyTorch's fused attention is 3x slower on bfloat16 than on float32 where the processor has no unit for it
        wide = wide_dtype(decoder.dtype) if self.device.type == "cpu" else decoder.dtype
        self._scratch = Scratch(config.num_kv_heads, config.head_width, wide, self.device)

    def feed(self, segments: Sequence[Segment]) -> tuple[Tensor, Tensor]:
        """Feeds the segments' tokens -> logits (M, V): for each last one those after its last own token, then after
        every guess; and (U, V) those after each of the others, which tell whether its keys are finite.

        Keys are written into reserved pages; advancing the tables is the caller's.
        """
        ids: list[int] = []
        previous: list[int] = []
        positions: list[int] = []
        wanted: list[int] = []
        unfinished: list[int] = []
        pieces: list[Piece] = []
        for segment in segments:
            begin, row = len(ids), segment.row
            tokens = [*row.tokens(segment.start, segment.start + segment.count), *segment.guesses]
            before = row.tokens(segment.start - 1, segment.start)[0] if segment.start else -1
            ids += tokens
            previous += [before, *tokens[:-1]]
            positions += range(segment.start, segment.start + len(tokens))
            pieces += self._pieces(segment, begin, len(tokens))
            places = wanted if segment.is_last else unfinished
            places += range(begin + segment.count - 1, begin + len(tokens))
        attention = PagedAttention(
            self.store,
            pieces,
            scratch=self._scratch,
            scale=self.scale,
            batches_rows=self.device.type != "cpu" and not self._deterministic,
        )
        self.num_token_forwards += len(ids)
        logits = self._logits(ids, previous, positions, [*wanted, *unfinished], attention)
        return logits[: len(wanted)], logits[len(wanted) :]

    def sync_finite(self, logits: Tensor) -> list[bool]:
        """Of each row of logits (B, V) whether it is finite, and so all keys behind it. Waits for the device."""
        found: list[bool] = sample.usable(logits).tolist()
        return found

    def sync_draw(self, rows: Sequence[Row], positions: Sequence[int], logits: Tensor) -> list[Drawn]:
        """The token of every row at a position from its logits (B, V). Waits for the device: the one wait of a step.

        A row may come several times, at several positions.
        """
        requests = [row.group.request for row in rows]
        masks, failures = _masks(rows)
        adjusted = self.adjuster.adjusted(logits, rows, masks)
        settings, asked = sample.settings_of(requests, self.vocab_size), any(entry.logprobs for entry in requests)
        uniform = np.zeros(len(rows))
        if not settings.is_greedy.all():
            uniform = sample.uniforms(np.array([row.stream for row in rows]), np.array(positions))
        drawn_by = _drawn_by_kernels if isinstance(self.decoder, NativeDecoder) else _sync_drawn
        found, is_finite, is_possible, *logprobs = drawn_by(logits, adjusted, settings, uniform, has_logprobs=asked)
        num_top = min(self.vocab_size, max(request.top_logprobs for request in requests))
        tops = self._sync_top(logits, num_top) if num_top else [()] * len(rows)
        drawn = []
        for i, request in enumerate(requests):
            problem: Exception | None = failures.get(i)
            if not is_finite[i]:
                problem = not_finite(positions[i])
            elif not is_possible[i]:
                left = "biases and form leave" if i in masks else "biases leave"
                problem = FloatingPointError(f"the request's {left} no token to choose at position {positions[i]}")
            logprob = logprobs[0][i] if request.logprobs else None
            drawn.append(Drawn(int(found[i]), logprob, tops[i][: request.top_logprobs], problem))
        return drawn

    def score(self, texts: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """Log-probabilities (T - 1,) float32 in nats of each text's tokens after its first; texts of 2 ids or more."""
        ids: list[int] = []
        previous: list[int] = []
        positions: list[int] = []
        wanted: list[int] = []
        pieces: list[Piece] = []
        for text in texts:
            begin = len(ids)
            ids += text
            previous += [-1, *text[:-1]]
            positions += range(len(text))
            wanted += range(begin, begin + len(text) - 1)
            step = PAGE if self._deterministic else len(text)
            pieces += [Piece(None, at, min(step, len(text) - at), begin) for at in range(0, len(text), step)]
        attention = PagedAttention(self.store, pieces, scratch=self._scratch, scale=self.scale, batches_rows=False)
        self.num_token_forwards += len(ids)
        # scan: ok[S45] the engine's thread runs all of this in inference mode
        logits = self._logits(ids, previous, positions, wanted, attention)
        following = torch.tensor([token for text in texts for token in text[1:]], device=self.device)
        scores = sample.logprobs_of(logits, following).float().cpu().numpy()
        ends = np.cumsum([len(text) - 1 for text in texts])
        return [part.copy() for part in np.split(scores, ends[:-1])]

    def scored_together(self, texts: Sequence[Sequence[int]], most_tokens: int) -> list[list[int]]:
        """Places of texts, in batches of at most most_tokens and of bounded logits, unless one text is longer."""
        most = max(1, min(most_tokens, MOST_SCORED_LOGITS // self.vocab_size))
        batches: list[list[int]] = []
        num_tokens = 0
        for place, text in enumerate(texts):
            if len(text) < 2:
                continue
            if not batches or num_tokens + len(text) > most:
                batches.append([])
                num_tokens = 0
            batches[-1].append(place)
            num_tokens += len(text)
        return batches

    def _logits(
        self, ids: list[int], previous: list[int], positions: list[int], wanted: list[int], attention: PagedAttention
    ) -> Tensor:
        # one transfer for all four
        numbers = torch.tensor([*ids, *previous, *positions, *wanted]).to(self.device)
        count = len(ids)
        parts = numbers.split([count, count, count, len(wanted)])
        return self.decoder.logits(Batch(parts[0], parts[1], parts[2], parts[3], attention))

    def _pieces(self, segment: Segment, begin: int, count: int) -> list[Piece]:
        """How a segment's tokens attend. Deterministic: prompts page by page, later tokens one by one, wherever the
        segment begins or ends, so that the same token is always computed in the same company."""
        table, start = segment.row.table, segment.start
        assert table is not None, "a row without pages was planned"
        origin = begin if start == 0 else None
        if not self._deterministic:
            return [Piece(table, start, count, origin if count > 1 else None)]
        pieces = []
        prompt_end = len(segment.row.group.prompt)
        place, end = start, start + count
        while place < end:
            stop = min(end, prompt_end, (place // PAGE + 1) * PAGE) if place < prompt_end else place + 1
            pieces.append(Piece(table, place, stop - place, origin if stop - place > 1 else None))
            place = stop
        return pieces

    def _sync_top(self, logits: Tensor, num_top: int) -> list[tuple[tuple[int, float], ...]]:
        values, ids = logits.log_softmax(-1).topk(num_top)
        return [tuple(zip(*pair, strict=True)) for pair in zip(ids.tolist(), values.tolist(), strict=True)]


def not_finite(position: int) -> FloatingPointError:
    """What a request fails with whose numbers are no numbers any more."""
    return FloatingPointError(f"the model's logits are not finite at position {position}")


def _sync_drawn(
    logits: Tensor, adjusted: Tensor, settings: sample.Settings, uniform: np.ndarray, *, has_logprobs: bool
) -> list[list[float]]:
    """Per row the id drawn from adjusted, whether logits are finite, whether a token is left; and its log-probability
    if asked. Waits for the device once."""
    ids = sample.choose(adjusted, settings, uniform)
    wide = torch.float64 if logits.device.type != "mps" else torch.float32
    columns = [ids.to(wide), sample.usable(logits).to(wide), sample.usable(adjusted).to(wide)]
    if has_logprobs:
        columns.append(sample.logprobs_of(logits, ids).to(wide))
    found: list[list[float]] = torch.stack(columns).tolist()
    return found


def _drawn_by_kernels(
    logits: Tensor, adjusted: Tensor, settings: sample.Settings, uniform: np.ndarray, *, has_logprobs: bool
) -> list[list[float]]:
    """The same by our kernels, as bursts draw too: PyTorch's passes took 8 % of a step of 110M weights, 16 % with a
    top_k."""
    ids, reached = draw(adjusted, as_drawing(settings, uniform))
    is_possible = is_finite = np.isfinite(reached)
    if has_logprobs or adjusted is not logits:
        _, largest, total = summary(logits)
        is_finite = np.isfinite(largest)
    columns = [ids.tolist(), is_finite.tolist(), is_possible.tolist()]
    if has_logprobs:
        chosen = logits.numpy()[np.arange(len(ids)), ids]
        with np.errstate(invalid="ignore", divide="ignore"):  # rows that are not finite have none
            columns.append((chosen.astype(np.float64) - largest - np.log(total)).tolist())
    return columns


def _masks(rows: Sequence[Row]) -> tuple[dict[int, np.ndarray], dict[int, FormFailed]]:
    """What the forms of answers allow next, and which could not be followed, by place in rows.

    Waits for masks that the helper has not finished: it began them when the last token was taken.
    """
    masks: dict[int, np.ndarray] = {}
    failures: dict[int, FormFailed] = {}
    for place, row in enumerate(rows):
        if row.matcher is not None:
            try:
                masks[place] = row.matcher.mask()
            except FormFailed as error:
                failures[place] = error
    return masks, failures
