"""Attention of new tokens over the pages of their texts: what is read where, planned once per step for all blocks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from intone.engine.kv import PageStore, Table
from intone.engine.pages import PAGE

# reads keys and values of one step for one block: (stored, q, kv) -> (tokens, H, C)
Reader = Callable[[Tensor, Tensor, Tensor], Tensor]
# pages of one text as runs [begin, end) of entries in the store
Runs = list[tuple[int, int]]


@dataclass(frozen=True)
class Piece:
    """count new tokens of one text, at positions from start on, that attend in one call.

    table None: nothing is stored, all of the text is in this step. origin: where the text's token 0 is among the
    step's tokens, if it is; then nothing needs to be read back.
    """

    table: Table | None
    start: int
    count: int
    origin: int | None = None


class Scratch:
    """A buffer (tokens, 2, K, C) that keys and values are widened into; it grows and is never given back."""

    def __init__(self, num_kv_heads: int, head_width: int, dtype: torch.dtype, device: torch.device) -> None:
        self._buffer = torch.empty((0, 2, num_kv_heads, head_width), dtype=dtype, device=device)

    @property
    def dtype(self) -> torch.dtype:
        return self._buffer.dtype

    def of(self, num_tokens: int) -> Tensor:
        """At least so many tokens; what an earlier caller left in them is not kept when it grows."""
        if len(self._buffer) < num_tokens:
            size = 1 << (num_tokens - 1).bit_length()
            self._buffer = self._buffer.new_empty((size, *self._buffer.shape[1:]))
        return self._buffer


class PagedAttention:
    """One step's attention: call it once per block, with all new tokens.

    On a CPU every text is read by itself: its pages are copied, widened to float32, into a buffer that stays in the
    second-level cache, and PyTorch's fused kernel reads that. The kernel is 3x slower on bfloat16 than on float32,
    and widening gathers scattered pages for nothing: 16 texts of 128 tokens took 80 us per text and block, float32
    pages read in place 165 us (one core of an EPYC 9004, torch 2.13). Texts that begin with the same pages have them
    widened once. Elsewhere (batches_rows) all texts with one new token are gathered and masked in one call.
    """

    def __init__(
        self, store: PageStore, pieces: Sequence[Piece], *, scratch: Scratch, scale: float, batches_rows: bool
    ) -> None:
        self.store = store
        self.pieces = pieces
        self._dtype = scratch.dtype
        self._planned = lambda: [
            _Plan(store, group, pieces, scratch=scratch, scale=scale, batches_rows=batches_rows)
            for group in range(len(store.groups))
        ]
        self._plans: list[_Plan] | None = None  # made at the first call: a decoder may read the pages by itself

    def __call__(self, block: int, q: Tensor, kv: Tensor) -> Tensor:
        """q (N, H, C), kv (N, 2, K, C) in the store's dtype -> (N, H, C) like q, found in the scratch's; stores kv."""
        if self._plans is None:
            self._plans = self._planned()
        plan = self._plans[self.store.group_of[block]]
        stored = self.store.blocks[block]
        if plan.places is not None:
            stored.index_copy_(0, plan.places, kv)
        narrow = q.to(self._dtype)
        found = [reader(stored, narrow, kv) for reader in plan.readers]
        return (found[0] if len(found) == 1 else torch.cat(found)).to(q.dtype)


class _Plan:
    """What one group of blocks does in a step: places (N,) to write to (None: nowhere), and readers in token order."""

    def __init__(
        self, store: PageStore, group: int, pieces: Sequence[Piece],
        *, scratch: Scratch, scale: float, batches_rows: bool,
    ) -> None:  # fmt: skip
        self._group = group
        self._reach = store.groups[group].reach
        self._scratch = scratch
        self._scale = scale
        self._reads_in_place = store.dtype == scratch.dtype
        self.places = self._write_places(pieces, store.device)
        # grown before readers take views of it: they rely on what the reader before them left there
        scratch.of(max((piece.start + 1 for piece in pieces if piece.count == 1), default=0))
        singles = [piece for piece in pieces if piece.count == 1 and piece.table is not None]
        self.readers: list[Reader] = []
        is_batched = batches_rows and len(singles) > 1
        if is_batched:
            assert list(pieces[: len(singles)]) == singles, "texts with one new token come first"
            self.readers.append(self._batch_reader(singles, store.device))
        begin, widened = 0, list[int]()
        for piece in pieces:
            if piece.count > 1 or piece.table is None:
                self.readers.append(self._many_reader(piece, begin))
            elif not is_batched:
                self.readers.append(self._single_reader(piece, begin, widened))
            begin += piece.count

    def _write_places(self, pieces: Sequence[Piece], device: torch.device) -> Tensor | None:
        if any(piece.table is None for piece in pieces):
            return None
        places: list[int] = []
        for piece in pieces:
            assert piece.table is not None
            pages = piece.table.pages[self._group]
            if piece.count == 1:
                places.append(pages[piece.start // PAGE] * PAGE + piece.start % PAGE)
                continue
            for a, b in _runs(pages, piece.start, piece.start + piece.count):
                places.extend(range(a, b))
        return torch.tensor(places, device=device)

    def _first_seen(self, position: int) -> int:
        return 0 if self._reach is None else max(0, position - self._reach)

    def _single_reader(self, piece: Piece, index: int, widened: list[int]) -> Reader:
        """For one new token. widened: the pages that the reader before leaves at the start of the scratch; updated."""
        assert piece.table is not None
        pages, low, end = piece.table.pages[self._group], self._first_seen(piece.start), piece.start + 1
        runs = _runs(pages, low, end)
        scale = self._scale
        if self._reads_in_place and len(runs) == 1:
            (a, b), widened[:] = runs[0], []

            def read_in_place(stored: Tensor, q: Tensor, kv: Tensor) -> Tensor:
                keys, values = stored[a:b].permute(1, 2, 0, 3).unsqueeze(1).unbind()
                return _one_query(q[index], keys, values, scale)

            return read_in_place
        first = low // PAGE
        own = pages[first : -(-end // PAGE)]
        num_same = 0
        while num_same < min(len(own) - 1, len(widened) - 1) and own[num_same] == widened[num_same]:
            num_same += 1
        widened[:] = own
        buffer = self._scratch.of(end - first * PAGE)
        copies, place = [], num_same * PAGE
        for a, b in _runs(pages, (first + num_same) * PAGE, end):
            copies.append((buffer[place : place + b - a], a, b))
            place += b - a
        keys, values = buffer[low - first * PAGE : end - first * PAGE].permute(1, 2, 0, 3).unsqueeze(1).unbind()

        def read_widened(stored: Tensor, q: Tensor, kv: Tensor) -> Tensor:
            for target, a, b in copies:
                target.copy_(stored[a:b])
            return _one_query(q[index], keys, values, scale)

        return read_widened

    def _many_reader(self, piece: Piece, begin: int) -> Reader:
        """For several new tokens of one text: a part of a prompt, a tool's answer, or guessed tokens."""
        end = piece.start + piece.count
        low = self._first_seen(piece.start)
        mask = self._mask(piece, low)
        is_causal = mask is None and piece.count > 1
        scratch, scale, stop = self._scratch, self._scale, begin + piece.count
        if piece.origin is not None:
            a, b = piece.origin + low, piece.origin + end

            def read_new(stored: Tensor, q: Tensor, kv: Tensor) -> Tensor:
                return _many_queries(q[begin:stop], kv[a:b].to(scratch.dtype), mask, is_causal, scale)

            return read_new
        assert piece.table is not None, "tokens that are not stored must be in this step"
        runs = _runs(piece.table.pages[self._group], low, end)

        def read_pages(stored: Tensor, q: Tensor, kv: Tensor) -> Tensor:
            found = torch.cat([stored[a:b] for a, b in runs]) if len(runs) > 1 else stored[runs[0][0] : runs[0][1]]
            return _many_queries(q[begin:stop], found.to(scratch.dtype), mask, is_causal, scale)

        return read_pages

    def _mask(self, piece: Piece, low: int) -> Tensor | None:
        """What is added to scores (T, S), None where all keys up to each query's own are seen from key 0 on."""
        end = piece.start + piece.count
        sees_all = self._reach is None or end - 1 <= self._reach
        if piece.count == 1 or (piece.start == 0 and sees_all):
            return None
        device = self._scratch.of(0).device
        queries = torch.arange(piece.start, end, device=device)[:, None]
        keys = torch.arange(low, end, device=device)
        hidden = keys > queries
        if self._reach is not None:
            hidden |= keys < queries - self._reach
        return torch.zeros(hidden.shape, dtype=self._scratch.dtype, device=device).masked_fill_(hidden, -torch.inf)

    def _batch_reader(self, pieces: Sequence[Piece], device: torch.device) -> Reader:
        """For one new token of each of many texts: pages gathered to the longest, the rest masked."""
        rows, seen = [], []
        for piece in pieces:
            assert piece.table is not None
            low = self._first_seen(piece.start)
            first = low // PAGE
            rows.append(piece.table.pages[self._group][first : piece.start // PAGE + 1])
            seen.append((low - first * PAGE, piece.start - first * PAGE))
        longest = max(len(row) for row in rows)
        table = torch.tensor([row + [row[0]] * (longest - len(row)) for row in rows], device=device)
        place = torch.arange(longest * PAGE, device=device)
        low_seen, last_seen = torch.tensor(seen, device=device).T[:, :, None]
        mask = ((place >= low_seen) & (place <= last_seen))[:, None, None]
        scale, count, wide = self._scale, len(pieces), self._scratch.dtype

        def read_batch(stored: Tensor, q: Tensor, kv: Tensor) -> Tensor:
            found = stored.unflatten(0, (-1, PAGE))[table].flatten(1, 2).to(wide)
            keys, values = found.permute(2, 0, 3, 1, 4).unbind()
            grouped = q[:count].unflatten(1, (keys.shape[1], -1))
            y = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=mask, scale=scale)
            return y.flatten(1, 2)

        return read_batch


def _runs(pages: Sequence[int], begin: int, end: int) -> Runs:
    """Tokens [begin, end) of a text as runs of entries in the store; pages that lie side by side are one run."""
    runs: Runs = []
    for place in range(begin // PAGE, -(-end // PAGE)):
        a = pages[place] * PAGE + max(begin - place * PAGE, 0)
        b = pages[place] * PAGE + min(end - place * PAGE, PAGE)
        if runs and runs[-1][1] == a:
            runs[-1] = (runs[-1][0], b)
        else:
            runs.append((a, b))
    return runs


def _one_query(q: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    """q (H, C) over keys, values (1, K, S, C) -> (1, H, C); the queries of one key head are read together."""
    num_kv_heads = keys.shape[1]
    grouped = q.unflatten(0, (num_kv_heads, -1))[None]
    y = F.scaled_dot_product_attention(grouped, keys, values, scale=scale)
    return y.flatten(1, 2)


def _many_queries(q: Tensor, kv: Tensor, mask: Tensor | None, is_causal: bool, scale: float) -> Tensor:
    """q (T, H, C) over kv (S, 2, K, C) -> (T, H, C); mask (T, S) is added to scores."""
    keys, values = kv.permute(1, 2, 0, 3)[:, :, None].unbind()
    grouped = q.unflatten(1, (len(keys), -1)).permute(1, 2, 0, 3)  # (K, H / K, T, C)
    shape = (*grouped.shape[:2], *keys.shape[2:])
    y = F.scaled_dot_product_attention(
        grouped, keys.expand(shape), values.expand(shape), attn_mask=mask, is_causal=is_causal, scale=scale
    )
    return y.permute(2, 0, 1, 3).flatten(1, 2)
