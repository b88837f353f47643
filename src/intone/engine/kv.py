"""Keys and values of running texts in pages that texts can share, and the account of which text holds which page."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from intone.config import ModelConfig
from intone.engine.pages import PAGE, PagePool
from intone.engine.prefix import NO_PAGE, Match, Node, PrefixTree

# tokens [a, b) of a text, for the tree that remembers pages by their tokens
TokensOf = Callable[[int, int], Sequence[int]]


@dataclass(frozen=True)
class PageGroup:
    """Blocks that see equally far, and so need the same pages. reach: tokens before the newest, None: all."""

    blocks: tuple[int, ...]
    reach: int | None


def page_groups(config: ModelConfig, context: int) -> tuple[PageGroup, ...]:
    """The blocks that see the whole context first (the last block always does), then those with a window."""
    blocks: dict[int | None, list[int]] = {None: []}
    for block in range(config.depth):
        window = config.window(block)
        blocks.setdefault(None if window >= context else window - 1, []).append(block)
    return tuple(PageGroup(tuple(members), reach) for reach, members in blocks.items())


class PageStore:
    """The memory: per block a tensor (pages * PAGE, 2, K, C) of keys and values, token after token.

    Page p of a group is entries [p * PAGE, (p + 1) * PAGE) in every block of the group.
    """

    def __init__(
        self, config: ModelConfig, groups: Sequence[PageGroup], num_pages: Sequence[int],
        *, dtype: torch.dtype, device: torch.device, has_spare: bool = False,
    ) -> None:  # fmt: skip
        """has_spare: one page more in every group, which no text gets, and all pages hold zeros."""
        self.groups = tuple(groups)
        self.dtype = dtype
        self.device = device
        self.num_kv_heads = config.num_kv_heads
        self.group_of = [next(g for g, group in enumerate(groups) if b in group.blocks) for b in range(config.depth)]
        # what lies behind a text's end is read there, masked, but 0 times a left-over NaN is NaN. A CPU gives memory
        # when it is first written: untouched pages cost nothing there
        reads_past_end = device.type != "cpu" or has_spare
        make = torch.zeros if reads_past_end else torch.empty
        shape = (2, config.num_kv_heads, config.head_width)
        sizes = [(num_pages[group] + has_spare) * PAGE for group in self.group_of]
        self.blocks = [make((size, *shape), dtype=dtype, device=device) for size in sizes]

    def copy(self, group: int, source: int, target: int, count: int) -> None:
        """Makes the first count tokens of page target those of page source."""
        for block in self.groups[group].blocks:
            stored = self.blocks[block]
            stored[target * PAGE : target * PAGE + count] = stored[source * PAGE : source * PAGE + count]

    def scrub(self, group: int, page: int) -> None:
        """Zeroes a page whose numbers were not finite."""
        for block in self.groups[group].blocks:
            self.blocks[block][page * PAGE : (page + 1) * PAGE] = 0


@dataclass(eq=False)
class Table:
    """Where the keys of one text are: per group its pages in order, NO_PAGE where they were given back.

    length: tokens stored. node: the last full page that the tree knows, None when it does not follow any more.
    num_found: tokens that were there when the text came. num_sound: tokens whose keys are known to be finite: all, but
    for those of a step whose logits nobody has looked at. doubted: (group, page) of those given back before that.
    version grows when pages change.
    """

    pages: list[list[int]]
    length: int
    node: Node | None
    num_found: int = 0
    num_sound: int = 0
    first: list[int] = field(default_factory=list)  # per group the first page that is still held
    doubted: list[tuple[int, int]] = field(default_factory=list)
    version: int = 0
    _arrays: tuple[int, list[np.ndarray], list[int]] | None = None

    def page_addresses(self) -> list[int]:
        """Where each group's pages are in memory as int32; good until the pages change."""
        if self._arrays is None or self._arrays[0] != self.version:
            arrays = [np.array(pages, dtype=np.int32) for pages in self.pages]
            self._arrays = (self.version, arrays, [part.__array_interface__["data"][0] for part in arrays])
        return self._arrays[2]


class Cache:
    """Gives texts their pages, lets them share what they have in common, and remembers ended ones while there is room.

    A text writes only into pages that nobody else holds: the last page of a fork is copied when it is written.
    Whatever a step computed must be trusted or closed before the next one: so no text finds keys that are not finite,
    and none reads them behind its end in a page that was taken.
    num_pages: per group. most_pages: per group what one text holds at most. remembers False: requests share nothing.
    whole_pages: they share only whole pages. For one thread.
    """

    def __init__(
        self, store: PageStore, num_pages: Sequence[int], *, most_pages: Sequence[int], remembers: bool,
        whole_pages: bool,
    ) -> None:  # fmt: skip
        self.store = store
        self._most_pages = most_pages
        self.groups = store.groups
        self.remembers = remembers
        self._whole_pages = whole_pages
        self.pools = [PagePool(count, self._reclaimer(group)) for group, count in enumerate(num_pages)]
        self.tree = PrefixTree(self.pools, [group.reach for group in self.groups])

    def open(self, tokens: Sequence[int]) -> Table:
        """A new text with as much of tokens as is known already, at least one left out; its pages are held."""
        table = Table([[] for _ in self.groups], 0, self.tree.root)
        if not self.remembers:
            table.first = [0] * len(self.groups)
            return table
        match = self.tree.match(tokens, whole_pages=self._whole_pages)
        self._hold(table, match)
        if match.part is not None and any(pool.num_available < 2 for pool in self.pools):
            # no room for a copy of the part: its source, held meanwhile, may be the one page that is available
            self.close(table)
            match = self.tree.match(tokens, whole_pages=True)
            self._hold(table, match)
        if match.part is not None:
            self._copy_part(table, match.part, match.length)
        table.num_found = table.num_sound = table.length
        return table

    def known_length(self, tokens: Sequence[int]) -> int:
        """How many tokens open() would find."""
        return self.tree.match(tokens, whole_pages=self._whole_pages).length if self.remembers else 0

    def pages_to_start(self, tokens: Sequence[int], length: int, *, forked: int) -> list[int]:
        """Per group how many available pages a text that begins with tokens uses up until it holds length tokens.

        forked: tokens that it shares with a running text. Pages that others hold too cost nothing.
        """
        held = [forked // PAGE] * len(self.groups)
        if not forked and self.remembers:
            nodes = self.tree.match(tokens, whole_pages=True).nodes
            for group, pool in enumerate(self.pools):
                pages = (node.pages[group] for node in nodes)
                held[group] = sum(page != NO_PAGE and pool.holders(page) > 0 for page in pages)
        whole = -(-length // PAGE)
        return [max(0, min(whole, most) - count) for most, count in zip(self._most_pages, held, strict=True)]

    def pages_to_finish(self, table: Table, length: int) -> list[int]:
        """Per group how many more pages a running text uses up until it holds length tokens."""
        whole = -(-length // PAGE)
        held = [len(pages) - first for pages, first in zip(table.pages, table.first, strict=True)]
        left = [max(0, whole - len(pages)) for pages in table.pages]
        return [min(count, max(0, most - own)) for count, most, own in zip(left, self._most_pages, held, strict=True)]

    def reserve(self, table: Table, count: int) -> bool:
        """Makes sure that the next count tokens can be written. False, and nothing changed, where pages ran out."""
        needed = [
            max(0, -(-(table.length + count) // PAGE) - len(pages)) + self._is_shared(table, group)
            for group, pages in enumerate(table.pages)
        ]
        if any(wanted > pool.num_available for wanted, pool in zip(needed, self.pools, strict=True)):
            return False
        if any(needed):
            table.version += 1
        for group, pool in enumerate(self.pools):
            pages = table.pages[group]
            if needed[group] and self._is_shared(table, group):
                shared, own = pages[-1], pool.take()
                self.store.copy(group, shared, own, table.length % PAGE)
                pages[-1] = own
                pool.release(shared)
                needed[group] -= 1
            pages.extend(pool.take() for _ in range(needed[group]))
        return True

    def advance(self, table: Table, count: int, tokens_of: TokensOf, *, up_to: int | None = None) -> None:
        """count tokens were written: full pages become known, pages that no later token reads are given back.

        up_to: only pages that end by this token become known.
        """
        begin, table.length = table.length, table.length + count
        end = table.length if up_to is None else min(table.length, up_to)
        for start in range(begin // PAGE * PAGE, end - PAGE + 1, PAGE):
            self._remember(table, start, tuple(tokens_of(start, start + PAGE)))
        for group, pool in enumerate(self.pools):
            needed = self._first_needed(group, table.length)
            pages = table.pages[group]
            for place in range(table.first[group], needed):
                if table.num_sound < min(table.length, (place + 1) * PAGE):
                    table.doubted.append((group, pages[place]))
                pool.release(pages[place])
                pages[place] = NO_PAGE
                table.version += 1
            table.first[group] = max(table.first[group], needed)

    def trust(self, table: Table) -> None:
        """All keys of a text are finite, for the logits behind them are."""
        table.num_sound = table.length
        table.doubted.clear()

    def remember_end(self, table: Table, tokens_of: TokensOf) -> None:
        """Makes the last, unfinished page known, as far as it is filled."""
        start = table.length // PAGE * PAGE
        if start < table.length and not self._whole_pages:
            self._remember(table, start, tuple(tokens_of(start, table.length)))

    def fork(self, table: Table) -> Table:
        """Another text that begins with all of this one; it shares every page until it writes."""
        for group, pages in enumerate(table.pages):
            for page in pages[table.first[group] : -(-table.length // PAGE)]:
                self.pools[group].hold(page)
        num_pages = -(-table.length // PAGE)
        pages_by_group = [pages[:num_pages] for pages in table.pages]
        return Table(pages_by_group, table.length, table.node, table.length, table.num_sound, list(table.first))

    def close(self, table: Table) -> None:
        """Gives all pages back; those that are remembered stay findable until they are needed.

        Those with keys that nobody trusted are forgotten and wiped, unless others hold them: the last one does it. The
        pages at the text's end stay doubted: wipe() is for those of a step that is still running.
        """
        if table.num_sound < table.length:
            self._wipe_untrusted(table)
        for group, pages in enumerate(table.pages):
            end = max(table.first[group], table.length // PAGE)
            table.doubted += [(group, page) for page in pages[end:]]
            # the end of the text first: without its beginning the rest could not be found
            for place in reversed(range(table.first[group], len(pages))):
                self.pools[group].release(pages[place])
            pages.clear()
            table.first[group] = 0
        table.length = table.num_sound = 0
        table.node = None

    def wipe(self, table: Table) -> None:
        """Forgets and zeroes the pages that a text gave back in doubt; no page may have been taken since."""
        for group, page in table.doubted:
            if not self.pools[group].holders(page):
                self._wipe_page(group, page)
        table.doubted.clear()

    def forget_all(self) -> None:
        """Nothing that was computed so far will be found by later texts."""
        self.tree.clear()

    def unused_pages(self, table: Table, group: int) -> float:
        """Pages' worth of room in a text's pages that holds no token; of a shared page only its part."""
        pages = table.pages[group]
        room = len(pages) - table.length / PAGE
        return room / self.pools[group].holders(pages[-1]) if room and pages else 0.0

    def _reclaimer(self, group: int) -> Callable[[int], None]:
        return lambda page: self.tree.reclaim(group, page)

    def _first_needed(self, group: int, length: int) -> int:
        """The first page that a token at position length reads in this group."""
        reach = self.groups[group].reach
        return 0 if reach is None else max(0, length - reach) // PAGE

    def _wipe_untrusted(self, table: Table) -> None:
        """What a text has written since it was trusted: pages of its own, and those that it gave back meanwhile."""
        self.wipe(table)
        for group, pages in enumerate(table.pages):
            for page in pages[max(table.first[group], table.num_sound // PAGE) :]:
                if self.pools[group].holders(page) == 1:
                    self._wipe_page(group, page)

    def _wipe_page(self, group: int, page: int) -> None:
        self.tree.reclaim(group, page)
        self.store.scrub(group, page)

    def _is_shared(self, table: Table, group: int) -> bool:
        """Whether the page that the next token goes into has other holders. Such a page is the last one."""
        place = table.length // PAGE
        return place < len(table.pages[group]) and self.pools[group].holders(table.pages[group][place]) > 1

    def _hold(self, table: Table, match: Match) -> None:
        """Makes an empty table hold the full pages of a match."""
        table.length = table.num_sound = len(match.nodes) * PAGE
        table.node = match.nodes[-1] if match.nodes else self.tree.root
        for group, pool in enumerate(self.pools):
            first = self._first_needed(group, match.length)
            kept = [node.pages[group] for node in match.nodes[first:]]
            for page in kept:
                pool.hold(page)
            table.pages[group] = [NO_PAGE] * min(first, len(match.nodes)) + kept
        table.first = [self._first_needed(group, match.length) for group in range(len(self.groups))]

    def _copy_part(self, table: Table, part: Node, length: int) -> None:
        """Takes over the beginning of a page that goes on differently."""
        for group, pool in enumerate(self.pools):
            source = part.pages[group]
            pool.hold(source)
            table.pages[group].append(pool.take())
            self.store.copy(group, source, table.pages[group][-1], length - table.length)
            pool.release(source)
        table.length = length

    def _remember(self, table: Table, start: int, tokens: tuple[int, ...]) -> None:
        if not self.remembers or table.node is None:
            return
        node = self.tree.add(table.node, tokens, [pages[start // PAGE] for pages in table.pages])
        if node is None or node.is_full:
            table.node = node
