"""From the name of a run to an engine that answers: the one way in which chat, server and Python load a model."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from intone.config import TrainJob
from intone.data.tokenizer import Tokenizer
from intone.engine.engine import Engine
from intone.engine.load import load_newest
from intone.engine.native_decoder import Weights
from intone.errors import Damaged
from intone.evals.eight_bits import known_loss, settle_weights
from intone.hardware import Facts, known_facts
from intone.model.checkpoint import step_folder, weights_hash
from intone.paths import read_json
from intone.records import read_choices
from intone.runs import Place, find_stage
from intone.settings import Resolved
from intone.tune.settle import settle_device

Device = Literal["auto", "cpu", "cuda", "mps"]
Dtype = Literal["auto", "fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class Opened:
    """An engine over the newest good save of a stage. Whoever gets it closes the engine."""

    engine: Engine
    tokenizer: Tokenizer
    place: Place
    step: int
    tokenizer_folder: str


def open_run(
    run: str, *, device: Device = "auto", dtype: Dtype = "auto", weights: Weights = "auto", **engine: Any
) -> Opened:
    """The engine of a run: NAME, NAME/STAGE, a path, or latest. engine: settings of Engine.

    dtype auto: the one it was trained in. weights auto: in dtype, or in 8 bits where it is known of this save that
    they cost next to nothing. Raises UserError where there is no such run, stage or save, Damaged where
    its files are not what they were.
    """
    place = find_stage(run)
    job = TrainJob.from_json(read_json(place.folder / "config.json"))
    chosen = settle_device(Resolved(device, "default" if device == "auto" else "flag", "asked"), _facts())
    tokenizer = Tokenizer.load(Path(job.tokenizer))
    if tokenizer.hash != job.tokenizer_hash:
        raise Damaged(
            f"the tokenizer in {job.tokenizer} is not the one that {place.folder} was trained with",
            value=tokenizer.hash,
            fix="restore that folder, or train again",
        )
    trained_in = read_choices(place.folder).segments[-1].dtype
    dtype_name = trained_in if dtype == "auto" else dtype
    model, step = load_newest(place.folder, dtype=dtype_name, device=torch.device(chosen.value))
    checkpoint = weights_hash(step_folder(place.folder, step))
    stored_as, reason = settle_weights(
        weights, known_loss(place.folder, checkpoint=checkpoint, dtype=dtype_name), model.config,
        device=torch.device(chosen.value), dtype=model.compute_dtype,
    )  # fmt: skip
    opened = Engine(model, tokenizer, weights=stored_as, **engine)
    if reason is not None:
        opened.explain("weights", reason)
    return Opened(opened, tokenizer, place, step, job.tokenizer)


def _facts() -> Facts:
    """What is known of this machine; nothing is measured where only the device matters."""
    facts = known_facts()
    if facts.device is not None:
        return facts
    kinds = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    return replace(facts, device=next(kind for kind, is_there in kinds.items() if is_there))
