"""Documents as token ids, batch after batch on all cores, in their order and with flat memory."""

from array import array
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from intone.data.chat import render
from intone.data.text import Document, Kind
from intone.data.tokenizer import Tokenizer
from intone.errors import UserError
from intone.system import allowed_cpus, count_cores, group_limits

MAX_THREADS = 16  # one reader cannot feed more: it reads 200 MB of text a second, a thread encodes 19 [measured]


@dataclass(frozen=True)
class Encoded:
    """A batch of documents one behind the other."""

    ids: np.ndarray  # (n,) uint32
    lengths: np.ndarray  # (documents,) int64
    mask: np.ndarray | None  # (n,) uint8; None for kind documents


def encode_stream(batches: Iterable[list[Document]], tokenizer: Tokenizer, kind: Kind) -> Iterator[Encoded]:
    """The batches encoded in threads, one per core, in order; at most one more than that is in memory.

    Raises UserError where a document has the wrong kind.
    """
    logical, _ = count_cores(allowed_cpus(), group_limits().cpus)
    threads = max(1, min(logical, MAX_THREADS))
    pending: deque[Future[Encoded]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for batch in batches:
                pending.append(pool.submit(encode, batch, tokenizer, kind))
                if len(pending) > threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def encode(batch: list[Document], tokenizer: Tokenizer, kind: Kind) -> Encoded:
    """One batch. Raises UserError where a document has the wrong kind."""
    wrong = [document for document in batch if isinstance(document, str) != (kind == "documents")]
    if wrong:
        found, wanted = ("text", "messages") if kind == "conversations" else ("messages", "text")
        raise UserError(
            f"{len(wrong):,} of {len(batch):,} rows hold {found!r} where {wanted!r} is expected",
            value=found,
            fix="give text to --data and conversations to --sft",
        )
    # arrays of the standard library take a list of ints more than twice as fast as numpy does [measured]
    ids, mask, lengths = array("I"), bytearray(), array("q")
    for document in batch:
        if isinstance(document, str):
            body = tokenizer.encode(document)
            ids.append(tokenizer.bos)
            ids.fromlist(body)
            lengths.append(1 + len(body))
        else:
            rendered, learned = render(document, tokenizer)
            ids.fromlist(rendered)
            mask += bytes(learned)
            lengths.append(len(rendered))
    return Encoded(
        ids=np.frombuffer(ids, np.uint32),
        lengths=np.frombuffer(lengths, np.int64),
        mask=np.frombuffer(mask, np.uint8) if kind == "conversations" else None,
    )
