"""The case study's table of generation: without a cache, with one, many texts together, and everything"""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from intone import jobs
from intone.bench.casestudy_rows import EVERYTHING, START, Table, Way, to_table
from intone.bench.casestudy_start import Faults, StartChild, plain_memory, run_start, write_faults
from intone.errors import UserError
from intone.log import say
from intone.paths import write_json
from intone.prove.live import LineChild, WorkerChild
from intone.prove.measure import Side, measure_rounds

CHECK_TEXTS, CHECK_TOKENS = 2, 64  # of the comparison of tokens
SHAPES = {True: (1, 3), False: (3, 2)}  # by quick: replicates, rounds in each
CACHE_BLOCK = 3  # texts in a block of one row: as long as a block of the start, about
ENGINE = {"num_guesses": 0}  # a barely trained model repeats itself, which guessing from the text would profit from


@dataclass(frozen=True)
class Texts:
    """What is generated, and from what. weights: a job folder with a save; tokenizer: its folder."""

    weights: Path
    tokenizer: Path
    dtype: str
    device: str
    threads: int | None
    ordinary: int  # ids below are ordinary tokens
    rows: int
    prompt_tokens: int
    new_tokens: int
    environment: Mapping[str, str]
    scratch: Path

    def config(self, count: int, new_tokens: int, **engine: Any) -> dict[str, Any]:
        """config.json of a generate job: greedy texts of fixed length after random prompts."""
        prompts = np.random.default_rng(0).integers(0, self.ordinary, (count, self.prompt_tokens)).tolist()
        sampling = {
            "max_tokens": new_tokens, "min_tokens": new_tokens, "temperature": 0.0, "tools": False, "logprobs": False
        }  # fmt: skip
        return {
            "format": 1, "job": "generate", "from": str(self.weights), "tokenizer": str(self.tokenizer),
            "prompts": prompts, "dtype": self.dtype, "device": self.device, "threads": self.threads,
            "sampling": sampling, "engine": {**ENGINE, **engine},
        }  # fmt: skip


def inference_table(
    texts: Texts, *, quick: bool, replicates: int | None = None, rounds: int | None = None, lock: bool = True,
    others: Sequence[Way] = (),
) -> Table:  # fmt: skip
    """One row without a cache up to everything. Raises SideFailed where the first cannot be measured.

    replicates: fresh processes of each side; rounds: in each of them. None: as quick says.
    others: rows of foreign programs that write texts of the same lengths.
    """
    ways = [*ways_of(texts), *others]
    same = tokens_agree(texts)
    sides = [way.side for way in ways if way.side is not None]
    by_rule = SHAPES[quick]
    measured = measure_rounds(sides, shape=(replicates or by_rule[0], rounds or by_rule[1]), lock=lock)
    notes = [
        f"prompts of {texts.prompt_tokens} tokens, {texts.new_tokens} new ones, greedy, {texts.dtype}; guessing from "
        "the text is off, since a barely trained model repeats itself",
    ]
    return to_table(
        "inference", "generation", ways, measured, unit="tokens", work=texts.rows * texts.new_tokens,
        work_words=f"{texts.rows} texts", threads=texts.threads or 1, parity=same, notes=notes,
    )  # fmt: skip


def ways_of(texts: Texts) -> list[Way]:
    """The rows: one change each, until everything."""
    rows = texts.rows
    graphs = "not here: graphs of recorded work are for CUDA"
    if texts.device == "cuda":
        graphs = "the engine takes its steps as it does by default, see the last row"
    return [
        Way(START, "no cache", "1", side(texts, START, 1, 1, Faults.named("no_cache")),
            "every new token computes its whole text again, one text at a time"),
        Way("cache", "+ cache", "1", side(texts, "cache", 1, CACHE_BLOCK, None, num_slots=1)),
        Way("batch", "+ batch", str(rows), side(texts, "batch", rows, rows, None, num_slots=rows)),
        Way("graphs", "+ graphs", "-", None, graphs),
        Way(EVERYTHING, "everything as it is here", str(rows), side(texts, EVERYTHING, rows, rows, None),
            "the engine's own number of slots, share of memory and ways to compute"),
    ]  # fmt: skip


def side(texts: Texts, key: str, count: int, size: int, faults: Faults | None, **engine: Any) -> Side:
    """A row of the table: count prompts, size of them in a block."""
    numbers = itertools.count(1)

    def start() -> LineChild:
        folder = texts.scratch / f"{key}-{next(numbers)}"
        write_json(folder / "config.json", texts.config(count, texts.new_tokens, **engine))
        if faults is None:
            return WorkerChild(folder, texts.environment, name=key)
        write_faults(folder, faults)
        return StartChild(folder, plain_memory(texts.environment), name=key)

    return Side(key, start, count="requests", size=size)


def tokens_agree(texts: Texts) -> dict[str, str]:
    """By key, whether the engine writes the tokens of generation without a cache."""
    say("comparing the tokens of both ends")
    new = min(CHECK_TOKENS, texts.new_tokens)
    start, everything = (written(texts, new, faults) for faults in (Faults.named("no_cache"), None))
    pairs = list(zip(start, everything, strict=True))
    same = sum(a == b for a, b in pairs)
    words = f"{same} of {len(pairs)} greedy texts of {new} tokens are those without a cache"
    for a, b in pairs:
        if a != b:
            at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False), 1) if x != y), min(len(a), len(b)) + 1)
            return {EVERYTHING: f"{words}; the first difference is token {at}"}
    return {EVERYTHING: words}


def written(texts: Texts, new_tokens: int, faults: Faults | None) -> list[list[int]]:
    """The ids of a few texts, by a job of its own. Raises UserError where it fails."""
    folder = texts.scratch / f"tokens-{'engine' if faults is None else 'start'}"
    write_json(folder / "config.json", texts.config(CHECK_TEXTS, new_tokens))
    if faults is None:
        outcome = jobs.start(folder, texts.environment).wait()
        if outcome.outcome != "done":
            raise UserError(f"the engine could not be asked: {outcome.message}", value=outcome.outcome)
    else:
        write_faults(folder, faults)
        outcome = run_start(folder, plain_memory(texts.environment))
        if outcome.outcome != "done":
            raise UserError(f"the start could not be asked: {outcome.message}", value=outcome.outcome)
    lines = (folder / "completions.jsonl").read_text().splitlines()
    return [list(json.loads(line)["completions"][0]["ids"]) for line in lines]
