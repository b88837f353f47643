"""How many threads compute a step, found out while steps run: where others keep a core busy, one may be faster"""

import time
from collections.abc import Callable

# every so many steps of a size the other number of threads is tried again: 3 % of the steps (guess)
TRY_EVERY = 32
# how much the newest time counts (guess)
NEWEST = 0.25
MOST_SLOWER = 4.0  # than before, as far as one step is believed (guess)


class Pace:
    """Chooses between one thread and all of them, by the time that steps of about the same number of rows took.

    Only for work whose results do not depend on the number of threads.
    """

    def __init__(self, most: int, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self.most = most
        self._clock = clock
        self._seconds: dict[tuple[int, int], float] = {}  # per token, by size and threads
        self._num_steps: dict[int, int] = {}

    def threads(self, num_tokens: int) -> int:
        """What to compute the next step of so many tokens with."""
        if self.most == 1:
            return 1
        size = num_tokens.bit_length()
        alone, together = (self._seconds.get((size, count)) for count in (1, self.most))
        best = 1 if alone is not None and together is not None and alone < together else self.most
        # the second step of a size, and then every so often one, is for the other number
        if self._num_steps.get(size, 0) % TRY_EVERY == 1:
            return 1 if best == self.most else self.most
        return best

    def step_s(self, num_tokens: int) -> float | None:
        """What a step of so many tokens takes by what is known; None: nothing is."""
        known = [self._seconds.get((num_tokens.bit_length(), count)) for count in (1, self.most)]
        return min((seconds * num_tokens for seconds in known if seconds is not None), default=None)

    def run(self, num_tokens: int, steps: Callable[[int], int]) -> None:
        """Runs steps with the number of threads that is best, and remembers what each took; steps returns how many."""
        count, size = self.threads(num_tokens), num_tokens.bit_length()
        begin = self._clock()
        num_steps = steps(count)
        seconds = (self._clock() - begin) / (num_tokens * num_steps)
        before = self._seconds.get((size, count))
        if before is not None and seconds > before:
            # one step that was interrupted says little; one that was faster says what is possible
            seconds = before + NEWEST * (min(seconds, MOST_SLOWER * before) - before)
        if size in self._num_steps:  # the first of a size meets cold memory, whatever its threads
            self._seconds[size, count] = seconds
        self._num_steps[size] = self._num_steps.get(size, 0) + 1
