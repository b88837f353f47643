"""Result rows of the data path: text to token shards, shards to packed batches, and memory that stays flat."""

import argparse
import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from intone.bench.basics import result
from intone.bench.rows import row_path
from intone.data.files import find_files
from intone.data.loader import Prefetcher, Rows
from intone.data.shards import TokenSet, write_token_set
from intone.data.text import Document, ReadReport, read_documents
from intone.data.tokenizer import Tokenizer
from intone.errors import UserError
from intone.hardware import load_facts, quiet
from intone.log import say
from intone.paths import home
from intone.peak import process_tree, proportional_bytes, resident
from intone.prepare import ensure_tokenizer, find_source
from intone.records import ResultRow, append_result

COMMAND = "python -m intone.bench.data"
CORES = 2
VOCAB = 32_768
REPEATS = 9  # of the median, the second smallest and largest of nine are a 96 % interval
ENCODE_BYTES = 60_000_000  # of text in one repeat: two seconds or more, a shard and many batches
CONTEXT = 1024
ROWS_PER_STEP = 64
LOADER_TOKENS = 16_000_000  # of one repeat: a new window every few steps, planning included
GIGABYTE = 1_000_000_000
SETTLED_MB = 100  # memory is compared with what it was after so much text
SAMPLE_EVERY_MB = 10


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and appends rows; prints them."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--data", nargs="+", help="text: files or folders")
    parser.add_argument("--sft", nargs="+", help="conversations, for the loader")
    parser.add_argument(
        "--gigabyte", metavar="PATH", help="tokenise this text again and again up to 1 GB, watch memory"
    )
    parser.add_argument("--megabytes", type=int, default=GIGABYTE // 10**6, help="stop --gigabyte earlier, for a try")
    parser.add_argument("--out", type=Path, default=row_path("data"))
    asked = parser.parse_args(argv)
    if asked.gigabyte is None and (asked.data is None or asked.sft is None):
        parser.error("give --data and --sft, or --gigabyte PATH")
    limit_cores()
    try:
        with quiet(load_facts().folder), tempfile.TemporaryDirectory(prefix="bench-", dir=scratch()) as folder:
            if asked.gigabyte is not None:
                rows = [growth_row(asked.gigabyte, Path(folder), asked.megabytes)]
            else:
                rows = speed_rows(asked.data, asked.sft, Path(folder))
    except UserError as error:
        say(str(error))
        return 2
    for row in rows:
        append_result(asked.out, row)
        print(f"{row.id}  {row.value:.5g} {row.unit}  [{row.low}, {row.high}]  n={row.n}")
    return 0


def limit_cores() -> None:
    """This process and its threads on two cores, on a machine that has more."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])


def scratch() -> Path:
    """Where the token sets of a measurement stand: on the disk that real ones stand on."""
    home().mkdir(parents=True, exist_ok=True)
    return home()


# --- speed ----------------------------------------------------------------------------------------------------------


def speed_rows(data: Sequence[str], sft: Sequence[str], folder: Path) -> list[ResultRow]:
    """cpu.data.encode_mb_per_s and cpu.data.loader_tokens_per_s."""
    source = find_source("documents", data, ())
    _, tokenizer = ensure_tokenizer([source], VOCAB)
    command = f"{COMMAND} --data {' '.join(map(portable, data))} --sft {' '.join(map(portable, sft))}"
    rates = [encode_rate(source.files, tokenizer, folder / "encode") for _ in range(REPEATS)]
    base = TokenSet.open(folder / "encode")
    talk_files, _ = find_files(list(sft))
    talk = write_token_set(
        folder / "sft", read_documents(talk_files, ReadReport(), kind="conversations"), tokenizer, kind="conversations"
    )
    sets = [base, talk]
    weights = [1.0, base.num_tokens / talk.num_tokens]  # equal numbers of tokens, as in middle training
    speeds = [loader_rate(Rows(sets, CONTEXT, seed, weights=weights)) for seed in range(REPEATS)]
    alone = statistics.median(loader_rate(Rows([talk], CONTEXT, seed)) for seed in range(3))
    say(f"conversations alone: {alone:,.0f} tokens/s")
    return [
        spread("cpu.data.encode_mb_per_s", rates, "MB/s", command),
        spread("cpu.data.loader_tokens_per_s", speeds, "tokens/s", command),
    ]


def encode_rate(files: Sequence[Path], tokenizer: Tokenizer, folder: Path) -> float:
    """MB of UTF-8 a second, from files on disk to a complete token set: reading, encoding, hashing, writing, fsync."""
    begin_s = time.perf_counter()
    made = write_token_set(folder, repeated(files, ENCODE_BYTES), tokenizer, kind="documents")
    return made.num_bytes / 1e6 / (time.perf_counter() - begin_s)


def loader_rate(rows: Rows) -> float:
    """Tokens a second of batches with ids, targets and document numbers, as the training loop takes them."""
    steps = LOADER_TOKENS // (ROWS_PER_STEP * CONTEXT)
    begin_s = time.perf_counter()
    with Prefetcher(rows, ROWS_PER_STEP) as batches:
        num_tokens = sum(batch.ids.size for _, batch in itertools.islice(batches, steps))
    return num_tokens / (time.perf_counter() - begin_s)


def repeated(files: Sequence[Path], num_bytes: int) -> Iterator[Document]:
    """The documents of the files, again and again until they are so many bytes of text together."""
    taken = 0
    while True:
        for document in read_documents(files, ReadReport(), kind="documents"):
            yield document
            taken += len(str(document).encode("utf-8", "replace"))
            if taken >= num_bytes:
                return


def portable(path: object) -> str:
    """A path as a row's command names it: an absolute one means nothing on another machine, its name does."""
    return Path(str(path)).name if Path(str(path)).is_absolute() else str(path)


def spread(name: str, values: Sequence[float], unit: str, command: str) -> ResultRow:
    """A row of the median with its interval."""
    ordered = sorted(values)
    return result(name, statistics.median(values), unit, ordered[1], ordered[-2], len(values), command)


# --- memory ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """The memory of all processes of this one when so much text was tokenised."""

    megabytes: float
    rss_bytes: int
    pss_bytes: int


def growth_row(path: str, folder: Path, megabytes: int) -> ResultRow:
    """cpu.data.tokenise_growth_mib: how much more memory there was at any time than after the first 100 MB.

    By resident memory: the proportional one moved by 17 MiB when another program that maps the same libraries ended.
    low and high: the smallest and the largest of all later samples. Prints every sample and the slope.
    """
    source = find_source("documents", [path], ())
    _, tokenizer = ensure_tokenizer([source], VOCAB)
    samples: list[Sample] = []
    note = sampler(samples)
    documents = repeated(source.files, megabytes * 10**6)
    write_token_set(folder / "gigabyte", documents, tokenizer, kind="documents", progress=note)
    before = [sample for sample in samples if sample.megabytes <= SETTLED_MB]
    after = [sample for sample in samples if sample.megabytes > SETTLED_MB]
    if not before or not after:
        raise UserError(f"{megabytes} MB are too few", value=megabytes, fix=f"use more than {2 * SETTLED_MB}")
    settled = before[-1]
    growth = [(sample.rss_bytes - settled.rss_bytes) / 2**20 for sample in after]
    for sample, grown in zip(after, growth, strict=True):
        proportional = sample.pss_bytes / 2**20
        say(f"{sample.megabytes:6,.0f} MB  resident {grown:+7.1f} MiB  proportional {proportional:7.1f} MiB")
    slope = statistics.linear_regression([sample.megabytes for sample in after], growth).slope
    say(f"slope {100 * slope:+.3f} MiB for every 100 MB of text")
    size = "" if megabytes == GIGABYTE // 10**6 else f" --megabytes {megabytes}"
    command = f"{COMMAND} --gigabyte {portable(path)}{size}"
    return result("cpu.data.tokenise_growth_mib", max(growth), "MiB", min(growth), max(growth), len(growth), command)


def sampler(samples: list[Sample]) -> Callable[[int, int], None]:
    """A progress callback that looks at the memory after every few megabytes."""

    def note(_num_documents: int, num_bytes: int) -> None:
        megabytes = num_bytes / 1e6
        if samples and megabytes < samples[-1].megabytes + SAMPLE_EVERY_MB:
            return
        tree = process_tree(os.getpid())
        samples.append(Sample(megabytes, sum(map(resident, tree)), sum(map(proportional_bytes, tree))))

    return note


if __name__ == "__main__":
    sys.exit(main())
