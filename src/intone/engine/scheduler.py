"""Which samples run, who gives way when pages run out, and what is computed next; it computes nothing itself."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from intone.engine.kv import Cache
from intone.engine.pages import PAGE
from intone.engine.portion import Portion
from intone.engine.rows import Group, Row

# while a request does not fit, so many later ones may be let in before it; then all wait for it (guess)
MOST_OVERTAKING = 32
# requests looked at that do not fit, before the rest is left for the next step (guess)
MOST_BLOCKED = 8
# a request waits for a prompt that is being fed if that saves it so many tokens; a chat's first two tokens are
# common to all, and waiting for them would feed prompts one by one (guess)
WORTH_WAITING = 8


@dataclass(frozen=True)
class Segment:
    """Tokens of one row that go through the model in a step: count of its own, then guesses of what comes next."""

    row: Row
    start: int
    count: int
    guesses: tuple[int, ...] = ()

    @property
    def is_last(self) -> bool:
        """Whether logits for a new token come out."""
        return self.start + self.count == self.row.position


@dataclass(frozen=True)
class Limits:
    """How much is computed at once.

    num_slots: samples that run at once. alone_tokens: of prompts per step, while no text grows that somebody reads.
    mixed_tokens: while some do; portion.py says how many more, up to alone_tokens. num_guesses: tokens guessed per row
    and step, and most_guessing: with more growing rows than this nobody guesses. whole_pages: prompts are cut at page
    ends only.
    """

    num_slots: int
    alone_tokens: int
    mixed_tokens: int
    num_guesses: int = 0
    most_guessing: int = 0
    whole_pages: bool = False


class Scheduler:
    """Fair admission, chunked prompts, eviction. rows run, the one admitted first in front.

    A free slot goes to the request with the fewest running samples, of these to the oldest: many samples of one
    request cannot keep others out, and every request that waits gets on. Where pages run out, prompts kept for
    samples that have not started are given up, then the sample admitted last: its text is fed again later. The one
    admitted first always fits, so there is always progress.
    """

    def __init__(self, cache: Cache, limits: Limits) -> None:
        self.cache = cache
        self.limits = limits
        self.portion = Portion()
        self.waiting: dict[Group, None] = {}  # requests with samples that have no slot
        self.rows: list[Row] = []
        self.num_evicted = 0
        self.num_prompt_tokens = 0
        self.num_found_tokens = 0
        self.num_repeated = 0
        self._number = 0

    def add(self, group: Group) -> None:
        """A new request joins the queue."""
        group.number = self._number
        self._number += 1
        self.waiting[group] = None

    def admit(self, *, only_evicted: bool = False) -> list[tuple[Row, Tensor]]:
        """Gives free slots to waiting samples -> those that begin behind a prompt fed before, with its logits.

        only_evicted: nothing starts, but what was interrupted goes on.
        """
        forked, blocked = self._admitted(only_evicted=only_evicted)
        # nothing runs and nothing fits: prompts kept for samples that wait themselves are in the way
        while blocked and not self.rows and self._give_up_prompt(None):
            forked, blocked = self._admitted(only_evicted=only_evicted)
        assert self.rows or not blocked, "a text that is alone does not fit"
        return forked

    def _admitted(self, *, only_evicted: bool) -> tuple[list[tuple[Row, Tensor]], list[Group]]:
        """One round of admission -> what admit() returns, and the requests that did not fit."""
        forked: list[tuple[Row, Tensor]] = []
        blocked: list[Group] = []
        if len(self.rows) >= self.limits.num_slots or not self.waiting:
            return forked, blocked
        allowed = (group for group in self.waiting if group.evicted or not only_evicted)
        heap = [(group.num_running, group.number, group) for group in allowed]
        heapq.heapify(heap)
        while heap and len(self.rows) < self.limits.num_slots and len(blocked) < MOST_BLOCKED:
            _, number, group = heapq.heappop(heap)
            if not self._is_ready(group):
                continue
            if not self._fits(group):
                blocked.append(group)
                if group.num_overtaken >= MOST_OVERTAKING:
                    break
                continue
            logits = group.prompt_logits
            row = self._start(group)
            if logits is not None and not row.ids:
                forked.append((row, logits))
            for other in blocked:
                other.num_overtaken += 1
            if group in self.waiting and (group.evicted or not only_evicted):
                heapq.heappush(heap, (group.num_running, number, group))
        return forked, blocked

    def plan(self) -> list[Segment]:
        """What to feed now: the newest token of every growing text, then parts of prompts; pages are reserved.

        Texts with a single token come first. Empty where every row is paused.
        """
        planned: dict[Row, Segment] = {}
        growing = [row for row in self.rows if row.num_pending == 1 and not row.is_paused]
        feeding = [row for row in self.rows if row.num_pending > 1 and not row.is_paused]
        most_guesses = self.limits.num_guesses if len(growing) <= self.limits.most_guessing else 0
        for row in growing:
            if row.table is None:
                continue  # evicted by an older one just now
            guesses = self._guesses(row, most_guesses)
            if guesses and not self.cache.reserve(row.table, 1 + len(guesses)):
                guesses = ()
            if self._reserve(row, 1 + len(guesses), planned):
                planned[row] = Segment(row, row.table.length, 1, guesses)
        budget = self.limits.alone_tokens
        if any(row.group.is_read for row in planned):
            budget = self.portion.tokens(len(planned), least=self.limits.mixed_tokens, most=budget)
        for row in feeding:
            count = self._chunk(row, budget) if row.table is not None else 0
            if count and self._reserve(row, count, planned):
                assert row.table is not None, "a row with reserved pages has a table"
                planned[row] = Segment(row, row.table.length, count)
                budget -= count
        return sorted(planned.values(), key=lambda segment: segment.count + len(segment.guesses) > 1)

    def keep_prompt(self, row: Row, logits: Tensor) -> None:
        """The row has just fed its prompt, logits (V,) follow it: keeps both for samples that have not started."""
        group = row.group
        assert row.table is not None and row.table.length == len(group.prompt), "not at the end of its prompt"
        if group.num_waiting and group.prompt_table is None:
            group.prompt_table, group.prompt_logits = self.cache.fork(row.table), logits.clone()

    def release(self, row: Row) -> None:
        """The row has ended: its slot and pages are free, its text stays findable while there is room."""
        if row.table is not None:
            self._close(row)
        self._tidy(row.group)

    def drop(self, group: Group) -> None:
        """Takes a whole request out."""
        self._close_prompt(group)
        for row in group.active:
            if row.table is not None:
                self._close(row)
        self.waiting.pop(group, None)

    def forget_prompts(self) -> None:
        """Gives back the prompts that are kept for samples to come: after a change of weights they mean nothing."""
        for group in self.waiting:
            self._close_prompt(group)

    def clear(self) -> None:
        """Forgets all requests; only after a failure, when nothing is computed any more."""
        self.rows.clear()
        self.waiting.clear()

    def _is_ready(self, group: Group) -> bool:
        """Whether a sample of the request could start now, if there are pages."""
        if group.evicted or group.prompt_table is not None:
            return True
        if any(row.table.length < len(group.prompt) for row in group.active if row.table is not None):
            return False  # a sample feeds the prompt for all of them
        return not self._is_worth_waiting(group)

    def _is_worth_waiting(self, group: Group) -> bool:
        """Whether a prompt is being fed that begins like this one, further than what is known already."""
        feeding = [row for row in self.rows if row.num_pending > 1 and not row.is_paused]
        if not feeding or not self.cache.remembers:
            return False
        shared = self._shared(group, feeding)
        if self.limits.whole_pages:
            shared = shared // PAGE * PAGE
        return shared >= WORTH_WAITING and shared - self.cache.known_length(group.prompt) >= WORTH_WAITING

    def _longest_shared(self, group: Group) -> int:
        """How many tokens of the prompt, at least one left out, some running or remembered text has too."""
        if not self.cache.remembers:
            return 0
        return max(self._shared(group, self.rows), self.cache.tree.match(group.prompt, whole_pages=False).length)

    def _shared(self, group: Group, rows: Sequence[Row]) -> int:
        """The longest beginning, one token left out, that the prompt has in common with the prompts of rows."""
        prompt, longest = group.prompt_array, 0
        for other in {row.group: None for row in rows if row.group is not group}:
            length = min(len(other.prompt_array), len(prompt) - 1)
            if length > longest and other.prompt_array[0] == prompt[0]:
                differs = other.prompt_array[:length] != prompt[:length]
                longest = max(longest, int(differs.argmax()) if differs.any() else length)
        return longest

    def _fits(self, group: Group) -> bool:
        """Whether the whole text of the group's next sample has room beside what the running ones still need."""
        is_fork = group.prompt_table is not None and not group.evicted
        length = group.evicted[0].position if group.evicted else len(group.prompt)
        needed = self.cache.pages_to_start(group.prompt, length + 1, forked=length if is_fork else 0)
        for row in self.rows:
            if row.num_pending > 1 and row.table is not None:
                missing = self.cache.pages_to_finish(row.table, row.position + 1)
                needed = [mine + other for mine, other in zip(needed, missing, strict=True)]
        return all(count <= pool.num_available for count, pool in zip(needed, self.cache.pools, strict=True))

    def _start(self, group: Group) -> Row:
        """The group's next sample gets a slot."""
        group.num_overtaken = 0
        if group.evicted:
            row = group.evicted.pop(0)
            row.table = self.cache.open(row.tokens(0, row.position))
            self.num_repeated += row.position - row.table.length
        else:
            row = group.start_row()
            if group.prompt_table is not None:
                row.table = self.cache.fork(group.prompt_table)
            else:
                row.table = self.cache.open(group.prompt)
                self.num_repeated += self._longest_shared(group) - row.table.length
            row.num_found = row.table.num_found
            self.num_prompt_tokens += len(group.prompt)
            self.num_found_tokens += row.num_found
        row.num_given = row.position
        self.rows.append(row)
        self._tidy(group)
        return row

    def _tidy(self, group: Group) -> None:
        """After a change: a request without waiting samples leaves the queue and gives its kept prompt back."""
        if not group.num_waiting:
            self._close_prompt(group)
            if not group.evicted:
                self.waiting.pop(group, None)

    def _guesses(self, row: Row, most: int) -> tuple[int, ...]:
        request = row.group.request
        room = row.group.limit - len(row.ids) - 1
        if min(most, room) < 1 or not row.ids or request.has_penalties or row.is_too_short or row.matcher:
            return ()  # penalties and forms would change with every guess
        return tuple(row.lookup.guess(row.tokens(0, row.position), min(most, room)))

    def _chunk(self, row: Row, budget: int) -> int:
        """How many pending tokens of a row a step may feed."""
        assert row.table is not None
        count = min(row.num_pending, budget)
        if self.limits.whole_pages and count < row.num_pending:
            count = max(0, (row.table.length + count) // PAGE * PAGE - row.table.length)
        return count

    def _reserve(self, row: Row, count: int, planned: dict[Row, Segment]) -> bool:
        """Pages for count more tokens, if need be those of younger samples. False: the row itself was evicted."""
        assert row.table is not None
        while not self.cache.reserve(row.table, count):
            if self._give_up_prompt(row.group):
                continue
            youngest = self.rows[-1]
            planned.pop(youngest, None)
            self._evict(youngest)
            if youngest is row:
                return False
        return True

    def _give_up_prompt(self, group: Group | None) -> bool:
        """Gives back the newest prompt that is kept for samples to come, the group's own last. False: none is."""
        kept = [other for other in self.waiting if other.prompt_table is not None]
        kept.sort(key=lambda other: (other is not group, other.number))  # the last one goes
        if not kept:
            return False
        self._close_prompt(kept[-1])
        return True

    def _evict(self, row: Row) -> None:
        self.num_evicted += 1
        self._close(row)
        row.group.evicted.append(row)
        self.waiting[row.group] = None

    def _close(self, row: Row) -> None:
        """Takes slot and pages from a row."""
        assert row.table is not None, "only a row with pages is closed"
        self.rows.remove(row)
        self.cache.remember_end(row.table, row.tokens)
        self.cache.close(row.table)
        row.table = None

    def _close_prompt(self, group: Group) -> None:
        group.prompt_logits = None
        if group.prompt_table is not None:
            self.cache.close(group.prompt_table)
            group.prompt_table = None
