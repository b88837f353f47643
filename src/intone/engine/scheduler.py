"""Which request gets which slot and what is computed next; plain Python, knows nothing of tensors."""

from collections import deque
from dataclasses import dataclass

from intone.engine.rows import Group, Row

# padding a group of prompts may cost at most this share of its computation (guess)
PADDED_SHARE = 0.2


@dataclass(frozen=True)
class Admitted:
    """Rows that start now. With source None the first row feeds the prompt and the others copy it from there.

    Otherwise the prompt was fed before and all rows copy it from source, a row of the same request.
    """

    group: Group
    rows: list[Row]
    source: Row | None


class Scheduler:
    """First come, first served over num_slots slots; samples of one request start together as far as slots go."""

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        self.waiting: deque[Group] = deque()
        self.rows: dict[int, Row] = {}

    @property
    def is_idle(self) -> bool:
        return not self.waiting and not self.rows

    def admit(self) -> list[Admitted]:
        """Gives free slots to waiting samples, lowest slots first."""
        admitted = []
        free = [slot for slot in range(self.num_slots) if slot not in self.rows]
        while free and self.waiting:
            group = self.waiting[0]
            source = group.active[0] if group.active else None
            rows = [group.start_row(slot) for slot in free[: group.num_waiting]]
            free = free[len(rows) :]
            if source is None:
                rows[0].pending = list(group.prompt)
            self.rows.update((row.slot, row) for row in rows)
            admitted.append(Admitted(group, rows, source))
            if not group.num_waiting:
                self.waiting.popleft()
        return admitted

    def start_in(self, slot: int, group: Group) -> Row:
        """The next sample of a request that is being admitted, in a slot that is free now."""
        row = self.rows[slot] = group.start_row(slot)
        if not group.num_waiting:
            self.waiting.remove(group)
        return row

    def release(self, row: Row) -> None:
        del self.rows[row.slot]

    def drop(self, group: Group) -> list[Row]:
        """Takes a whole request out -> its rows, whose slots are free now."""
        rows = list(group.active)
        for row in rows:
            self.release(row)
        if group in self.waiting:
            self.waiting.remove(group)
        return rows

    def clear(self) -> None:
        """Forgets all requests."""
        self.rows.clear()
        self.waiting.clear()

    def compact(self) -> list[tuple[int, int]]:
        """Moves the highest rows into the gaps below -> [(from slot, to slot)]; the cache must follow in this order.

        With rows in slots 0..B-1 a step reads the cache in place instead of gathering a copy of it.
        """
        moves = []
        holes = [slot for slot in range(len(self.rows)) if slot not in self.rows]
        highest = sorted((slot for slot in self.rows if slot >= len(self.rows)), reverse=True)
        for source, hole in zip(highest, holes, strict=True):
            row = self.rows.pop(source)
            row.slot = hole
            self.rows[hole] = row
            moves.append((source, hole))
        return moves

    def fed_together(self, max_tokens: int) -> list[list[Row]]:
        """Rows with several tokens to feed, in groups of similar length.

        A group padded to its longest has at most max_tokens (unless it is a single row) and PADDED_SHARE padding.
        Prompts and tool answers are kept apart: a prompt that starts a slot needs nothing from the cache.
        """
        groups: list[list[Row]] = []
        rows = [row for row in self.rows.values() if len(row.pending) > 1]
        rows.sort(key=lambda row: (bool(row.ids), -len(row.pending), row.slot))
        used = 0
        for row in rows:
            size = len(row.pending)
            if groups and bool(groups[-1][0].ids) == bool(row.ids):
                padded = len(groups[-1][0].pending) * (len(groups[-1]) + 1)
                if padded <= max_tokens and used + size >= (1 - PADDED_SHARE) * padded:
                    groups[-1].append(row)
                    used += size
                    continue
            groups.append([row])
            used = size
        return groups

    def fed_singly(self) -> list[Row]:
        """Rows with exactly one token to feed, by slot: the decode step."""
        return [self.rows[slot] for slot in sorted(self.rows) if len(self.rows[slot].pending) == 1]
