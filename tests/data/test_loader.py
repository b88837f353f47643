"""Batches: the right targets, every token once an epoch, the same rows whatever was asked before."""

import os
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intone.data import pack as pack_module
from intone.data.chat import SPECIALS, Message
from intone.data.loader import Batch, Prefetcher, Rows, validation_rows
from intone.data.shards import TokenSet, write_token_set
from intone.data.text import Document, Kind, ReadReport, read_documents
from intone.data.tokenizer import SPLIT_PATTERN, Tokenizer, train_tokenizer
from intone.errors import UserError

DATA = os.environ.get("INTONE_TEST_DATA")
BYTES = Tokenizer([bytes([value]) for value in range(256)], SPLIT_PATTERN)
LENGTHS = st.lists(st.integers(1, 45), min_size=1, max_size=40)
ALPHABET = "abcdefghijklmnopqrstuvwxyz"


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows of a few rows, so that small tests cross many of their borders."""
    monkeypatch.setattr(pack_module, "WINDOW_DOCUMENTS", 13)
    monkeypatch.setattr(pack_module, "WINDOW_ROWS", (3, 6))


def texts(lengths: list[int], *, mark: str = "") -> list[Document]:
    """Different texts of given lengths: document i begins with its number, so that it can be recognised."""
    return [f"{mark}{i:03d}" + "".join(ALPHABET[(i * 7 + j * j) % 26] for j in range(n)) for i, n in enumerate(lengths)]


def chats(lengths: list[int]) -> list[Document]:
    return [
        [Message("user", f"{i:03d}"), Message("assistant", "".join(ALPHABET[(i + j * j) % 26] for j in range(n)))]
        for i, n in enumerate(lengths)
    ]


def make(folder: Path, name: str, documents: list[Document], *, shard_tokens: int = 10**9) -> TokenSet:
    kind: Kind = "documents" if isinstance(documents[0], str) else "conversations"
    return write_token_set(folder / name, documents, BYTES, kind=kind, shard_tokens=shard_tokens)


class Numbered:
    """A tokenizer that makes of the text "5" five ids that occur nowhere else: every token can be recognised."""

    vocab_size = 100_000
    bos = 0
    hash = "numbered"
    token_bytes = np.zeros(vocab_size, np.int32)

    def __init__(self) -> None:
        self._next = 100

    def special(self, name: str) -> int:
        return SPECIALS.index(name)

    def encode(self, text: str) -> list[int]:
        self._next += int(text)
        return list(range(self._next - int(text), self._next))

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]


def numbered(folder: Path, kind: str, lengths: list[int], *, shard_tokens: int = 10**9) -> TokenSet:
    documents: list[Document] = [str(n) for n in lengths]
    if kind == "conversations":
        documents = [[Message("user", "2"), Message("assistant", str(n))] for n in lengths]
    tokenizer: Any = Numbered()
    return write_token_set(folder / kind, documents, tokenizer, kind=kind, shard_tokens=shard_tokens)  # type: ignore[arg-type]


def segments(batch: Batch) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """(ids, targets) of every run of equal document numbers, padding left out: BOS that are followed by nothing."""
    for ids, targets, numbers in zip(batch.ids, batch.targets, batch.documents, strict=True):
        assert (np.diff(numbers) >= 0).all() and numbers[0] == 0 and (np.diff(numbers) <= 1).all()
        for number in range(numbers.max() + 1):
            chosen = numbers == number
            if (ids[chosen] == 0).all() and (targets[chosen] == -1).all():
                assert number == numbers.max(), "padding is the last segment"
                continue
            yield tuple(ids[chosen].tolist()), tuple(targets[chosen].tolist())


def contents(token_set: TokenSet, document: int) -> tuple[list[int], list[int]]:
    """(ids, targets) that a whole document must give."""
    tokens, mask = token_set.tokens(document).tolist(), token_set.mask(document)
    if mask is None:
        return tokens, [*tokens[1:], token_set.bos]
    return tokens, [token if bit else -1 for token, bit in zip(tokens[1:], mask[1:], strict=True)] + [-1]


def assert_documents_come_once(batches: list[Batch], token_set: TokenSet) -> None:
    """Puts the segments of each document together again; only for ids that occur once, and BOS."""
    pieces: dict[int, list[tuple[int, int]]] = {}
    place = {}  # of a document's token, and of the target of its BOS: (document, position)
    for document in range(token_set.num_documents):
        for position, token in enumerate(token_set.tokens(document).tolist()):
            place[token] = (document, position)
    found = 0
    for batch in batches:
        for ids, targets in segments(batch):
            document, start = place[ids[0]] if ids[0] else (place[targets[0]][0], 0)
            expected_ids, expected_targets = contents(token_set, document)
            assert list(ids) == expected_ids[start : start + len(ids)]
            assert list(targets) == expected_targets[start : start + len(ids)]
            pieces.setdefault(document, []).append((start, len(ids)))
            found += len(ids)
    assert found == token_set.num_tokens
    for document, parts in pieces.items():
        ends = [0, *(start + length for start, length in sorted(parts))]
        assert ends[:-1] == [start for start, _ in sorted(parts)] and ends[-1] == token_set.lengths[document]


def assert_conversations_come_once(batches: list[Batch], token_set: TokenSet) -> None:
    """Whole, or cut at multiples of the row where they are longer than one."""
    context = batches[0].ids.shape[1]
    expected: Counter[tuple[tuple[int, ...], tuple[int, ...]]] = Counter()
    for document in range(token_set.num_documents):
        ids, targets = contents(token_set, document)
        for start in range(0, len(ids), context):
            part = slice(start, start + context)
            if any(ids[part]) or any(target != -1 for target in targets[part]):
                expected[tuple(ids[part]), tuple(targets[part])] += 1
    assert Counter(segment for batch in batches for segment in segments(batch)) == expected


def rows_of_epoch(rows: Rows) -> int:
    count = 1
    while rows.epochs(count) < 1 - 1e-9:
        count += 1
    assert rows.epochs(count) == pytest.approx(1)
    return count


@settings(deadline=None, max_examples=40)
@given(LENGTHS, st.integers(2, 23), st.integers(0, 99), st.sampled_from([50, 10**9]))
def test_an_epoch_of_documents_holds_every_token_once_with_its_next_token(
    lengths: list[int], context: int, seed: int, shard_tokens: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        token_set = numbered(Path(folder), "documents", lengths, shard_tokens=shard_tokens)
        rows = Rows([token_set], context, seed)
        count = -(-token_set.num_tokens // context)
        for epoch in range(2):
            assert_documents_come_once([rows.rows(epoch * count, count)], token_set)
        assert rows.epochs(count) == pytest.approx(1)
        assert rows.stats().dropped_share == 0
        assert rows.stats().padded_share == pytest.approx(1 - token_set.num_tokens / (count * context))


@settings(deadline=None, max_examples=40)
@given(LENGTHS, st.integers(5, 40), st.sampled_from([60, 10**9]))
def test_an_epoch_of_conversations_holds_each_whole_and_learns_only_the_answers(
    lengths: list[int], context: int, shard_tokens: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        token_set = numbered(Path(folder), "conversations", lengths, shard_tokens=shard_tokens)
        rows = Rows([token_set], context, 5)
        batch = rows.rows(0, rows_of_epoch(rows))
        assert_conversations_come_once([batch], token_set)
        assert (batch.targets >= 0).sum() == token_set.manifest["num_supervised"]


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.integers(1, 30), min_size=2, max_size=50),
    st.integers(0, 9),
    st.lists(st.integers(1, 9), min_size=3, max_size=9),
)
def test_rows_do_not_depend_on_how_they_are_asked_for(lengths: list[int], seed: int, sizes: list[int]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        sets = [make(Path(folder), "a", texts(lengths)), make(Path(folder), "b", chats(lengths))]
        for token_sets in ([sets[0]], [sets[1]], sets):
            total = sum(sizes)
            straight = Rows(token_sets, 17, seed).rows(0, total)
            rows, first = Rows(token_sets, 17, seed), 0
            for size in sizes:
                assert_equal(rows.rows(first, size), straight.rows(first, first + size))
                first += size
            assert_equal(rows.rows(0, 2), straight.rows(0, 2))  # going back
            assert_equal(
                Rows(token_sets, 17, seed).rows(total - 2, 2), straight.rows(total - 2, total)
            )  # a resumed run


def assert_equal(a: Batch, b: Batch) -> None:
    assert np.array_equal(a.ids, b.ids) and np.array_equal(a.targets, b.targets)
    assert np.array_equal(a.documents, b.documents)


def test_arrays_have_the_shapes_and_types_of_the_contract(tmp_path: Path) -> None:
    batch = Rows([make(tmp_path, "a", texts([9, 20, 31]))], 7, 0).rows(2, 5)
    for array in (batch.ids, batch.targets, batch.documents):
        assert array.shape == (5, 7) and array.dtype == np.int32
    assert len(batch) == 5 and len(batch.rows(1, 3)) == 2


def test_the_last_token_of_a_document_predicts_the_beginning_of_another(tmp_path: Path) -> None:
    batch = Rows([make(tmp_path, "a", ["xyz"])], 8, 0).rows(0, 1)
    text = list(b"xyz")
    assert batch.ids[0].tolist() == [BYTES.bos, *text, *[BYTES.bos] * 4]
    assert batch.targets[0].tolist() == [*text, BYTES.bos, *[-1] * 4]
    assert batch.documents[0].tolist() == [0] * 4 + [1] * 4


def test_the_end_of_a_cut_segment_predicts_the_documents_next_token(tmp_path: Path) -> None:
    batch = Rows([make(tmp_path, "a", ["abcdefg"])], 4, 0).rows(0, 2)
    by_start = {int(row[0]): targets.tolist() for row, targets in zip(batch.ids, batch.targets, strict=True)}
    assert by_start[BYTES.bos] == list(b"abcd")
    assert by_start[ord("d")] == [*b"efg", BYTES.bos]


def test_a_padded_row_does_not_look_into_the_row_below(tmp_path: Path) -> None:
    token_set = numbered(tmp_path, "documents", [3, 9, 4])  # 19 tokens with BOS: each epoch has 13 positions of padding
    batch = Rows([token_set], 16, 1).rows(0, 40)
    is_padding = batch.targets == -1
    assert (is_padding.sum(axis=1) == 13).sum() == 20 and is_padding.sum() == 20 * 13
    assert (batch.ids[is_padding] == token_set.bos).all()
    assert is_padding[:-1, -1].any(), "a padded row above another one"


def test_epochs_are_shuffled_differently(tmp_path: Path) -> None:
    rows = Rows([make(tmp_path, "a", texts([12] * 24))], 16, 3)
    one, two = rows.rows(0, 24), rows.rows(24, 24)
    assert not np.array_equal(one.ids, two.ids)
    assert np.array_equal(np.sort(one.ids.ravel()), np.sort(two.ids.ravel()))
    assert not np.array_equal(one.ids, Rows([make(tmp_path, "b", texts([12] * 24))], 16, 4).rows(0, 24).ids)


def test_documents_of_several_sets_are_mixed(tmp_path: Path) -> None:
    sets = [make(tmp_path, "a", texts([11] * 40, mark="A")), make(tmp_path, "b", texts([11] * 40, mark="B"))]
    rows = Rows(sets, 16, 0)
    batch = rows.rows(0, 80)
    is_first = (batch.ids == ord("A")).any(axis=1)
    assert is_first.sum() == 40
    assert 5 < is_first[:40].sum() < 35, "neither set comes first"


def test_a_weight_of_two_repeats_a_set_within_an_epoch(tmp_path: Path) -> None:
    sets = [make(tmp_path, "a", texts([11] * 10, mark="A")), make(tmp_path, "b", texts([11] * 10, mark="B"))]
    batch = Rows(sets, 16, 0, weights=[2.0, 0.5]).rows(0, 25)
    assert (batch.ids == ord("A")).sum() == 20 and (batch.ids == ord("B")).sum() == 5


@pytest.mark.parametrize("weights", [[1.0, 0.03], [0.37, 2.6], [5.0, 1.0]])
@pytest.mark.parametrize("kind", ["documents", "conversations"])
def test_rows_of_a_mixture_go_on_exactly_where_a_run_stopped(tmp_path: Path, weights: list[float], kind: str) -> None:
    other = texts([9, 25] * 20, mark="B") if kind == "documents" else chats([9, 25] * 20)
    sets = [make(tmp_path, "a", texts([14, 31, 6] * 30, mark="A")), make(tmp_path, "b", other)]
    straight = Rows(sets, 32, 7, weights=weights).rows(0, 400)  # several epochs, whose sizes differ
    for first in (1, 130, 399):
        resumed = Rows(sets, 32, 7, weights=weights).rows(first, 400 - first)
        assert_equal(resumed, straight.rows(first, 400))
    assert not np.array_equal(Rows(sets, 32, 8, weights=weights).rows(0, 400).ids, straight.ids)


def test_a_small_part_of_a_large_set_is_another_one_in_every_epoch_until_all_was_seen(tmp_path: Path) -> None:
    lengths = np.array([5] * 100 + [7] * 4)
    order = pack_module.EpochOrder(lengths, [100, 4], [0.1, 1.0], seed=2)
    epochs = [[n for n in order.documents(epoch) if n < 100] for epoch in range(20)]
    assert all(len(part) == 10 for part in epochs)
    assert sorted(np.concatenate(epochs[:10]).tolist()) == list(range(100))
    assert [sorted(part) for part in epochs[10:]] == [sorted(part) for part in epochs[:10]]


def test_conversations_beside_text_are_never_cut(tmp_path: Path) -> None:
    sets = [make(tmp_path, "a", texts([40] * 30)), make(tmp_path, "b", chats([5, 9, 14] * 8))]
    rows = Rows(sets, 32, 0)
    count = rows_of_epoch(rows)
    batch = rows.rows(0, count)
    starts = batch.ids == BYTES.special("<|user_start|>")
    assert starts.sum() == 24
    for row, position in zip(*np.nonzero(starts), strict=True):
        number = batch.documents[row, position]
        assert batch.ids[row][batch.documents[row] == number][-1] == BYTES.special("<|assistant_end|>")
    assert rows.stats().padded_share < 0.1 and rows.stats().dropped_share == 0


def test_equal_rows_in_a_batch_are_counted(tmp_path: Path) -> None:
    assert Rows.duplicate_rows(Rows([make(tmp_path, "a", texts([11] * 9))], 16, 0).rows(0, 9)) == 0
    assert Rows.duplicate_rows(Rows([make(tmp_path, "b", ["the same text!!"] * 9)], 16, 0).rows(0, 9)) == 8


def test_padding_of_real_conversations_is_below_one_percent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    lengths = np.random.default_rng(0).integers(8, 188, 701).tolist()
    rows = Rows([make(tmp_path, "a", chats(lengths))], 256, 0)
    rows.rows(0, rows_of_epoch(rows))
    assert rows.stats().padded_share < 0.01 and rows.stats().dropped_share == 0


@pytest.mark.skipif(not DATA, reason="INTONE_TEST_DATA is not set: no real conversations")
def test_padding_of_the_real_sft_set_is_below_one_percent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    path = Path(str(DATA)) / "sft" / "val.jsonl"
    chats = list(read_documents([path], ReadReport()))
    tokenizer = train_tokenizer((message.visible for chat in chats for message in chat), 2000)  # type: ignore[union-attr]
    rows = Rows([write_token_set(tmp_path, chats, tokenizer, kind="conversations")], 512, 0)
    rows.rows(0, rows_of_epoch(rows))
    assert rows.stats().padded_share < 0.005 and rows.stats().dropped_share == 0


def test_learning_all_makes_targets_of_a_conversation_those_of_a_text(tmp_path: Path) -> None:
    token_set = numbered(tmp_path, "conversations", [3, 5, 2])
    batch = Rows([token_set], 11, 0, learn_all=True).rows(0, 3)
    for ids, targets in segments(batch):
        assert list(targets[:-1]) == list(ids[1:])
    assert (batch.targets >= 0).sum() == token_set.num_tokens


def test_a_row_as_one_text_has_the_same_tokens_and_one_document(tmp_path: Path) -> None:
    token_set = numbered(tmp_path, "documents", [3, 5, 2, 7])
    apart = Rows([token_set], 8, 0).rows(0, 2)
    batch = Rows([token_set], 8, 0, one_text=True).rows(0, 2)
    assert apart.documents.any() and not batch.documents.any()
    assert (batch.ids == apart.ids).all() and (batch.targets == apart.targets).all()


def test_sets_of_different_tokenizers_are_refused(tmp_path: Path) -> None:
    other = Tokenizer([*(bytes([value]) for value in range(256)), b"ab"], SPLIT_PATTERN)
    sets = [make(tmp_path, "a", ["abc"]), write_token_set(tmp_path / "b", ["abc"], other, kind="documents")]
    with pytest.raises(UserError, match="different tokenizers"):
        Rows(sets, 8, 0)


@pytest.mark.parametrize("weights", [[1.0, 1.0], [0.0], [-1.0]])
def test_weights_that_fit_no_set_are_refused(tmp_path: Path, weights: list[float]) -> None:
    with pytest.raises(UserError, match="weights"):
        Rows([make(tmp_path, "a", ["abc"])], 8, 0, weights=weights)


@pytest.mark.parametrize("kind", ["documents", "conversations"])
def test_validation_holds_every_token_once_and_has_one_shape(tmp_path: Path, kind: str) -> None:
    token_set = numbered(tmp_path, kind, [3, 40, 17, 9, 9, 9, 30])
    batches = list(validation_rows(token_set, 33, rows_per_batch=3))
    assert all(batch.ids.shape == (3, 33) for batch in batches)
    check = assert_documents_come_once if kind == "documents" else assert_conversations_come_once
    check(batches, token_set)
    for one, two in zip(batches, validation_rows(token_set, 33, rows_per_batch=3), strict=True):
        assert_equal(one, two)


@pytest.mark.parametrize("max_tokens", [1, 50, 101, 10_000])
def test_validation_stops_at_max_tokens(tmp_path: Path, max_tokens: int) -> None:
    token_set = make(tmp_path, "a", texts([3, 40, 17, 9, 30, 44]))
    batches = validation_rows(token_set, 16, max_tokens, rows_per_batch=4)
    assert sum((batch.targets >= 0).sum() for batch in batches) == min(max_tokens, token_set.num_tokens)


def test_the_prefetcher_gives_the_steps_in_order(tmp_path: Path) -> None:
    token_set = make(tmp_path, "a", texts([3, 40, 17, 9, 30, 44]))
    with Prefetcher(Rows([token_set], 16, 0), 3, first_step=5, depth=2) as steps:
        for expected in range(5, 25):
            step, batch = next(steps)
            assert step == expected
            assert_equal(batch, Rows([token_set], 16, 0).rows(step * 3, 3))


def test_closing_the_prefetcher_ends_its_thread(tmp_path: Path) -> None:
    before = threading.active_count()
    steps = Prefetcher(Rows([make(tmp_path, "a", texts([30, 44]))], 16, 0), 3)
    next(steps)
    steps.close()
    steps.close()
    assert threading.active_count() == before
    with pytest.raises(StopIteration):
        next(steps)


def test_an_error_of_the_prefetching_thread_reaches_the_consumer(tmp_path: Path) -> None:
    rows = Rows([make(tmp_path, "a", texts([30, 44]))], 16, 0)
    good = rows.rows

    def failing(first: int, count: int) -> Batch:
        if first == 6:
            raise OSError("the disk went away")
        return good(first, count)

    rows.rows = failing  # type: ignore[method-assign]
    steps = Prefetcher(rows, 3)
    assert [next(steps)[0], next(steps)[0]] == [0, 1]
    with pytest.raises(OSError, match="the disk went away"):
        next(steps)


def test_a_paused_prefetcher_makes_nothing_and_goes_on_where_it_was(tmp_path: Path) -> None:
    rows = Rows([make(tmp_path, "a", texts([3, 40, 17, 9, 30, 44]))], 16, 0)
    made: list[int] = []
    good = rows.rows

    def counted(first: int, count: int) -> Batch:
        made.append(first)
        return good(first, count)

    rows.rows = counted  # type: ignore[method-assign]
    with Prefetcher(rows, 3, depth=2) as steps:
        next(steps)
        with steps.paused():
            before = list(made)
            for _ in range(len(before) - 1):
                next(steps)  # what is ready can be had, and makes room for more
            threading.Event().wait(0.05)  # that nothing happens can only be seen by waiting
            assert made == before
        assert [next(steps)[0] for _ in range(5)] == list(range(len(before), len(before) + 5))


def test_a_paused_prefetcher_can_be_closed(tmp_path: Path) -> None:
    steps = Prefetcher(Rows([make(tmp_path, "a", texts([30, 44]))], 16, 0), 3)
    with steps.paused():
        steps.close()
    with pytest.raises(StopIteration):
        next(steps)
