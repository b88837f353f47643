from intone.engine.pages import PAGE, PagePool
from intone.engine.prefix import NO_PAGE, PrefixTree, common_length

REACH = 70  # tokens that the windowed group sees before the next one: one page and a bit


class Memory:
    """A tree over a group that sees everything and one with a window, and texts written into it."""

    def __init__(self, num_pages=40):
        self.pools = [PagePool(num_pages, lambda page, group=group: self.tree.reclaim(group, page)) for group in (0, 1)]
        self.tree = PrefixTree(self.pools, [None, REACH])

    def write(self, tokens):
        """Remembers all pages of a text, the last one too, and lets them go -> pages per group."""
        node, pages = self.tree.root, ([], [])
        for start in range(0, len(tokens), PAGE):
            new = [pool.take() for pool in self.pools]
            node = self.tree.add(node, tuple(tokens[start : start + PAGE]), new)
            for group in (0, 1):
                pages[group].append(new[group])
        for group in (0, 1):
            for page in reversed(pages[group]):
                self.pools[group].release(page)
        return pages

    def match(self, tokens, whole_pages=False):
        found = self.tree.match(tokens, whole_pages=whole_pages)
        return found.length, [node.pages[0] for node in found.nodes], found.part and found.part.pages[0]


def text(length, seed=0):
    return [(seed * 1000 + place * 7) % 977 for place in range(length)]


def test_a_text_is_found_by_its_pages_and_by_a_part_of_its_last_one():
    memory = Memory()
    pages, _ = memory.write(text(200))
    assert memory.match(text(200)) == (199, pages[:3], pages[3])  # one token is left to be computed
    assert memory.match(text(300)) == (200, pages[:3], pages[3])
    assert memory.match(text(300), whole_pages=True) == (192, pages[:3], None)
    assert memory.match(text(192)) == (191, pages[:2], pages[2])
    assert memory.match(text(193)) == (192, pages[:3], None)
    assert memory.match([*text(100), 5, *text(50)]) == (100, pages[:1], pages[1])
    assert memory.match([5, *text(100)]) == (0, [], None)
    assert memory.match(text(1)) == (0, [], None)


def test_of_several_continuations_the_one_that_shares_most_is_found():
    memory = Memory()
    memory.write([*text(64), *text(64, seed=1)])
    pages, _ = memory.write([*text(64), *text(10, seed=2), *text(20, seed=3)])
    found = memory.match([*text(64), *text(10, seed=2), *text(5, seed=3), 3])
    assert found[0] == 79 and found[2] == pages[1]


def test_a_part_is_found_among_any_number_of_continuations():
    # 200 of each, in no order: beginnings of a text, and continuations of a page that they share
    memory = Memory(num_pages=405)
    shared = text(PAGE)
    beginnings = [[number * 37 % 211, *text(PAGE - 2, seed=number)] for number in range(200)]
    for beginning in beginnings:
        memory.write(beginning)
        memory.write([*shared, *beginning[:20]])
    for beginning in beginnings:
        assert memory.match(beginning)[0] == PAGE - 2
        assert memory.match([*beginning, 978])[0] == PAGE - 1
        assert memory.match([*shared, *beginning[:11], 978])[0] == PAGE + 11
    assert memory.match([978, *text(30)])[0] == 0


def test_of_continuations_that_share_as_much_one_whose_windowed_page_is_there_is_found():
    memory = Memory()
    written = [memory.write([*text(20), last]) for last in (3, 5, 7)]
    for lost in (0, 2):
        memory.tree.reclaim(1, written[lost][1][0])
    for last in (2, 4, 6, 8):
        assert memory.match([*text(20), last, 1]) == (20, [], written[1][0][0])


def test_equal_pages_of_different_texts_are_told_apart_by_what_stands_before_them():
    memory = Memory()
    memory.write([*text(64, seed=1), *text(64)])
    assert memory.match([*text(64, seed=2), *text(64), 1])[0] == 0


def test_a_match_needs_the_windowed_pages_that_the_next_token_sees_and_only_those():
    memory = Memory()
    full, windowed = memory.write(text(257))
    for page in windowed[:3]:
        memory.tree.reclaim(1, page)
    # a token at 256 sees 186 to 255: pages 2 and 3 of the windowed group
    assert memory.match(text(257), whole_pages=True)[0] == 0
    memory = Memory()
    full, windowed = memory.write(text(257))
    for page in windowed[:2]:
        memory.tree.reclaim(1, page)
    assert memory.match(text(257), whole_pages=True) == (256, full[:4], None)
    # a token at 198 sees 128 to 197, one at 197 would see 127 too
    assert memory.match(text(199)) == (198, full[:3], full[3])
    assert memory.match(text(198))[0] == 0


def test_a_page_of_the_first_group_takes_everything_behind_it_along():
    memory = Memory()
    full, _ = memory.write(text(250))
    other, _ = memory.write([*text(64), *text(60, seed=4)])
    memory.tree.reclaim(0, full[1])
    assert memory.match(text(250)) == (64, full[:1], None)
    assert memory.match([*text(64), *text(60, seed=4), 1]) == (124, full[:1], other[1])
    assert memory.pools[0].num_idle == memory.pools[1].num_idle == 2


def test_the_least_lately_used_text_makes_room_from_its_end():
    memory = Memory(num_pages=6)
    old = memory.write(text(192))[0]
    new = memory.write(text(192, seed=5))[0]
    for page in old:  # found again: the younger one is the older now
        memory.pools[0].hold(page)
    for page in reversed(old):
        memory.pools[0].release(page)
    taken = [memory.pools[0].take(), memory.pools[0].take()]
    assert taken == [new[2], new[1]]
    assert memory.match(text(193))[0] == 192 and memory.match(text(193, seed=5))[0] == 64


def test_a_known_page_is_completed_and_a_page_that_goes_on_replaces_its_part():
    memory = Memory()
    pages = [pool.take() for pool in memory.pools]
    first = memory.tree.add(memory.tree.root, tuple(text(64)), [pages[0], NO_PAGE])
    again = [pool.take() for pool in memory.pools]
    assert memory.tree.add(memory.tree.root, tuple(text(64)), again) is first
    assert first.pages == [pages[0], again[1]]
    assert not memory.pools[0].is_remembered(again[0])
    memory.tree.add(first, tuple(text(10, seed=1)), [again[0], pages[1]])
    memory.tree.add(first, tuple(text(64, seed=1)), [again[0], pages[1]])
    assert [len(node.tokens) for node in memory.tree.nodes()] == [64, 64]


def test_what_follows_a_forgotten_page_is_not_remembered_and_clearing_forgets_all():
    memory = Memory()
    page = [pool.take() for pool in memory.pools]
    node = memory.tree.add(memory.tree.root, tuple(text(64)), page)
    memory.tree.clear()
    assert memory.tree.add(node, tuple(text(64)), [pool.take() for pool in memory.pools]) is None
    memory.write(text(150))
    memory.tree.clear()
    assert memory.match(text(150))[0] == 0
    assert [pool.num_idle for pool in memory.pools] == [0, 0] and not list(memory.tree.nodes())


def test_common_length_counts_equal_tokens_from_the_start():
    pairs = (([1, 2, 3], [1, 2, 4]), ([1], [1, 2]), ([], [1]), ([2], [1]))
    assert [common_length(a, b) for a, b in pairs] == [2, 1, 0, 0]
