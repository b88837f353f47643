"""Guesses the next tokens of a text by looking up where its last ones stood before; a pass verifies them."""

from collections.abc import Sequence

# how many last tokens must have stood together before, the most telling first (prompt look-up: Saxena 2023)
GRAMS = (3, 2)
# guesses per step at most. On a CPU five rows of a bfloat16 product cost what one does, eight 1.3 times as much
# (one core of an EPYC 9004, torch 2.13)
MOST_GUESSED = 4
# a text whose guesses fail is asked less often: the wait doubles with every failure up to this many tokens (guess)
LONGEST_WAIT = 64


class Lookup:
    """The places of all short runs of tokens in one text, and how well guesses have done in it."""

    def __init__(self) -> None:
        self._places: dict[tuple[int, ...], int] = {}
        self._num_read = 0
        self._wait = 0
        self._next_at = 0

    def guess(self, tokens: Sequence[int], most: int) -> list[int]:
        """Up to most tokens that may follow: what followed the latest earlier run like the present one."""
        if most < 1 or len(tokens) < self._next_at:
            return []
        self._read(tokens)
        for size in GRAMS:
            if len(tokens) > size:
                place = self._places.get(tuple(tokens[-size:]))
                if place is not None:
                    return list(tokens[place : place + most])
        return []

    def learn(self, num_tokens: int, *, num_guessed: int, num_right: int) -> None:
        """How a guess did, in a text of num_tokens now: after a wrong first token the next guess comes later."""
        if num_right:
            self._wait = 0
        elif num_guessed:
            self._wait = min(LONGEST_WAIT, 2 * self._wait + 1)
            self._next_at = num_tokens + self._wait

    def _read(self, tokens: Sequence[int]) -> None:
        """Notes, for every run that ends before the last token, where its continuation begins."""
        for end in range(max(1, self._num_read), len(tokens)):
            for size in GRAMS:
                if end >= size:
                    self._places[tuple(tokens[end - size : end])] = end
        self._num_read = len(tokens)
