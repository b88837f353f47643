"""From the name of a run to an engine that answers: the one way in which chat, server and Python load a model."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from intone import jobs
from intone.config import ModelConfig, TrainJob
from intone.data.tokenizer import Tokenizer
from intone.engine.engine import Engine
from intone.engine.load import DTYPES, load_newest
from intone.engine.native_decoder import Weights
from intone.errors import Damaged, UserError
from intone.evals.asking import evaluation_config
from intone.evals.eight_bits import known_loss, settle_weights
from intone.hardware import Facts, known_facts
from intone.model.checkpoint import load_weights, step_folder, weights_hash
from intone.paths import home, read_json, write_json
from intone.records import read_choices
from intone.resolving import Resolved
from intone.runs import Place, find_stage
from intone.tune.engine import kept_engine
from intone.tune.settle import settle_device

Device = Literal["auto", "cpu", "cuda", "mps"]
Dtype = Literal["auto", "fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class Opened:
    """An engine over the newest good save of a stage. Whoever gets it closes the engine.

    dtype, weights: what the engine computes in, and how matrices were asked to be stored.
    """

    engine: Engine
    tokenizer: Tokenizer
    place: Place
    step: int
    tokenizer_folder: str
    dtype: str = "fp32"
    weights: Weights = "fp32"


def open_run(
    run: str, *, device: Device = "auto", dtype: Dtype = "auto", weights: Weights = "auto", **engine: Any
) -> Opened:
    """The engine of a run: NAME, NAME/STAGE, a path, or latest. engine: settings of Engine.

    dtype auto: the one it was trained in. weights auto: in dtype, or in 8 bits where it is known of this save that
    they cost next to nothing. How much is computed at once is what `intone tune infer` kept, where engine does not say.
    Raises UserError where there is no such run, stage or save, Damaged where
    its files are not what they were.
    """
    place = find_stage(run)
    job = TrainJob.from_json(read_json(place.folder / "config.json"))
    facts = _facts()
    chosen = settle_device(Resolved(device, "default" if device == "auto" else "flag", "asked"), facts)
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
    device_kind = torch.device(chosen.value)
    stored_as, reason = weights_for(place, step, weights, model.config, device=device_kind, dtype=dtype_name)
    kept = kept_engine(facts, job.model, device=chosen.value, dtype=dtype_name, weights=stored_as)
    sizes = {name: choice for name, choice in kept.items() if engine.get(name) is None}
    asked = engine | {name: choice.value for name, choice in sizes.items()}
    opened = Engine(model, tokenizer, weights=stored_as, **asked)
    if reason is not None:
        opened.explain("weights", reason)
    for name, size in sizes.items():
        opened.explain(name, size.reason)
    return Opened(opened, tokenizer, place, step, job.tokenizer, dtype_name, weights)


def renew(opened: Opened) -> tuple[int, bool]:
    """Loads the newest good save of the stage into the engine -> its step, and whether nobody knows yet what 8 bits
    would cost it although that decides; waits until no sample is half done.

    How matrices are stored is settled for this save: what 8 bits cost an earlier one says nothing about it.
    Raises UserError and Damaged as open_run(), RuntimeError where the save is of another model.
    """
    place, engine = opened.place, opened.engine
    config, weights, save = load_weights(place.folder)
    if not is_settled_here(opened):
        engine.update_weights(weights)
        return save.step, False
    stored_as, reason = weights_for(place, save.step, "auto", config, device=torch.device("cpu"), dtype=opened.dtype)
    engine.update_weights(weights, stored_as=stored_as)
    if reason is not None:
        engine.explain("weights", reason)
    return save.step, reason is None


def is_settled_here(opened: Opened) -> bool:
    """Whether the bits of the engine's matrices were left to us, and our kernels give the choice."""
    return opened.weights == "auto" and opened.engine.settings.get("kernels", ("", ""))[0] == "native"


def has_eight_bits(opened: Opened) -> bool:
    """Whether 8 bits were chosen for the engine's matrices by what was measured of them."""
    return is_settled_here(opened) and opened.engine.settings["weights"][0] == "int8"


def measure_eight_bits(place: Place) -> None:
    """Measures what 8 bits cost the newest save, in a worker of its own, and keeps it beside the save.

    Raises UserError where the run has no validation text, or the measurement did not end well.
    """
    config = evaluation_config(place, tasks=("bpb",), weights="int8")
    with jobs.trial_folder(home() / "trials") as folder:
        write_json(folder / "config.json", config)
        outcome = jobs.start(folder, read_choices(place.folder).environment).wait()
    if outcome.outcome != "done":
        raise UserError(f"the measurement of 8-bit weights ended as {outcome.outcome}: {outcome.message}")


def weights_for(
    place: Place, step: int, asked: Weights, config: ModelConfig, *, device: torch.device, dtype: str
) -> tuple[Weights, str | None]:
    """How to store the matrices of one save, and the reason where it was decided here."""
    checkpoint = weights_hash(step_folder(place.folder, step))
    loss = known_loss(place.folder, checkpoint=checkpoint, dtype=dtype)
    return settle_weights(asked, loss, config, device=device, dtype=DTYPES[dtype])


def _facts() -> Facts:
    """What is known of this machine; nothing is measured where only the device matters."""
    facts = known_facts()
    if facts.device is not None:
        return facts
    kinds = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    return replace(facts, device=next(kind for kind, is_there in kinds.items() if is_there))
