"""Finds the longest beginning of a text whose keys are in memory already: a tree of pages, by their tokens."""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from intone.engine.pages import PAGE, PagePool

# continuations that share most with a text and lack pages behind a window, before no part of a page is taken (guess)
MOST_LACKING = 8
NO_PAGE = -1


@dataclass(eq=False)
class Node:
    """One page of tokens behind another; a path from the root is a text.

    tokens: PAGE of them, or fewer at the end of a text that had no more; only full ones have children, ascending by
    their tokens. pages: per group the page that holds their keys, NO_PAGE where it was taken back.
    """

    parent: "Node | None"
    tokens: tuple[int, ...]
    pages: list[int]
    children: list["Node"] = field(default_factory=list)

    @property
    def is_full(self) -> bool:
        return len(self.tokens) == PAGE

    def place(self, tokens: tuple[int, ...]) -> int:
        """Where a child of these tokens stands among the children, or would stand."""
        return bisect_left(self.children, tokens, key=lambda child: child.tokens)

    def child(self, tokens: tuple[int, ...]) -> "Node | None":
        """The child of exactly these tokens."""
        place = self.place(tokens)
        found = self.children[place] if place < len(self.children) else None
        return found if found is not None and found.tokens == tokens else None

    def nearest(self, tokens: tuple[int, ...]) -> Iterator[tuple["Node", int]]:
        """Children that begin like tokens, and how far each does, the longest first.

        Sorted texts share ever less with another one the further they stand from its place, to either side.
        """
        above = self.place(tokens)
        below = above - 1
        while True:
            left = common_length(self.children[below].tokens, tokens) if below >= 0 else 0
            right = common_length(self.children[above].tokens, tokens) if above < len(self.children) else 0
            if not left and not right:
                return
            if left > right:
                yield self.children[below], left
                below -= 1
            else:
                yield self.children[above], right
                above += 1


@dataclass(frozen=True)
class Match:
    """length tokens of a text are there: in the full pages of nodes, then, where part is given, some of its page."""

    nodes: tuple[Node, ...] = ()
    part: Node | None = None
    length: int = 0


class PrefixTree:
    """Remembers the pages of running and ended texts. A page is found by all tokens up to its end, compared exactly.

    A child is looked up in its parent by its tokens, whole ones and beginnings alike, in a time that hardly grows with
    the number of texts: one that comes again finds all but its last token while its pages are there. reaches[g] is how
    many tokens before the next one group g needs, None: all. The first group needs all. Not safe for several threads.
    """

    def __init__(self, pools: Sequence[PagePool], reaches: Sequence[int | None]) -> None:
        assert reaches[0] is None, "the first group must see everything"
        self._pools = pools
        self._reaches = reaches
        self._owners: list[dict[int, Node]] = [{} for _ in pools]
        self.root = Node(None, (), [])

    def match(self, tokens: Sequence[int], *, whole_pages: bool) -> Match:
        """The longest known beginning of tokens that leaves at least one of them to be computed.

        whole_pages: only whole pages count. Nothing is held: the caller holds what it uses before anything else.
        """
        limit = len(tokens) - 1
        nodes: list[Node] = []
        node = self.root
        for start in range(0, limit - PAGE + 1, PAGE):
            child = node.child(tuple(tokens[start : start + PAGE]))
            if child is None:
                break
            nodes.append(child)
            node = child
        if not whole_pages:
            start = len(nodes) * PAGE
            rest = tuple(tokens[start : min(limit, start + PAGE)])
            for part, length in islice(node.nearest(rest), MOST_LACKING):
                if self._is_covered([*nodes, part], start + length):
                    return Match(tuple(nodes), part, start + length)
        while nodes and not self._is_covered(nodes, len(nodes) * PAGE):
            nodes.pop()
        return Match(tuple(nodes), None, len(nodes) * PAGE)

    def add(self, parent: Node, tokens: tuple[int, ...], pages: list[int]) -> Node | None:
        """Remembers a page of tokens behind parent, held now in pages (NO_PAGE where a group needs it no more).

        Where it is known already the known node is returned, completed by pages that it lacks. None where parent
        itself was forgotten meanwhile: nobody would find what lies behind it.
        """
        assert parent.is_full or parent is self.root, "only a full page can be continued"
        if parent.parent is None and parent is not self.root:
            return None
        node = parent.child(tokens)
        if node is None:
            node = Node(parent, tokens, [NO_PAGE] * len(pages))
            parent.children.insert(parent.place(tokens), node)
        for group, page in enumerate(pages):
            if node.pages[group] == NO_PAGE and page != NO_PAGE:
                self._forget_owner(group, page)
                node.pages[group] = page
                self._owners[group][page] = node
                self._pools[group].remember(page)
        return node

    def reclaim(self, group: int, page: int) -> None:
        """Forgets what a page holds because it is taken back; without the first group's page all behind it goes."""
        self._forget_owner(group, page)

    def clear(self) -> None:
        """Forgets everything: after a change of weights no key is what a text would give."""
        while self.root.children:
            self._drop(self.root.children[-1])

    def nodes(self) -> Iterator[Node]:
        """All nodes, for checks."""
        stack = [self.root]
        while stack:
            node = stack.pop()
            stack.extend(node.children)
            if node is not self.root:
                yield node

    def _is_covered(self, nodes: Sequence[Node], length: int) -> bool:
        """Whether every group has the pages that a token at position length would read."""
        for group, reach in enumerate(self._reaches):
            first = 0 if reach is None else max(0, length - reach) // PAGE
            if any(node.pages[group] == NO_PAGE for node in nodes[first:]):
                return False
        return True

    def _forget_owner(self, group: int, page: int) -> None:
        node = self._owners[group].pop(page, None)
        if node is None:
            return
        node.pages[group] = NO_PAGE
        self._pools[group].forget(page)
        if group == 0:
            self._drop(node)

    def _drop(self, node: Node) -> None:
        """Takes a node and everything behind it out of the tree."""
        assert node.parent is not None, "the root stays"
        del node.parent.children[node.parent.place(node.tokens)]
        stack = [node]
        while stack:
            dropped = stack.pop()
            stack.extend(dropped.children)
            dropped.parent, dropped.children = None, []
            for group, page in enumerate(dropped.pages):
                if page != NO_PAGE:
                    dropped.pages[group] = NO_PAGE
                    del self._owners[group][page]
                    self._pools[group].forget(page)


def common_length(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two sequences begin with in common."""
    for place, (left, right) in enumerate(zip(a, b, strict=False)):
        if left != right:
            return place
    return min(len(a), len(b))
