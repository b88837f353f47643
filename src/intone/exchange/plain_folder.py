"""Our own weights as plain files: safetensors under our names, and every setting of the function beside them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from intone.config import ModelConfig
from intone.errors import Damaged, UserError
from intone.exchange.files import read_safetensors, whole_number
from intone.exchange.weights import ForeignModel, adopted
from intone.runs import STAGES

FORMAT = 1
PROGRAM = "intone"
WEIGHTS = "model.safetensors"
DTYPES = ("fp32", "bf16", "fp16")


def is_plain(settings: Mapping[str, Any]) -> bool:
    """Whether this config.json was written by to_settings."""
    return settings.get("program") == PROGRAM


def to_settings(config: ModelConfig, *, stage: str, step: int, trained_in: str) -> dict[str, Any]:
    """config.json: the fields of ModelConfig, which say everything that the weights do not."""
    return {
        "format": FORMAT,
        "program": PROGRAM,
        "stage": stage,
        "step": step,
        "trained_in": trained_in,
        "model": config.as_json(),
    }


def read_plain(folder: Path, settings: Mapping[str, Any]) -> ForeignModel:
    """The model in such a folder. Raises UserError or Damaged."""
    path = folder / "config.json"
    if settings.get("format") != FORMAT:
        raise UserError(
            f"{path} has format {settings.get('format')!r}, this version reads {FORMAT}",
            value=settings.get("format"),
            fix="read it with the version of intone that wrote it",
        )
    known = ("format", "program", "stage", "step", "trained_in", "model")
    is_known = set(settings) == set(known) and settings["stage"] in STAGES and settings["trained_in"] in DTYPES
    if not is_known:
        raise Damaged(f"{path} is not as `intone export` writes it", value=str(path), fix="export the run again")
    step = whole_number(settings["step"], "step", path, least=0)
    config = ModelConfig.from_json(settings["model"])
    weights = adopted(read_safetensors(folder / WEIGHTS), config, lambda name: name, folder / WEIGHTS)
    return ForeignModel(
        kind="export of intone, every setting in its config.json",
        path=folder,
        config=config,
        preset="modern" if config.residual_scalars else "classic",
        weights=weights,
        trained_in=settings["trained_in"],
        trained_reason=f"{path.name} says so",
        stage=settings["stage"],
        stage_reason=f"{path.name} says so",
        step=step,
        reasons={},
        notes=("its optimizer state was not exported: further training starts with a fresh one",),
    )
