"""Keys and values of running texts in fixed slots, so that a step computes only the new tokens."""

import torch
from torch import Tensor

from intone.config import ModelConfig


def slot_bytes(config: ModelConfig, *, capacity: int, dtype: torch.dtype) -> int:
    """Bytes that one slot of a KVCache takes: keys and values of every block, and one embedding."""
    entries = config.depth * 2 * config.num_kv_heads * (capacity + 1) * config.head_width + config.width
    return entries * torch.empty((), dtype=dtype).element_size()


class KVCache:
    """num_slots independent texts of up to capacity tokens each.

    Per block one tensor of keys and one of values (num_slots, K, capacity + 1, C); the extra position takes what
    padding would write and is never read. lengths[slot] is the number of tokens stored, a Python int, so that
    nobody has to ask the device. Blocks with a window keep the whole capacity. Not safe for several threads.
    """

    def __init__(
        self, config: ModelConfig, *, num_slots: int, capacity: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.num_slots = num_slots
        self.capacity = capacity
        self.device = torch.device(device)
        shape = (num_slots, config.num_kv_heads, capacity + 1, config.head_width)
        # zeros, not empty: a masked key has weight 0, and 0 times a left-over NaN is NaN
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.depth)]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.depth)]
        self.previous = torch.zeros((num_slots, config.width), dtype=dtype, device=device)
        self.lengths = [0] * num_slots

    def view(self, slots: list[int], num_new: list[int]) -> "CacheView":
        """What model.logits needs to append num_new[b] tokens to slots[b]; T is max(num_new).

        Slots must be distinct and each must have room; both are asserted. Changes nothing until append.
        """
        assert slots and len(slots) == len(num_new) == len(set(slots)), f"slots {slots}, num_new {num_new}"
        for slot, count in zip(slots, num_new, strict=True):
            room = self.capacity - self.lengths[slot]
            assert 0 <= count <= room, f"slot {slot} has room for {room} tokens, asked for {count}"
        return CacheView(self, slots, num_new)

    def free(self, slot: int) -> None:
        """Forgets the text of a slot; its old keys stay in memory and are never seen again."""
        self.lengths[slot] = 0

    def scrub(self, slot: int) -> None:
        """Frees a slot and zeroes it, for a text whose numbers were not finite: 0 times NaN would spread."""
        self.lengths[slot] = 0
        for stored in (*self.keys, *self.values):
            stored[slot].zero_()
        self.previous[slot].zero_()

    def copy(self, from_slot: int, to_slots: list[int], *, length: int | None = None) -> None:
        """Makes to_slots hold the first `length` tokens (default: all) of from_slot, replacing what they held.

        With a shorter length the embedding of the last token is not that of the prefix: rewind() to set it.
        """
        count = self.lengths[from_slot] if length is None else length
        assert count <= self.lengths[from_slot], f"slot {from_slot} holds {self.lengths[from_slot]} tokens, not {count}"
        for slot in to_slots:
            for stored in (*self.keys, *self.values):
                stored[slot, :, :count] = stored[from_slot, :, :count]
            self.previous[slot] = self.previous[from_slot]
            self.lengths[slot] = count

    def rewind(self, slot: int, length: int, previous: Tensor) -> None:
        """Cuts a slot back to its first `length` tokens; previous (D,) is the embedding of the last that stays."""
        assert length <= self.lengths[slot], f"slot {slot} holds {self.lengths[slot]} tokens, not {length}"
        self.lengths[slot] = length
        self.previous[slot] = previous


class CacheView:
    """The cache as one forward pass sees it: B rows, T new positions.

    positions (B, T) int64 absolute positions of the new ids; those of padding are clamped to the row's last token.
    """

    def __init__(self, cache: KVCache, slots: list[int], num_new: list[int]) -> None:
        self._cache = cache
        self._slots = slots
        self._num_new = num_new
        self._before = [cache.lengths[slot] for slot in slots]
        self._after = [start + count for start, count in zip(self._before, num_new, strict=True)]
        self._num_columns = max(num_new)
        self._num_keys = max(1, *self._after)
        self._in_order = slots == list(range(slots[0], slots[0] + len(slots)))
        self._aligned = len(set(self._before)) == 1 and len(set(num_new)) == 1
        self._masks: dict[int, Tensor] = {}
        self._last: Tensor | None = None
        device = cache.device
        self._slot_index = torch.tensor(slots, device=device)
        before = torch.tensor(self._before, device=device)[:, None]
        last = torch.tensor([max(0, end - 1) for end in self._after], device=device)[:, None]
        exact = before + torch.arange(self._num_columns, device=device)
        self.positions = torch.minimum(exact, last)
        self._write_positions = exact.masked_fill(exact > last, cache.capacity)
        if 0 in num_new:
            empty = torch.tensor([count == 0 for count in num_new], device=device)[:, None]
            self._write_positions.masked_fill_(empty, cache.capacity)
        self._has_previous = before[:, 0] > 0

    def previous(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Normed embedding (B, D) of the token before the new ones, and (B,) bool whether there is one.

        Rows without one hold left-overs. x (B, T, D), the new embeddings, is not used.
        """
        return self._rows_of(self._cache.previous), self._has_previous

    def append(self, block: int, k: Tensor, v: Tensor, window: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Stores k, v (B, T, K, C) and returns all that the new tokens may see.

        -> keys (B, K, S, C), values (B, K, S, C), mask (B, 1, T, S) bool: a query at position p sees the keys of its
        own row in (p - window, p]; None means plain causal, T == S. Keys before the first that any row can see are
        left out. No gradient passes.
        """
        k, v = k.detach(), v.detach()
        self._store(self._cache.keys[block], k)
        self._store(self._cache.values[block], v)
        if self._num_keys == self._num_columns and not any(self._before):
            # all texts start here: what they see is what was just computed, no need to read it back
            dtype = self._cache.keys[block].dtype
            mask = None if window >= self._num_keys else self._mask(window, 0)
            return k.transpose(1, 2).to(dtype), v.transpose(1, 2).to(dtype), mask
        first = max(0, min(self._before) - window + 1)
        keys = self._rows_of(self._cache.keys[block], first)
        values = self._rows_of(self._cache.values[block], first)
        return keys, values, self._mask(window, first)

    def keep_previous(self, x: Tensor) -> None:
        """Remembers, at commit, the embedding of each row's last new token. x (B, T, D)."""
        index = torch.tensor([max(0, count - 1) for count in self._num_new], device=x.device)
        self._last = x.detach()[torch.arange(len(self._slots), device=x.device), index]

    def commit(self) -> None:
        """Ends the pass: lengths grow by num_new. To be called once."""
        if self._last is not None:
            kept = self._last.to(self._cache.previous.dtype)
            if 0 in self._num_new:
                grew = torch.tensor([count > 0 for count in self._num_new], device=kept.device)[:, None]
                kept = torch.where(grew, kept, self._rows_of(self._cache.previous))
            self._cache.previous[self._slot_index] = kept
        for slot, end in zip(self._slots, self._after, strict=True):
            self._cache.lengths[slot] = end

    def _store(self, stored: Tensor, new: Tensor) -> None:
        if self._aligned and self._in_order:
            first, start = self._slots[0], self._before[0]
            stored[first : first + len(self._slots), :, start : start + self._num_columns] = new.transpose(1, 2)
        else:
            stored[self._slot_index[:, None], :, self._write_positions] = new.to(stored.dtype)

    def _rows_of(self, stored: Tensor, first: int = 0) -> Tensor:
        """The rows of this view from a per-slot tensor; a slice without copying where the slots are in order."""
        if stored.dim() == 4:
            stored = stored[:, :, first : self._num_keys]
        if self._in_order:
            return stored[self._slots[0] : self._slots[0] + len(self._slots)]
        return stored.index_select(0, self._slot_index)

    def _mask(self, window: int, first: int) -> Tensor:
        """(B, 1, T, S - first) bool, made once per window."""
        if window not in self._masks:
            keys = torch.arange(first, self._num_keys, device=self._cache.device)
            queries = self.positions[:, :, None]
            self._masks[window] = ((keys <= queries) & (keys > queries - window))[:, None]
        return self._masks[window]
