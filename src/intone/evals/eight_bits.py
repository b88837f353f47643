"""What 8-bit weights cost one model: bits per byte with them and without, on the same text, kept beside its saves"""

import dataclasses
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from intone.config import ModelConfig
from intone.engine.engine import Engine
from intone.engine.native_decoder import Weights, native_obstacle
from intone.errors import Damaged, UserError
from intone.evals.bpb import Rows
from intone.evals.intervals import ratio
from intone.model.gpt import GPT
from intone.model.native import build
from intone.paths import read_json, write_json
from intone.records import utc_now

FILE = "eight_bits.json"
FORMAT = 1
MOST_LOST = 0.002  # bits per byte (inference.md section 3): 8 bits are the choice where the interval ends below


@dataclass(frozen=True)
class Loss:
    """Measured on num_bytes of text: value = with 8 bits - without, both in bits per byte; low, high: its interval.

    checkpoint: SHA-256 of the weights. dtype: what they are compared with. products: which kernels computed.
    """

    checkpoint: str
    dtype: str
    products: str
    value: float
    low: float
    high: float
    without: float
    num_bytes: int
    date: str

    @property
    def is_small(self) -> bool:
        return self.high <= MOST_LOST


def products_here() -> str:
    """Which of our products read 8-bit weights on this processor: those with AVX-512 round activations further."""
    return "avx2" if build.obstacle("linear") else "avx512"


def measure_loss(model: GPT, tokenizer: Any, batches: Iterable[Rows], *, dtype: str, checkpoint: str) -> Loss:
    """The loss on the texts of batches: each text is scored twice, by engines that differ in their weights alone.

    Texts are resampled for the interval. Raises UserError where 8-bit weights cannot be had here, or there is no text.
    """
    texts = list(texts_of(batches))
    sizes = tokenizer.token_bytes
    counted = [learned & (sizes[ids[1:]] > 0) for ids, learned in texts]
    nats = []
    stored: tuple[Weights, ...] = ("auto", "int8")
    for weights in stored:
        with Engine(model, tokenizer, weights=weights, num_slots=1, share_prefixes=False) as engine:
            scores = engine.score([ids.tolist() for ids, _ in texts])
        nats.append(np.array([-score[mask].sum() for score, mask in zip(scores, counted, strict=True)]))
    num_bytes = np.array([sizes[ids[1:]][mask].sum() for (ids, _), mask in zip(texts, counted, strict=True)])
    kept = num_bytes > 0
    if not kept.any():
        raise UserError("the validation text is empty: nothing to measure 8-bit weights on", fix="name one: --val PATH")
    plain, narrow = (part[kept] / math.log(2) for part in nats)
    lost, total = ratio(narrow - plain, num_bytes[kept]), int(num_bytes.sum())
    return Loss(
        checkpoint=checkpoint, dtype=dtype, products=products_here(), value=lost.value, low=lost.low, high=lost.high,
        without=float(plain.sum() / total), num_bytes=total, date=utc_now(),
    )  # fmt: skip


def texts_of(batches: Iterable[Rows]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Every text of packed rows: ids (T,) and whether each id after the first is learned (T - 1,); padding left out."""
    for batch in batches:
        assert batch.documents is not None, "rows of a loader say which text is which"
        for ids, targets, documents in zip(batch.ids, batch.targets, batch.documents, strict=True):
            ends = [*(np.flatnonzero(np.diff(documents)) + 1), len(ids)]
            for begin, end in zip([0, *ends], ends, strict=False):
                learned = targets[begin : end - 1] >= 0
                if learned.any():
                    yield ids[begin:end].astype(np.int64), learned


def keep(job_folder: Path, loss: Loss) -> None:
    """Writes the loss beside the saves of its job; it counts for that save only."""
    write_json(job_folder / FILE, {"format": FORMAT, **dataclasses.asdict(loss)})


def known_loss(job_folder: Path, *, checkpoint: str, dtype: str) -> Loss | None:
    """What was measured of this save with the kernels of this processor; None: nothing."""
    try:
        found = read_json(job_folder / FILE)
    except (UserError, Damaged):  # not there, or half of it: nothing is known
        return None
    fields = {field.name for field in dataclasses.fields(Loss)}
    if not isinstance(found, dict) or found.pop("format", None) != FORMAT or set(found) != fields:
        return None
    loss = Loss(**found)
    is_of_this = (loss.checkpoint, loss.dtype, loss.products) == (checkpoint, dtype, products_here())
    return loss if is_of_this else None


def settle_weights(
    asked: Weights, loss: Loss | None, config: ModelConfig, *, device: torch.device, dtype: torch.dtype
) -> tuple[Weights, str | None]:
    """How to store matrices, and the reason where it was decided here; asked other than auto stays as it is."""
    if asked != "auto" or loss is None or native_obstacle(config, device=device, dtype=dtype) is not None:
        return asked, None
    lost = f"{loss.value:+.4f} bits per byte [{loss.low:+.4f}, {loss.high:+.4f}] on {loss.num_bytes:,} bytes"
    if loss.is_small:
        return "int8", f"8 bits cost this save {lost}; up to {MOST_LOST} is taken for half the bytes a step reads"
    return "auto", f"8 bits would cost this save {lost}, more than {MOST_LOST}"
