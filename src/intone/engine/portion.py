"""How much of the prompts a step takes in while texts grow: as much as lets their readers wait no longer than said"""

from intone.engine.pages import PAGE

# a step that feeds prompts beside growing texts takes so long, at most, where more than the least is fed. Readers get
# tokens in lumps of 0.03 s anyway (burst.py), and a gap should stay below three of them (LOG.md has what it costs)
MOST_STEP_S = 0.05
NEWEST = 0.5  # how much the newest step counts (guess)
MOST_SLOWER = 4.0  # than before, as far as one step is believed (guess)


class Portion:
    """Follows how long a token takes in steps that feed prompts, and says how many fit into MOST_STEP_S."""

    def __init__(self) -> None:
        self._token_s: float | None = None

    def tokens(self, num_growing: int, *, least: int, most: int) -> int:
        """How many tokens of prompts to feed beside so many growing texts; least where nothing is known."""
        if self._token_s is None:
            return least
        return max(least, min(most, int(MOST_STEP_S / self._token_s) - num_growing))

    def note(self, num_tokens: int, seconds: float) -> None:
        """A step that fed so many tokens took so long, and was waited for."""
        if num_tokens < PAGE:  # a step of few tokens reads the weights for them alone
            return
        token_s = seconds / num_tokens
        if self._token_s is not None:
            token_s = self._token_s + NEWEST * (min(token_s, MOST_SLOWER * self._token_s) - self._token_s)
        self._token_s = token_s
