"""What the engine has done so far, in numbers: for metrics, benchmarks and tests."""

from dataclasses import dataclass

from intone.engine.kv import Cache
from intone.engine.scheduler import Scheduler

# how often the use of pages is looked at, in steps; each look costs some microseconds per running text
PAGES_EVERY = 4
NUM_STEP_SIZES = 16  # up to 32,768 tokens, more than a step may feed


@dataclass(frozen=True)
class EngineStats:
    """A picture of one moment. Counts are since the start of the engine.

    num_paused: samples whose tool call is being answered. num_token_forwards: tokens that went through the model.
    num_prompt_tokens: of the prompts of all samples that started; num_found_tokens: of these, keys that were there
    already; num_fed_tokens: computed, of prompts and again of evicted texts. num_repeated_tokens: those of the fed
    ones that a running or remembered text had too; what was forgotten for lack of room counts as new.
    kv_used_share: used of the bytes of keys and values that texts hold, on average over the steps; shared pages
    count once. None before the first step, like prefill_ratio: tokens fed to distinct tokens fed.
    step_sizes: how many steps fed up to 1, 2, 4, 8, ... tokens, and not fewer.
    """

    is_healthy: bool
    num_running: int
    num_paused: int
    num_waiting: int
    num_steps: int
    num_token_forwards: int
    num_new_tokens: int
    num_prompt_tokens: int
    num_found_tokens: int
    num_fed_tokens: int
    num_repeated_tokens: int
    num_evicted: int
    num_guessed: int
    num_right_guesses: int
    cache_bytes: int
    held_bytes: int
    remembered_bytes: int
    kv_used_share: float | None
    prefill_ratio: float | None
    step_sizes: tuple[int, ...] = ()


class Account:
    """Counts while the engine runs; belongs to its thread."""

    def __init__(self, page_bytes: list[int]) -> None:
        self.num_steps = 0
        self.num_new_tokens = 0
        self.num_fed_tokens = 0
        self.num_guessed = 0
        self.num_right_guesses = 0
        self._step_sizes = [0] * NUM_STEP_SIZES
        self._page_bytes = page_bytes
        self._held_bytes = 0.0
        self._unused_bytes = 0.0

    def note_step(self, scheduler: Scheduler, num_tokens: int) -> None:
        """Counts a step that fed so many tokens; now and then looks how full the pages are that texts hold."""
        self.num_steps += 1
        self._step_sizes[min((num_tokens - 1).bit_length(), NUM_STEP_SIZES - 1)] += 1
        if self.num_steps % PAGES_EVERY:
            return
        for group, size in enumerate(self._page_bytes):
            self._held_bytes += scheduler.cache.pools[group].num_held * size
            unused = sum(scheduler.cache.unused_pages(row.table, group) for row in scheduler.rows if row.table)
            self._unused_bytes += unused * size

    def picture(
        self, cache: Cache, scheduler: Scheduler, *, is_healthy: bool, num_token_forwards: int, cache_bytes: int
    ) -> EngineStats:
        """The numbers of this moment."""
        sizes = self._page_bytes
        distinct = self.num_fed_tokens - scheduler.num_repeated
        return EngineStats(
            is_healthy=is_healthy,
            num_running=len(scheduler.rows),
            num_paused=sum(row.is_paused for row in scheduler.rows),
            num_waiting=sum(group.num_waiting + len(group.evicted) for group in scheduler.waiting),
            num_steps=self.num_steps,
            num_token_forwards=num_token_forwards,
            num_new_tokens=self.num_new_tokens,
            num_prompt_tokens=scheduler.num_prompt_tokens,
            num_found_tokens=scheduler.num_found_tokens,
            num_fed_tokens=self.num_fed_tokens,
            num_repeated_tokens=scheduler.num_repeated,
            num_evicted=scheduler.num_evicted,
            num_guessed=self.num_guessed,
            num_right_guesses=self.num_right_guesses,
            cache_bytes=cache_bytes,
            held_bytes=sum(pool.num_held * size for pool, size in zip(cache.pools, sizes, strict=True)),
            remembered_bytes=sum(pool.num_idle * size for pool, size in zip(cache.pools, sizes, strict=True)),
            kv_used_share=1 - self._unused_bytes / self._held_bytes if self._held_bytes else None,
            prefill_ratio=self.num_fed_tokens / distinct if distinct > 0 else None,
            step_sizes=tuple(self._step_sizes),
        )
