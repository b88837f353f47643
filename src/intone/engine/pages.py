"""Which pages of cache memory are in use, by how many texts, and which may be taken back: counting, no tensors."""

from collections import OrderedDict
from collections.abc import Callable

# tokens per page (inference.md section 7): a text wastes half a page on average, and its table has few entries
PAGE = 64


class PagePool:
    """num_pages pages, each free, held by one or more texts, or idle: held by none, but its content is remembered.

    An idle page is taken back when no free one is left, the longest idle first; on_reclaim(page) is told before.
    Not safe for several threads.
    """

    def __init__(self, num_pages: int, on_reclaim: Callable[[int], None]) -> None:
        self.num_pages = num_pages
        self._on_reclaim = on_reclaim
        self._holders = [0] * num_pages
        # from the end: low numbers first, so that a text's pages tend to lie side by side
        self._free = list(range(num_pages - 1, -1, -1))
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._remembered: set[int] = set()

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_idle(self) -> int:
        return len(self._idle)

    @property
    def num_held(self) -> int:
        return self.num_pages - len(self._free) - len(self._idle)

    @property
    def num_available(self) -> int:
        """Pages that take() can give."""
        return len(self._free) + len(self._idle)

    def holders(self, page: int) -> int:
        return self._holders[page]

    def take(self) -> int:
        """A page for one holder, its content worthless. The caller has looked at num_available."""
        if not self._free:
            assert self._idle, f"all {self.num_pages} pages are held"
            oldest = next(iter(self._idle))
            self._on_reclaim(oldest)
            assert oldest in self._free, "whoever remembers a page must forget it when told"
        page = self._free.pop()
        self._holders[page] = 1
        return page

    def hold(self, page: int) -> None:
        """One more holder of a page that is held or idle."""
        assert self._holders[page] or page in self._idle, f"page {page} is free"
        self._idle.pop(page, None)
        self._holders[page] += 1

    def release(self, page: int) -> None:
        """One holder less. After the last one a remembered page becomes idle, as the last to be taken back."""
        assert self._holders[page] > 0, f"page {page} has no holder"
        self._holders[page] -= 1
        if self._holders[page]:
            return
        if page in self._remembered:
            self._idle[page] = None
        else:
            self._free.append(page)

    def remember(self, page: int) -> None:
        """The content of a held page is worth keeping after its last holder."""
        assert self._holders[page], f"page {page} is not held"
        self._remembered.add(page)

    def forget(self, page: int) -> None:
        """The content of a page is of no use any more; if nobody holds it, it is free now."""
        self._remembered.discard(page)
        if page in self._idle:
            del self._idle[page]
            self._free.append(page)

    def is_remembered(self, page: int) -> bool:
        return page in self._remembered
