"""How documents are laid into rows of a fixed number of tokens with next to no padding and few cuts."""

import bisect
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Packing:
    """Rows as lists of segments; segment s is item[s][start[s] : start[s] + length[s]].

    Row r holds segments first[r] : first[r + 1], laid out one behind the other from position 0.
    """

    item: np.ndarray  # (S,) int64, index into the packed lengths
    start: np.ndarray  # (S,) int64, first token inside the item
    length: np.ndarray  # (S,) int64, 1..context tokens
    first: np.ndarray  # (R + 1,) int64

    @property
    def num_rows(self) -> int:
        return len(self.first) - 1

    def reordered(self, order: np.ndarray) -> "Packing":
        """The same rows in another order."""
        counts = np.diff(self.first)[order]
        segments = ranges(self.first[:-1][order], counts)
        first = np.concatenate([[0], np.cumsum(counts)])
        return Packing(self.item[segments], self.start[segments], self.length[segments], first)


def ranges(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """start, start + 1, ... for every (start, count), one behind the other: (sum of counts,) int64."""
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    return np.repeat(starts - (ends - counts), counts) + np.arange(total, dtype=np.int64)


def shuffled(count: int, *keys: int) -> np.ndarray:
    """A permutation of 0..count-1 (int64) that depends on the keys alone, on every machine and NumPy version.

    Sorts the outputs of SplitMix64 (Steele, Lea, Flood 2014) at count consecutive states.
    """
    with np.errstate(over="ignore"):
        state = np.zeros(1, np.uint64)
        for key in keys:
            state = _mixed(state + np.uint64(key % 2**64))
        noise = _mixed(state + np.arange(count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    return np.argsort(noise, kind="stable")


def _mixed(values: np.ndarray) -> np.ndarray:
    """The output function of SplitMix64: a bijection of 64-bit integers without visible structure."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def pack(lengths: np.ndarray, *, context: int, whole: np.ndarray | None = None) -> Packing:
    """Lays every token of every item into rows of context tokens; equal input gives equal rows.

    lengths (N,) tokens of each item. An item longer than a row first fills rows of its own; what is left of it, and
    every shorter item, is a piece. A row starts with the longest piece, then takes pieces that fill it exactly
    where one or two such exist, otherwise the longest that fits. When none fits, the longest piece is cut to
    fill the row and its rest stays in the game. So every row is full but the last.
    whole (N,) bool: pieces of these items are never cut (conversations); their rows may end in padding.
    About 3 microseconds an item; a search is a few operations on integers of context bits.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    rows = _RowBuilder(context)
    num_full = lengths // context
    rows.add_full_rows(lengths, num_full)
    cuttable, uncut = _Pieces(context), _Pieces(context)
    rest = lengths - num_full * context
    for item in np.flatnonzero(rest).tolist():
        pool = uncut if whole is not None and whole[item] else cuttable
        pool.put(item, int(num_full[item]) * context, int(rest[item]))
    while cuttable.present or uncut.present:
        _fill_row(rows, cuttable, uncut, context)
    return rows.packing()


class _RowBuilder:
    """Collects segments row by row."""

    def __init__(self, context: int) -> None:
        self._context = context
        self._full: tuple[np.ndarray, np.ndarray] = (np.empty(0, np.int64), np.empty(0, np.int64))
        self.segments: list[tuple[int, int, int]] = []
        self.row_ends: list[int] = []

    def add_full_rows(self, lengths: np.ndarray, num_full: np.ndarray) -> None:
        items = np.repeat(np.arange(len(lengths), dtype=np.int64), num_full)
        self._full = (items, ranges(np.zeros(len(lengths), np.int64), num_full) * self._context)

    def packing(self) -> Packing:
        items, starts = self._full
        tail = np.array(self.segments, dtype=np.int64).reshape(-1, 3)
        ends = np.array(self.row_ends, dtype=np.int64) + len(items)
        return Packing(
            item=np.concatenate([items, tail[:, 0]]),
            start=np.concatenate([starts, tail[:, 1]]),
            length=np.concatenate([np.full(len(items), self._context, np.int64), tail[:, 2]]),
            first=np.concatenate([np.arange(len(items) + 1, dtype=np.int64), ends]),
        )


class _Pieces:
    """Pieces by length. present has bit n set where a piece of n tokens exists, mirror has bit context - n."""

    def __init__(self, context: int) -> None:
        self.context = context
        self._stacks: list[list[tuple[int, int]]] = [[] for _ in range(context + 1)]
        self.present = 0
        self.mirror = 0

    def put(self, item: int, start: int, length: int) -> None:
        stack = self._stacks[length]
        if not stack:
            self.present |= 1 << length
            self.mirror |= 1 << (self.context - length)
        stack.append((item, start))

    def take(self, length: int) -> tuple[int, int]:
        stack = self._stacks[length]
        piece = stack.pop()
        if not stack:
            self.present ^= 1 << length
            self.mirror ^= 1 << (self.context - length)
        return piece

    def count(self, length: int) -> int:
        return len(self._stacks[length])


def _fill_row(rows: _RowBuilder, cuttable: _Pieces, uncut: _Pieces, context: int) -> None:
    gap = context
    while gap:
        length = _next_length(gap, cuttable, uncut, is_new_row=gap == context)
        if not length:
            break
        # whole pieces first: the others can still be cut to fit
        pool = uncut if uncut.present >> length & 1 else cuttable
        rows.segments.append((*pool.take(length), length))
        gap -= length
    if gap and cuttable.present:
        longest = cuttable.present.bit_length() - 1
        item, start = cuttable.take(longest)
        rows.segments.append((item, start, gap))
        cuttable.put(item, start + gap, longest - gap)
    rows.row_ends.append(len(rows.segments))


def _next_length(gap: int, cuttable: _Pieces, uncut: _Pieces, *, is_new_row: bool) -> int:
    """The length of the piece to lay next into a gap, 0 where none fits."""
    present = cuttable.present | uncut.present
    fitting = present & ((2 << gap) - 1)
    longest = fitting.bit_length() - 1
    if longest <= 0:
        return 0
    if is_new_row or longest == gap:
        return longest
    # bit n survives where pieces of n and of gap - n tokens both exist: together they fill the row
    pairs = fitting & ((cuttable.mirror | uncut.mirror) >> (cuttable.context - gap))
    half = gap // 2
    if gap % 2 == 0 and pairs >> half & 1 and cuttable.count(half) + uncut.count(half) < 2:
        pairs ^= 1 << half
    return pairs.bit_length() - 1 if pairs else longest


# --- windows of an endless shuffled stream ------------------------------------------------------------------------

WINDOW_DOCUMENTS = 8192  # enough lengths to choose from: 0.3 % of the documents are cut, planning takes 30 ms
WINDOW_ROWS = (256, 8192)  # at least so many rows, that one row's padding is little; at most, that planning is short
# different uses of one seed must not give related permutations
ORDER, SHARE, ROW_ORDER = 1, 2, 3


@dataclass(frozen=True)
class Window:
    """Consecutive rows of the sequence; items of the packing are document numbers."""

    epoch: int
    first_row: int
    packing: Packing
    epochs_begin: float  # epochs passed before the first of these rows
    epochs_end: float
    num_tokens: int  # tokens of the documents that belong to the window, however they were laid

    @property
    def end_row(self) -> int:
        return self.first_row + self.packing.num_rows


class EpochOrder:
    """Which documents every epoch has, and in which order: all sets shuffled together, anew in each epoch.

    lengths (D,) of all sets one behind the other; set_sizes their numbers of documents; weights how often each set
    comes in an epoch: 2.0 twice, 0.5 every other document (the other half in the next epoch).
    """

    def __init__(self, lengths: np.ndarray, set_sizes: list[int], weights: list[float], seed: int) -> None:
        self.lengths = lengths
        self.is_constant = all(weight == int(weight) for weight in weights)
        self._sizes, self._weights, self._seed = set_sizes, weights, seed
        self._cached: tuple[int, np.ndarray] | None = None
        # by set: where an epoch takes a small part of a large set, ordering that set anew would cost more than the part
        self._rings: dict[int, np.ndarray] = {}

    def documents(self, epoch: int) -> np.ndarray:
        """The epoch's documents in order, (n,) int32 or int64."""
        if self._cached is None or self._cached[0] != epoch:
            chosen = self._chosen(epoch)
            self._cached = (epoch, chosen[shuffled(len(chosen), self._seed, ORDER, epoch)])
        return self._cached[1]

    def num_tokens(self, epoch: int) -> int:
        return int(self.lengths[self._chosen(epoch)].sum(dtype=np.int64))

    def _chosen(self, epoch: int) -> np.ndarray:
        parts, begin = [], 0
        dtype = np.int32 if len(self.lengths) < 2**31 else np.int64
        for number, (size, weight) in enumerate(zip(self._sizes, self._weights, strict=True)):
            everything = np.arange(begin, begin + size, dtype=dtype)
            parts.extend([everything] * int(weight))
            share = round((weight - int(weight)) * size)
            if weight < 1:
                share = max(share, 1)  # a set is never left out
            if share:
                if number not in self._rings:
                    self._rings[number] = everything[shuffled(size, self._seed, SHARE, number)]
                parts.append(self._rings[number][(epoch * share + np.arange(share)) % size])
            begin += size
        return np.concatenate(parts)


class CutWindows:
    """Windows over documents that may be cut: row r is found without looking at the rows before it.

    An epoch's documents, in order, are one stream of tokens. A window is a stretch of it that fills its rows exactly;
    so no token is dropped and only an epoch's last row has padding. Inside a window documents are packed by best
    fit, and the rows then shuffled (the packer makes rows with long documents first): the later part of a cut
    document can come in an earlier row than its beginning. Nothing passes from row to row, so nothing is lost.
    """

    def __init__(self, order: EpochOrder, context: int, seed: int) -> None:
        self._order, self._context, self._seed = order, context, seed
        mean = float(order.lengths.mean())
        self._window_rows = int(np.clip(WINDOW_DOCUMENTS * mean / context, *WINDOW_ROWS))
        self._constant_rows = self._rows_of(0) if order.is_constant else None
        self._epoch_first = [0]  # first row of every epoch met so far, where their sizes differ
        self._ends: tuple[int, np.ndarray] | None = None

    def window_at(self, row: int) -> Window:
        epoch, epoch_first, num_rows = self._epoch_of(row)
        window_tokens = self._window_rows * self._context
        number = (row - epoch_first) // self._window_rows
        ends = self._token_ends(epoch)
        begin, end = number * window_tokens, min((number + 1) * window_tokens, int(ends[-1]))
        first, last = int(np.searchsorted(ends, begin, side="right")), int(np.searchsorted(ends, end, side="left"))
        documents = self._order.documents(epoch)[first : last + 1].astype(np.int64)
        lengths = self._order.lengths[documents].astype(np.int64)
        skipped = np.zeros(len(lengths), np.int64)
        skipped[0] = begin - (ends[first] - lengths[0])
        lengths[-1] -= ends[last] - end
        lengths -= skipped
        packing = pack(lengths, context=self._context)
        packing = packing.reordered(shuffled(packing.num_rows, self._seed, ROW_ORDER, epoch, number))
        done = number * self._window_rows
        return Window(
            epoch=epoch,
            first_row=epoch_first + done,
            packing=_of_documents(packing, documents, skipped),
            epochs_begin=epoch + done / num_rows,
            epochs_end=epoch + (done + packing.num_rows) / num_rows,
            num_tokens=end - begin,
        )

    def _epoch_of(self, row: int) -> tuple[int, int, int]:
        """(epoch, its first row, its number of rows)"""
        if self._constant_rows:
            epoch = row // self._constant_rows
            return epoch, epoch * self._constant_rows, self._constant_rows
        while self._epoch_first[-1] <= row:
            self._epoch_first.append(self._epoch_first[-1] + self._rows_of(len(self._epoch_first) - 1))
        epoch = bisect.bisect_right(self._epoch_first, row) - 1
        return epoch, self._epoch_first[epoch], self._epoch_first[epoch + 1] - self._epoch_first[epoch]

    def _rows_of(self, epoch: int) -> int:
        return -(-self._order.num_tokens(epoch) // self._context)

    def _token_ends(self, epoch: int) -> np.ndarray:
        """Where each of the epoch's documents ends in the stream, (n,) int64."""
        if self._ends is None or self._ends[0] != epoch:
            lengths = self._order.lengths[self._order.documents(epoch)]
            self._ends = (epoch, np.cumsum(lengths, dtype=np.int64))
        return self._ends[1]


class WholeWindows:
    """Windows where some items (conversations) must stay whole: how many rows one has is known when it is planned.

    A window is a fixed number of consecutive documents of the epoch, packed by itself: padding is left in a few of
    its last rows. To find a row, the windows before it are planned once (lengths only, 3 microseconds a document).
    """

    def __init__(self, order: EpochOrder, context: int, seed: int, *, whole: np.ndarray) -> None:
        self._order, self._context, self._seed, self._whole = order, context, seed, whole
        mean = float(order.lengths.mean())
        self._window_documents = max(WINDOW_DOCUMENTS, round(WINDOW_ROWS[0] * context / mean))
        self._first_rows = [0]  # first row of every planned window, and of the next one
        self._places: list[tuple[int, int]] = []  # (epoch, number in it) of every planned window
        self._latest: Window | None = None

    def window_at(self, row: int) -> Window:
        while self._first_rows[-1] <= row:
            epoch, number = self._next_place()
            self._latest = self._plan(epoch, number, first_row=self._first_rows[-1])
            self._places.append((epoch, number))
            self._first_rows.append(self._latest.end_row)
        index = bisect.bisect_right(self._first_rows, row) - 1
        if self._latest is None or self._latest.first_row != self._first_rows[index]:
            self._latest = self._plan(*self._places[index], first_row=self._first_rows[index])
        return self._latest

    def _next_place(self) -> tuple[int, int]:
        if not self._places:
            return 0, 0
        epoch, number = self._places[-1]
        is_last = number + 1 == self._num_windows(epoch)
        return (epoch + 1, 0) if is_last else (epoch, number + 1)

    def _num_windows(self, epoch: int) -> int:
        return -(-len(self._order.documents(epoch)) // self._window_documents)

    def _plan(self, epoch: int, number: int, *, first_row: int) -> Window:
        everything, num_windows = self._order.documents(epoch), self._num_windows(epoch)
        begin, end = (len(everything) * part // num_windows for part in (number, number + 1))
        documents = everything[begin:end].astype(np.int64)
        lengths = self._order.lengths[documents]
        packing = pack(lengths, context=self._context, whole=self._whole[documents])
        packing = packing.reordered(shuffled(packing.num_rows, self._seed, ROW_ORDER, epoch, number))
        return Window(
            epoch=epoch,
            first_row=first_row,
            packing=_of_documents(packing, documents, np.zeros(len(documents), np.int64)),
            epochs_begin=epoch + number / num_windows,
            epochs_end=epoch + (number + 1) / num_windows,
            num_tokens=int(lengths.sum(dtype=np.int64)),
        )


def _of_documents(packing: Packing, documents: np.ndarray, skipped: np.ndarray) -> Packing:
    """Item numbers of a packed window -> document numbers and positions inside the documents."""
    return Packing(documents[packing.item], packing.start + skipped[packing.item], packing.length, packing.first)
