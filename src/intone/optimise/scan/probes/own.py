"""Our own engine and loader as a target of the probes: a small random model and a small text, made on the spot."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from intone.data.loader import Rows
from intone.data.shards import TokenSet, write_token_set
from intone.data.tokenizer import SPLIT_PATTERN, Tokenizer
from intone.engine.engine import Engine
from intone.engine.requests import Request
from intone.prove.gates.tiny import TEXT_CONTEXT, random_model

ROWS, CONTEXT = 6, 48


def target() -> Mapping[str, Any]:
    """What the probes look at in intone itself."""
    torch.set_num_threads(1)
    tokenizer = Tokenizer([bytes([value]) for value in range(256)], SPLIT_PATTERN)
    engine = Engine(random_model(), tokenizer)

    def generate(prompt: list[int], rows: int, max_tokens: int, temperature: float, seed: int) -> list[list[int]]:
        request = Request(prompt, max_tokens=max_tokens, temperature=temperature, n=rows, seed=seed, tools=False)
        return [list(sample.ids) for sample in engine.generate([request])[0]]

    folder = Path(tempfile.mkdtemp(prefix="intone-probe-"))
    texts = [f"{n} birds sat on the roof of house {n * n % 97}. " * (1 + n % 7) for n in range(400)]
    write_token_set(folder / "text", texts, tokenizer, kind="documents")

    def batches(first: int, count: int, rank: int, ranks: int) -> list[tuple[Any, Any]]:
        rows = Rows([TokenSet.open(folder / "text")], CONTEXT, seed=7)
        found = []
        for step in range(first, first + count):
            batch = rows.rows((step * ranks + rank) * ROWS, ROWS)
            found.append((batch.ids, batch.targets))
        return found

    trained = random_model()

    def step(ids: Any, targets: Any) -> None:
        loss, count = trained(torch.as_tensor(ids), torch.as_tensor(targets), None)
        (loss / count).backward()
        trained.zero_grad(set_to_none=True)

    return {
        "generate": generate,
        "prompt": [72, 101, 108, 108],
        "context": TEXT_CONTEXT,
        "batches": batches,
        "ignored": -1,
        "step": step,
    }
