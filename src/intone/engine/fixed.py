"""A step of generation of fixed sizes: the device feeds, draws and stops by itself, and the host reads later"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from intone.engine import sample
from intone.engine.decoder import Batch, Decoder, GPTDecoder, wide_dtype
from intone.engine.fused_decoder import FEW_ROWS, FusedDecoder, StepRows
from intone.engine.kv import PageStore
from intone.engine.pages import PAGE
from intone.engine.rows import Row

# one step is captured per number of rows and number of tokens seen; a batch uses the next larger of both. Few sizes:
# each is captured when it is first met, and texts wait for that
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
CONTEXTS = (512, 2048)
MOST_STOPS = 16  # token ids that end a row, on the device; a row with more of them is stepped by the host
RUNNING, FINITE, DECIDED = 1, 2, 4  # flags of a result
# how far logits of two ways to compute a step may be apart, relative to their norm: ten times what rounding does
LOGITS_DIFFER = {torch.float32: 1e-3, torch.bfloat16: 0.05}


@dataclass(frozen=True)
class Result:
    """What a step gave one row. is_usable False: the row was not stepped, or its token must be drawn by the host."""

    id: int
    logprob: float
    is_usable: bool
    is_finite: bool


@dataclass(frozen=True)
class Shape:
    """Which of the captured steps: rows, tokens seen at most, whether all rows take the likeliest token, and whether
    somebody asked for log-probabilities."""

    rows: int
    context: int
    is_greedy: bool
    has_logprobs: bool


class FixedSteps:
    """The rows' state in buffers of the device, and steps over them that need nothing from the host.

    begin() uploads a set of rows; launch() computes their next token and everything that follows from it; results
    come in order by sync_result(), which waits for a step that was launched earlier. On CUDA a step is a captured
    graph, checked against the plain calls when it is captured; elsewhere it is the plain calls. For one thread.
    """

    def __init__(
        self, decoder: Decoder, store: PageStore, *, context: int, scale: float, most_rows: int, num_slots: int = 16,
        buckets: Sequence[int] | None = None, is_fused: bool = False,
    ) -> None:  # fmt: skip
        """buckets: lengths that steps are made for, ascending, besides the whole context; None: CONTEXTS.

        is_fused: our step kernels compute the logits, which fused_obstacle() must allow.
        """
        device = store.device
        self.most_rows = most_rows
        self.buckets = tuple(CONTEXTS if buckets is None else buckets)
        self._decoder, self._store, self._device, self._scale = decoder, store, device, scale
        self._context, self._wide = context, wide_dtype(decoder.dtype) if device.type == "cpu" else decoder.dtype
        size = next((count for count in ROWS if count >= most_rows), most_rows)
        whole = torch.int64
        # token to feed, the one before, its position, tokens left, whether it runs, random stream, top_k
        self._whole = torch.zeros((7, size), dtype=whole, device=device)
        self._real = torch.zeros((3, size), dtype=torch.float64, device=device)  # temperature, top_p, min_p
        self._stops = torch.full((size, MOST_STOPS), -1, dtype=whole, device=device)
        # behind the pages that texts get there is one of each group for whatever rows write that do not run
        self._trash = [_trash_page(store, group) for group in range(len(store.groups))]
        self._fused: FusedDecoder | None = None
        if is_fused:
            assert isinstance(decoder, GPTDecoder), "the caller asked fused_obstacle()"
            self._fused = FusedDecoder(decoder, store, trash=self._trash, scale=scale)
        shape = (size, -(-context // PAGE))
        self._tables = [torch.full(shape, trash, dtype=whole, device=device) for trash in self._trash]
        self._out = torch.zeros((3, size), dtype=torch.float64, device=device)
        is_cuda = device.type == "cuda"
        self._slots = [torch.zeros((3, size), dtype=torch.float64, pin_memory=is_cuda) for _ in range(num_slots)]
        self._events = [torch.cuda.Event() if is_cuda else None for _ in range(num_slots)]
        self._steps: dict[Shape, Callable[[], None]] = {}
        self._checked: set[int] = set()  # ways of our kernels whose logits were compared
        self._pool = torch.cuda.graph_pool_handle() if is_cuda else None
        self._rows: list[Row] = []
        self._versions: list[int] = []
        self._ahead = 0  # steps launched whose results were not read
        self._num_launched = 0
        self._longest = 0  # position of the token fed next, at most
        self._size = 0  # of rows, as captured
        self._is_greedy = self._has_logprobs = False

    def begin(self, rows: Sequence[Row]) -> None:
        """Uploads the rows, each with one token to feed and pages for it; nothing may be in flight."""
        assert not self._ahead and 0 < len(rows) <= self.most_rows, f"{self._ahead} in flight, {len(rows)} rows"
        self._rows = list(rows)
        size = next((count for count in ROWS if count >= len(rows)), self.most_rows)
        whole = np.zeros((7, size), dtype=np.int64)
        whole[6] = self._decoder.config.vocab_size  # of the rows that fill the shape up, too
        real = np.ones((3, size))
        stops = np.full((size, MOST_STOPS), -1, dtype=np.int64)
        for place, row in enumerate(rows):
            request, position = row.group.request, row.position - 1
            before = row.tokens(position - 1, position)[0] if position else -1
            left = row.group.limit - len(row.ids)
            top_k = request.top_k or self._decoder.config.vocab_size
            stream = int(row.stream.astype(np.int64))
            whole[:, place] = (row.ids[-1], before, position, left, 1, stream, top_k)
            real[:, place] = (request.temperature, request.top_p, request.min_p)
            ends = sorted(stops_of(row))
            stops[place, : len(ends)] = ends
        self._whole[:, :size].copy_(torch.from_numpy(whole))
        self._real[:, :size].copy_(torch.from_numpy(real))
        self._stops[:size].copy_(torch.from_numpy(stops))
        for table, trash in zip(self._tables, self._trash, strict=True):
            table[:size].fill_(trash)
        self._versions = [-1] * len(rows)
        self._longest = int(whole[2].max())
        self._is_greedy = all(row.group.request.temperature < sample.GREEDY_TEMPERATURE for row in rows)
        self._has_logprobs = any(row.group.request.logprobs for row in rows)
        self._size = size

    def launch(self) -> None:
        """Starts the next step of every row that still runs; pages for its token must be reserved."""
        assert self._ahead < len(self._slots), "a result would be written over before it is read"
        for place, row in enumerate(self._rows):
            if row.table is not None and row.table.version != self._versions[place]:
                self._upload_pages(place, row)
        seen = self._longest + 1
        context = next((size for size in self.buckets if seen <= size < self._context), self._context)
        shape = Shape(self._size, context, self._is_greedy, self._has_logprobs)
        step = self._steps.get(shape)
        if step is None:
            step = self._steps[shape] = self._prepared(shape)
        step()
        slot = self._num_launched % len(self._slots)
        self._slots[slot].copy_(self._out, non_blocking=True)
        event = self._events[slot]
        if event is not None:
            event.record()
        self._num_launched += 1
        self._ahead += 1
        self._longest += 1

    def forget(self) -> None:
        """Drops all captured steps: they read weights where these were when they were captured."""
        assert not self._ahead, "a step still runs"
        self._steps.clear()

    def leave_kernels(self) -> bool:
        """After a failure of our step kernels: drops them and what is in flight, so that PyTorch computes what follows.

        False, and nothing changed: PyTorch computed already.
        """
        if self._fused is None:
            return False
        self._fused = None
        self._ahead = 0
        self._steps.clear()
        return True

    @property
    def most_ahead(self) -> int:
        """Steps that may be launched before one of their results is read."""
        return len(self._slots)

    @property
    def num_ahead(self) -> int:
        """Steps whose results were not read."""
        return self._ahead

    def sync_result(self) -> list[Result]:
        """What the oldest step that was not read gave each row of begin(). Waits for that step, not for later ones."""
        slot = (self._num_launched - self._ahead) % len(self._slots)
        event = self._events[slot]
        if event is not None:
            event.synchronize()
        self._ahead -= 1
        ids, logprobs, flags = self._slots[slot][:, : len(self._rows)].tolist()
        results = []
        for token, logprob, flag in zip(ids, logprobs, map(int, flags), strict=True):
            is_broken = bool(flag & RUNNING) and not flag & FINITE
            results.append(Result(int(token), logprob, flag == RUNNING | FINITE | DECIDED, not is_broken))
        return results

    def _upload_pages(self, place: int, row: Row) -> None:
        assert row.table is not None, "the caller looked"
        self._versions[place] = row.table.version
        for group, table in enumerate(self._tables):
            pages = np.array(row.table.pages[group], dtype=np.int64)
            pages[pages < 0] = self._trash[group]  # given back: no later token reads them
            # scan: ok[S34] a few numbers: CUDA stages them at once, where a blocking copy would wait for the queue
            table[place, : len(pages)].copy_(torch.from_numpy(pages), non_blocking=True)

    def _prepared(self, shape: Shape) -> Callable[[], None]:
        """The step of one shape, captured where that is possible. Raises StepsDiffer, or what capturing raises."""

        def plain() -> None:
            self._step(shape)

        self._check_kernels(shape)
        if self._device.type != "cuda":
            return plain
        begin, count = self._whole.clone(), len(self._rows)
        stream = torch.cuda.Stream(self._device)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            plain()  # libraries make their work spaces at the first call, which a capture does not allow
        torch.cuda.current_stream().wait_stream(stream)
        expected, after = self._out[0, :count].clone(), self._whole[:, :count].clone()
        self._whole.copy_(begin)
        graph = torch.cuda.CUDAGraph()
        # others may allocate in their threads meanwhile
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            plain()
        graph.replay()
        # keys are written a second time as they were, so the replay must find the same tokens
        if not (torch.equal(self._out[0, :count], expected) and torch.equal(self._whole[:, :count], after)):
            raise StepsDiffer(f"a captured step of {shape.rows} rows gives other tokens than its plain calls")
        self._whole.copy_(begin)
        return graph.replay

    def _check_kernels(self, shape: Shape) -> None:
        """Raises StepsDiffer where our kernels' logits are not PyTorch's: whatever builds them here may do it wrongly.

        Once for each way to cut the work (fused_decoder.py), before the first step that is taken so.
        """
        kind = min(shape.rows, 2) if shape.rows <= FEW_ROWS else shape.rows
        if self._fused is None or kind in self._checked:
            return
        count = len(self._rows)
        ours, theirs = (self._logits(shape, fused)[:count] for fused in (self._fused, None))
        bound = LOGITS_DIFFER.get(self._decoder.dtype, LOGITS_DIFFER[torch.bfloat16])
        far = (ours - theirs).norm(dim=1) / theirs.norm(dim=1).clamp_min(1e-3)
        worst = float(torch.where(sample.usable(theirs), far, 0.0).max())
        if not worst <= bound:
            raise StepsDiffer(f"{shape.rows} rows have logits {worst:.1%} off PyTorch's")
        self._checked.add(kind)

    def _step(self, shape: Shape) -> None:
        """One token of every running row, from its state to its state; without a decision of the host."""
        self._choose(shape, self._logits(shape, self._fused))

    def _logits(self, shape: Shape, fused: FusedDecoder | None) -> Tensor:
        """The logits (B, V) of every row's next token, by our kernels or by PyTorch's; keys and values are stored."""
        size = shape.rows
        token, before, position, _, running, _, _ = self._whole[:, :size].unbind()
        tables = [table[:size] for table in self._tables]
        if fused is not None:
            return fused.logits(StepRows(token, before, position, running, tables), context=shape.context)
        attention = FixedAttention(
            self._store, tables, self._trash, position, running > 0, context=shape.context, scale=self._scale,
            wide=self._wide,
        )  # fmt: skip
        wanted = torch.arange(size, device=self._device)
        return self._decoder.logits(Batch(token, before, position, wanted, attention))

    def _choose(self, shape: Shape, logits: Tensor) -> None:
        """The next token of every running row from the logits (B, V), and what follows from it."""
        size = shape.rows
        if self._fused is not None and shape.is_greedy and not shape.has_logprobs:
            self._fused.take_likeliest(logits, self._whole, self._stops, self._out, (RUNNING, FINITE, DECIDED))
            return
        token, before, position, left, running, stream, top_k = self._whole[:, :size].unbind()
        is_running = running > 0
        if shape.is_greedy:
            ids, is_decided = sample.argmax(logits), torch.ones_like(is_running)
        else:
            uniform = sample.uniforms_on_device(stream, position + 1)
            temperature, top_p, min_p = self._real[:, :size].unbind()
            ids, is_decided = sample.choose_on_device(logits, temperature, top_k, top_p, min_p, uniform)
        is_finite = sample.usable(logits)
        goes_on = is_running & is_finite & is_decided
        flags = RUNNING * is_running.long() + FINITE * is_finite.long() + DECIDED * is_decided.long()
        self._out[0, :size] = ids
        if shape.has_logprobs:
            self._out[1, :size] = sample.logprobs_of(logits, ids)
        self._out[2, :size] = flags
        has_ended = (ids[:, None] == self._stops[:size]).any(1) | (left <= 1)
        state = torch.stack(
            (
                torch.where(goes_on, ids, token), torch.where(goes_on, token, before), position + goes_on.long(),
                left - goes_on.long(), (goes_on & ~has_ended).long(), stream, top_k,
            )
        )  # fmt: skip
        self._whole[:, :size] = state


class StepsDiffer(RuntimeError):
    """A captured step does not compute what its plain calls do: it must not be used."""


class FixedAttention:
    """Attention of one new token of each row over so many of its pages, whatever its length; the rest is masked."""

    def __init__(
        self, store: PageStore, tables: Sequence[Tensor], trash: Sequence[int], position: Tensor, running: Tensor,
        *, context: int, scale: float, wide: torch.dtype,
    ) -> None:  # fmt: skip
        self._store, self._scale, self._wide = store, scale, wide
        self._writes: list[Tensor] = []
        self._pages: list[Tensor] = []
        self._masks: list[Tensor] = []
        device = position.device
        own = position // PAGE
        for table, unused, group in zip(tables, trash, store.groups, strict=True):
            current = table.gather(1, own[:, None])
            place = current[:, 0] * PAGE + position % PAGE
            self._writes.append(torch.where(running, place, unused * PAGE + position % PAGE))
            num_pages = min(table.shape[1], -(-context // PAGE))
            low = torch.zeros_like(position)
            if group.reach is not None:
                num_pages = min(num_pages, group.reach // PAGE + 2)
                low = (position - group.reach).clamp(min=0)
            index = (low // PAGE)[:, None] + torch.arange(num_pages, device=device)
            # beyond the text's end its own newest page is read and masked: others' pages may hold what is not finite
            inside = index <= own[:, None]
            self._pages.append(torch.where(inside, table.gather(1, index.clamp(max=table.shape[1] - 1)), current))
            seen = (index[:, :, None] * PAGE + torch.arange(PAGE, device=device)).flatten(1)
            self._masks.append(((seen >= low[:, None]) & (seen <= position[:, None]))[:, None, None])

    def __call__(self, block: int, q: Tensor, kv: Tensor) -> Tensor:
        """q (B, H, C), kv (B, 2, K, C) -> (B, H, C) like q; stores kv."""
        group, stored = self._store.group_of[block], self._store.blocks[block]
        stored.index_copy_(0, self._writes[group], kv)
        found = stored.unflatten(0, (-1, PAGE))[self._pages[group]].flatten(1, 2).to(self._wide)
        keys, values = found.permute(2, 0, 3, 1, 4).unbind()
        grouped = q.to(self._wide).unflatten(1, (keys.shape[1], -1))
        y = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=self._masks[group], scale=self._scale)
        return y.flatten(1, 2).to(q.dtype)


def can_step(row: Row) -> bool:
    """Whether the device can choose this row's tokens by itself: nothing that the host keeps changes its logits."""
    request, group = row.group.request, row.group
    return (
        bool(row.ids) and row.num_pending == 1 and not row.is_paused and row.table is not None
        and row.matcher is None and not request.has_penalties and group.bias is None and not row.is_too_short
        and not request.top_logprobs and len(stops_of(row)) <= MOST_STOPS
    )  # fmt: skip


def stops_of(row: Row) -> frozenset[int]:
    """Tokens after which the device must not go on by itself: ends, and the end of a call that a tool answers."""
    group = row.group
    return group.stop_ids | ({group.specials.call_end} if group.tools else frozenset())


def _trash_page(store: PageStore, group: int) -> int:
    return len(store.blocks[store.groups[group].blocks[0]]) // PAGE - 1
