"""The one seeded sequence of training rows: batches cut from it, prefetched in the background, exactly resumable."""

import contextlib
import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from intone.data.pack import CutWindows, EpochOrder, Packing, WholeWindows, Window, pack, ranges, shuffled
from intone.data.shards import TokenSet
from intone.errors import UserError


@dataclass(frozen=True)
class Batch:
    """B rows of T tokens.

    ids (B, T) int32; targets (B, T) int32, the token to predict at each position, -1: nothing is learned there;
    documents (B, T) int32, the number of the segment inside its row, padding has the number after the last.
    weights (B, T) float32, what the loss of each token counts in the step's sum, None: 1 each.
    """

    ids: np.ndarray
    targets: np.ndarray
    documents: np.ndarray
    weights: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, begin: int, end: int) -> "Batch":
        """Rows begin..end-1 as views: how ranks and micro-batches slice a step."""
        weights = None if self.weights is None else self.weights[begin:end]
        return Batch(self.ids[begin:end], self.targets[begin:end], self.documents[begin:end], weights)

    @property
    def num_counted(self) -> int:
        """Tokens that the mean loss is over: those that are learned."""
        return int((self.targets >= 0).sum())


@dataclass(frozen=True)
class RowStats:
    """What packing did to the rows planned so far, counted on the plans themselves."""

    num_rows: int
    padded_share: float  # of all positions
    dropped_share: float  # of all tokens of the documents that were due


class Rows:
    """Row 0, 1, 2, ... without end: documents of all sets shuffled together, packed, and shuffled anew every epoch.

    The sequence depends on the sets, context, seed and weights only. Step s of R rows is rows(s * R, R), whatever
    was asked before: the state of a run is its step number. Going on where the last call ended is cheap; elsewhere
    one window is planned anew (kind documents) or all windows before it once (sets with conversations).
    Not safe for two threads at once.
    """

    def __init__(
        self, token_sets: list[TokenSet], context: int, seed: int, *, weights: list[float] | None = None,
        learn_all: bool = False, one_text: bool = False,
    ) -> None:  # fmt: skip
        """weights: how often each set's documents come in one epoch (0.5: every other), None: once each.

        learn_all: the masks of conversations are ignored, every token but the first is learned.
        one_text: a row counts as one document, so that tokens see those before theirs too.
        Raises UserError where there is no set or nothing in it, tokenizers differ, or a weight is not positive.
        """
        _check(token_sets, context, weights)
        self.context = context
        self._sets, self._learn_all, self._one_text = token_sets, learn_all, one_text
        lengths = np.concatenate([token_set.lengths for token_set in token_sets])
        sizes = [token_set.num_documents for token_set in token_sets]
        self._set_first = np.concatenate([[0], np.cumsum(sizes)])
        order = EpochOrder(lengths, sizes, weights or [1.0] * len(sizes), seed)
        is_whole = [token_set.kind == "conversations" for token_set in token_sets]
        self._windows: CutWindows | WholeWindows
        if any(is_whole):
            self._windows = WholeWindows(order, context, seed, whole=np.repeat(is_whole, sizes))
        else:
            self._windows = CutWindows(order, context, seed)
        self._window: Window | None = None
        self._counted: dict[int, tuple[int, int, int]] = {}  # by first row: rows, tokens due, tokens laid

    def rows(self, first: int, count: int) -> Batch:
        """Rows first .. first + count - 1 of the sequence."""
        if first < 0 or count < 1:
            raise ValueError(f"rows({first}, {count})")
        parts, row = [], first
        while row < first + count:
            window = self._window_at(row)
            end = min(first + count, window.end_row)
            parts.append(_cut(window.packing, row - window.first_row, end - window.first_row))
            row = end
        packing = _joined(parts)
        batch = assemble(self._sets, self._set_first, packing, context=self.context, learn_all=self._learn_all)
        return replace(batch, documents=np.zeros_like(batch.documents)) if self._one_text else batch

    def epochs(self, num_rows: int) -> float:
        """How often the first num_rows rows went over the documents: 1.5 is one and a half times."""
        if num_rows == 0:
            return 0.0
        window = self._window_at(num_rows - 1)
        share = (num_rows - window.first_row) / window.packing.num_rows
        return window.epochs_begin + share * (window.epochs_end - window.epochs_begin)

    def stats(self) -> RowStats:
        """Padding and dropped tokens of every window planned so far; zeros before the first row was asked for."""
        if not self._counted:
            return RowStats(0, 0.0, 0.0)
        num_rows, due, laid = (sum(column) for column in zip(*self._counted.values(), strict=True))
        return RowStats(num_rows, 1 - laid / (num_rows * self.context), 1 - laid / due)

    @staticmethod
    def duplicate_rows(batch: Batch) -> int:
        """How many rows of the batch are equal to an earlier one; more than 0 only where the text repeats."""
        return len(batch) - len({row.tobytes() for row in batch.ids})

    def _window_at(self, row: int) -> Window:
        window = self._window
        if window is None or not window.first_row <= row < window.end_row:
            window = self._window = self._windows.window_at(row)
            packing = window.packing
            self._counted[window.first_row] = (packing.num_rows, window.num_tokens, int(packing.length.sum()))
        return window


def validation_rows(
    token_set: TokenSet, context: int, max_tokens: int | None = None, *, rows_per_batch: int = 16
) -> Iterator[Batch]:
    """A fixed list of batches for evaluation: the same for every run, every token once, packed, never shuffled.

    With max_tokens a fixed sample of the documents, the last one cut: exactly that many tokens, or all there are.
    Every batch has rows_per_batch rows, so that a compiled model sees one shape; the last is filled with padding.
    """
    lengths = token_set.lengths.astype(np.int64)
    documents = np.arange(len(lengths))
    if max_tokens is not None and max_tokens < token_set.num_tokens:
        sample = shuffled(len(lengths), 0)
        ends = np.cumsum(lengths[sample])
        last = int(np.searchsorted(ends, max_tokens))
        lengths[sample[last]] -= ends[last] - max_tokens
        documents = np.sort(sample[: last + 1])
    whole = np.full(len(documents), token_set.kind == "conversations")
    packing = pack(lengths[documents], context=context, whole=whole)
    packing = Packing(documents[packing.item], packing.start, packing.length, packing.first)
    set_first = np.array([0, token_set.num_documents])
    for begin in range(0, packing.num_rows, rows_per_batch):
        part = _cut(packing, begin, min(begin + rows_per_batch, packing.num_rows))
        missing = rows_per_batch - part.num_rows
        first = np.concatenate([part.first, np.full(missing, part.first[-1])])
        yield assemble([token_set], set_first, Packing(part.item, part.start, part.length, first), context=context)


class Prefetcher:
    """(step, Batch) for first_step, first_step + 1, ..., made by a background thread that stays depth steps ahead.

    An error in the thread is raised where the batch would have come. close() ends the thread; it is also the end
    of a with block. rows must not be used elsewhere meanwhile.
    """

    def __init__(
        self, rows: Rows, rows_per_step: int, first_step: int = 0, *, depth: int = 3, rank: int = 0, size: int = 1
    ) -> None:
        """rank of size: batches hold that share of each step's rows, the shares as equal as can be.

        Where a step has fewer rows than there are shares, an empty share is one row in which nothing is learned.
        """
        self._rows, self._rows_per_step = rows, rows_per_step
        self._begin, self._end = rows_per_step * rank // size, rows_per_step * (rank + 1) // size
        self._ready: queue.Queue[tuple[int, Batch] | BaseException] = queue.Queue(maxsize=depth)
        self._closed = threading.Event()
        self._may_work = threading.Event()
        self._may_work.set()
        self._turn = threading.Lock()  # held while a batch is made
        self._thread = threading.Thread(target=self._work, args=(first_step,), name="prefetch", daemon=True)
        self._thread.start()

    def __iter__(self) -> "Prefetcher":
        return self

    def __next__(self) -> tuple[int, Batch]:
        if self._closed.is_set():
            raise StopIteration
        item = self._ready.get()
        if isinstance(item, BaseException):
            self.close()
            raise item
        return item

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """No batch is made inside the with block; waits for one that is being made. What is ready stays ready."""
        self._may_work.clear()
        with self._turn:
            pass
        try:
            yield
        finally:
            self._may_work.set()

    def close(self) -> None:
        """Stops and joins the thread; batches made ahead are thrown away. Calling it twice is harmless."""
        self._closed.set()
        self._may_work.set()
        while self._thread.is_alive():
            while not self._ready.empty():  # makes room for a thread that waits to put
                self._ready.get_nowait()
            self._thread.join(timeout=0.05)

    def __enter__(self) -> "Prefetcher":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _batch(self, step: int) -> Batch:
        first, count = step * self._rows_per_step + self._begin, self._end - self._begin
        batch = self._rows.rows(first, max(count, 1))
        return batch if count else Batch(batch.ids, np.full_like(batch.targets, -1), batch.documents)

    def _work(self, step: int) -> None:
        try:
            while not self._closed.is_set():
                self._may_work.wait()
                with self._turn:
                    if not self._may_work.is_set():
                        continue  # paused between the two lines above
                    batch = self._batch(step)
                self._ready.put((step, batch))
                step += 1
        except BaseException as error:  # handed to the consumer, who is told and stops
            self._ready.put(error)


# --- assembling -------------------------------------------------------------------------------------------------


def assemble(
    token_sets: list[TokenSet], set_first: np.ndarray, packing: Packing, *, context: int, learn_all: bool = False
) -> Batch:
    """The rows of a packing as arrays. Items are documents numbered through all sets, set i from set_first[i] on."""
    num_rows = packing.num_rows
    counts = np.diff(packing.first)
    begins = _row_positions(packing, counts, context)
    where = ranges(begins, packing.length)
    ids = np.full(num_rows * context, token_sets[0].bos, np.int32)
    learned = np.zeros(num_rows * context, bool)
    documents = np.repeat(counts.astype(np.int32), context)
    numbers = np.arange(len(packing.item)) - np.repeat(packing.first[:-1], counts)
    documents[where] = np.repeat(numbers.astype(np.int32), packing.length)
    # the token after each segment: what its last position predicts
    after = np.empty(len(packing.item), np.int32)
    for token_set, first in zip(token_sets, set_first[:-1], strict=True):
        for shard in token_set.shards:
            shard_first = first + shard.first_document
            chosen = (packing.item >= shard_first) & (packing.item < shard_first + shard.num_documents)
            if not chosen.any():
                continue
            place = packing.item[chosen] - shard_first
            source_begin = shard.offsets[place] + packing.start[chosen]
            source_end = source_begin + packing.length[chosen]
            source = ranges(source_begin, packing.length[chosen])
            target = where if chosen.all() else ranges(begins[chosen], packing.length[chosen])
            ids[target] = shard.ids[source]
            is_last = source_end == shard.offsets[place + 1]
            following = np.where(is_last, source_end - 1, source_end)
            token = shard.ids[following].astype(np.int32)
            if shard.mask_bits is None or learn_all:
                learned[target] = True
                after[chosen] = np.where(is_last, token_set.bos, token)
            else:
                learned[target] = _bits(shard.mask_bits, source)
                after[chosen] = np.where(~is_last & _bits(shard.mask_bits, following), token, -1)
    targets = np.full(num_rows * context, -1, np.int32)
    targets[:-1] = np.where(learned[1:], ids[1:], -1)
    targets[begins + packing.length - 1] = after
    shape = (num_rows, context)
    is_padded = documents.reshape(shape)[:, -1] == counts
    targets.reshape(shape)[is_padded, -1] = -1  # padding must not look into the row below
    return Batch(ids.reshape(shape), targets.reshape(shape), documents.reshape(shape))


def _row_positions(packing: Packing, counts: np.ndarray, context: int) -> np.ndarray:
    """Where each segment begins in the flat (B * T,) array."""
    begins = np.cumsum(packing.length) - packing.length
    row_begins = np.concatenate([begins, [0]])[packing.first[:-1]]  # empty rows at the end read the extra entry
    rows = np.repeat(np.arange(packing.num_rows), counts)
    return begins - row_begins[rows] + rows * context


def _bits(packed: np.ndarray, positions: np.ndarray) -> np.ndarray:
    return (packed[positions >> 3] >> (7 - (positions & 7)).astype(np.uint8) & 1).astype(bool)


def _cut(packing: Packing, begin: int, end: int) -> Packing:
    """Rows begin..end-1 of a packing."""
    low, high = packing.first[begin], packing.first[end]
    return Packing(
        packing.item[low:high], packing.start[low:high], packing.length[low:high], packing.first[begin : end + 1] - low
    )


def _joined(parts: list[Packing]) -> Packing:
    if len(parts) == 1:
        return parts[0]
    counts = np.concatenate([np.diff(part.first) for part in parts])
    return Packing(
        np.concatenate([part.item for part in parts]),
        np.concatenate([part.start for part in parts]),
        np.concatenate([part.length for part in parts]),
        np.concatenate([[0], np.cumsum(counts)]),
    )


def _check(token_sets: list[TokenSet], context: int, weights: list[float] | None) -> None:
    if not token_sets:
        raise UserError("there is no token set to train on", fix="give --data a file or a folder with text")
    if context < 2:
        raise UserError(f"context {context} is too short", value=context, fix="use at least 2, better 256 or more")
    if len({token_set.tokenizer_hash for token_set in token_sets}) > 1:
        names = ", ".join(token_set.folder.name for token_set in token_sets)
        raise UserError(
            f"the token sets {names} were made with different tokenizers",
            value=names,
            fix="tokenise all of them with the tokenizer of the run",
        )
    if weights is not None and (len(weights) != len(token_sets) or min(weights) <= 0):
        raise UserError(f"weights {weights} must be {len(token_sets)} positive numbers", value=weights)
