"""nanochat's checkpoint folders: which file is which, and which function the weights of which time compute.

A checkpoint says the shape of its model. The rest of the function (rotary base, windows, softcap, ...) stood in
nanochat's code and changed over time; which code wrote a checkpoint shows in the names and shapes of its weights.
The dates below are those of the commits to nanochat/gpt.py in its history (docs/decisions/005).
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from intone.config import ModelConfig, Preset
from intone.errors import UserError, unknown_name
from intone.exchange.files import bad_setting, read_json_object, read_pt, whole_number
from intone.exchange.weights import ForeignModel, adopted, trained_in, vocab_multiple
from intone.records import Choice

MODEL_FILE = re.compile(r"model_(\d+)\.pt")
STAGE_FOLDERS = {
    "base_checkpoints": "base", "mid_checkpoints": "mid", "chatsft_checkpoints": "sft", "chatrl_checkpoints": "rl",
}  # fmt: skip
SHAPE_KEYS = ("sequence_len", "vocab_size", "n_layer", "n_head", "n_kv_head", "n_embd")
FLOAT32_EPSILON = 1.1920929e-07  # what torch's rms_norm adds where no eps is given, whatever the dtype
TILE = 128  # short windows are multiples of it since 2026-03-09

# our names -> nanochat's
OUTER_NAMES = {
    "embedding": "transformer.wte", "head": "lm_head", "value_embeddings": "value_embeds",
    "residual_scale": "resid_lambdas", "embedding_scale": "x0_lambdas",
    "smear_gate": "smear_gate", "smear_scale": "smear_lambda", "backout_scale": "backout_lambda",
}  # fmt: skip
BLOCK_NAMES = {
    "attention.q": "attn.c_q", "attention.k": "attn.c_k", "attention.v": "attn.c_v", "attention.out": "attn.c_proj",
    "attention.value_gate": "attn.ve_gate", "mlp.up": "mlp.c_fc", "mlp.down": "mlp.c_proj",
}  # fmt: skip


@dataclass(frozen=True)
class Era:
    """A time in which nanochat's code computed one function of a checkpoint's weights."""

    dates: str
    preset: Preset  # the nearer of our two
    evidence: str  # what in the weights tells it from the others
    settings: Callable[[int], dict[str, Any]]  # context -> the settings that stood in code


def _tiles(tokens: int) -> int:
    """Tokens rounded up to whole tiles."""
    return -(-tokens // TILE) * TILE


PLAIN = {"rope_base": 10_000.0, "rope_bf16": True, "qk_scale": 1.0, "softcap": 15.0}
BARE = {"value_embeddings": False, "smear": False, "backout": False}
YEAR_2025 = Era(
    "2025-10-13 to 2026-01-10",
    "classic",
    "it has neither residual scalars nor value embeddings",
    lambda _: {**PLAIN, **BARE, "residual_scalars": False},
)
JANUARY_2026 = Era(
    "2026-01-11 to 2026-01-16",
    "modern",
    "it has residual scalars and no value embeddings",
    lambda context: {**PLAIN, **BARE, "residual_scalars": True, "short_window": context // 2},
)
MARCH_2026 = Era(
    "2026-03-09 to 2026-03-13",
    "modern",
    "it has value gates of 12 channels and no smear",
    lambda context: {
        "rope_base": 100_000.0, "rope_bf16": False, "qk_scale": 1.15, "softcap": 15.0, "value_embeddings": True,
        "residual_scalars": True, "smear": False, "backout": False, "short_window": _tiles(-(-context // 3)),
    },
)  # fmt: skip
MODERN = Era(
    "2026-03-14 to 2026-07-03 (92d63d4)",
    "modern",
    "it has smear and backout",
    lambda context: {
        "rope_base": 100_000.0, "rope_bf16": False, "qk_scale": 1.2, "softcap": 15.0, "value_embeddings": True,
        "residual_scalars": True, "smear": True, "backout": True, "short_window": _tiles(-(-context // 4)),
    },
)  # fmt: skip


@dataclass(frozen=True)
class Save:
    """The files of one save in a checkpoint folder."""

    model: Path
    meta: Path
    step: int


def has_saves(folder: Path) -> bool:
    return folder.is_dir() and any(MODEL_FILE.fullmatch(path.name) for path in folder.iterdir())


def find_save(path: Path, step: int | None) -> Save:
    """The save that a folder, or one of its model_*.pt, means: of --step, else the newest with its meta_*.json.

    Raises UserError where there is no such step or no meta file.
    """
    folder = path if path.is_dir() else path.parent
    found = {int(match[1]): file for file in folder.iterdir() if (match := MODEL_FILE.fullmatch(file.name))}
    steps = [number for number in sorted(found) if _meta(found[number]).is_file()]
    if path.is_file():
        named = MODEL_FILE.fullmatch(path.name)
        if named is None:
            raise UserError(
                f"{path.name} is not called model_STEP.pt", value=str(path), fix="name the folder that holds it"
            )
        if step not in (None, int(named[1])):
            raise UserError(f"{path.name} is not of step {step}", value=step, fix="leave out --step")
        step = int(named[1])
    if step is None and steps:
        step = steps[-1]
    if step in steps:
        return Save(found[step], _meta(found[step]), step)
    have = ", ".join(f"{number:,}" for number in steps) or "none"
    if step is None or step in found:
        name = "every model_*.pt" if step is None else found[step].name
        raise UserError(
            f"{name} in {folder} lacks its meta_*.json, which says the shape of the model",
            value=str(folder),
            fix=f"copy it from where the checkpoint was written; whole steps here: {have}",
        )
    raise UserError(f"{folder} has no step {step:,}", value=step, fix=f"steps that are there: {have}")


def _meta(model: Path) -> Path:
    return model.with_name(model.name.replace("model_", "meta_").replace(".pt", ".json"))


def read_nanochat(save: Save) -> ForeignModel:
    """The model of a save, as nanochat's own code of that time would compute it.

    Raises UserError or Damaged for files that are not one whole checkpoint of a known time.
    """
    meta = read_json_object(save.meta)
    shape, pattern = read_shape(meta, save.meta)
    found = read_pt(save.model)
    era = era_of(found, save.model)
    check_depth(found, shape["n_layer"], save)
    if era is YEAR_2025 and pattern is not None and pattern != "L":
        raise bad_setting(save.meta, f"{era.evidence} in {save.model.name}, and yet windows", pattern)
    code = {**era.settings(shape["sequence_len"]), "norm_eps": FLOAT32_EPSILON, "mlp_ratio": 4}
    config = ModelConfig(
        vocab_size=shape["vocab_size"],
        context=shape["sequence_len"],
        depth=shape["n_layer"],
        width=shape["n_embd"],
        num_heads=shape["n_head"],
        num_kv_heads=shape["n_kv_head"],
        head_width=shape["n_embd"] // shape["n_head"],
        vocab_multiple=vocab_multiple(_num_rows(found), shape["vocab_size"]),
        window_pattern=pattern or "L",
        **code,
    )
    weights = adopted(found, config, their_name, save.model)
    stage, stage_reason = stage_of(save.model, meta)
    return ForeignModel(
        kind=f"nanochat checkpoint of {era.dates}",
        path=save.model,
        config=config,
        preset=era.preset,
        weights=weights,
        **trained_in(found["transformer.wte.weight"]),
        stage=stage,
        stage_reason=stage_reason,
        step=save.step,
        reasons=_reasons(config, era, code, pattern, save.meta),
        notes=("its optimizer state is not taken over: further training starts with a fresh one",),
    )


def read_shape(meta: Mapping[str, Any], path: Path) -> tuple[dict[str, int], str | None]:
    """model_config of a meta file -> (its whole numbers, the window pattern or None). Raises UserError."""
    config = meta.get("model_config")
    if not isinstance(config, dict):
        raise UserError(
            f"{path} has no model_config", value=str(path), fix="name a folder that nanochat's training wrote"
        )
    for key in config:
        if key not in (*SHAPE_KEYS, "window_pattern"):
            error = unknown_name("model setting", key, (*SHAPE_KEYS, "window_pattern"))
            raise UserError(f"{path}: {error.message}", value=key, fix="this nanochat is newer than this intone")
    for key in SHAPE_KEYS:
        if key not in config:
            raise UserError(f"{path} lacks model_config.{key}", value=key, fix="copy it again from its source")
    shape = {key: whole_number(config[key], key, path) for key in SHAPE_KEYS}
    if shape["n_embd"] % shape["n_head"]:
        raise bad_setting(path, f"n_embd {shape['n_embd']} is no multiple of n_head", shape["n_head"])
    pattern = config.get("window_pattern")
    if pattern is not None and not isinstance(pattern, str):
        raise bad_setting(path, "window_pattern is not a text of S and L but", pattern)
    return shape, None if pattern is None else pattern.upper()


def era_of(found: Mapping[str, Tensor], path: Path) -> Era:
    """The time whose code wrote these weights, by the parts that are there. Raises UserError where none known did.

    A part of that time's model that is missing is found when the names are compared.
    """
    has_smear = any(name in found for name in ("smear_gate.weight", "smear_lambda", "backout_lambda"))
    has_scalars = any(name in found for name in ("resid_lambdas", "x0_lambdas"))
    gates = {value.shape[-1] for name, value in found.items() if name.endswith(".ve_gate.weight") and value.dim() == 2}
    if has_smear:
        return MODERN
    if gates == {12}:
        return MARCH_2026
    if gates == {32}:
        raise UserError(
            f"{path} was written between 2026-01-16 and 2026-03-08 (value gates of 32 channels); its code capped "
            "logits at 15 or at 20, and the file does not say which",
            value=str(path),
            fix="evaluate it with the nanochat that wrote it, or train it anew",
        )
    if gates or any(name.startswith("value_embeds.") for name in found):
        raise UserError(
            f"{path} has value embeddings with gates of {', '.join(map(str, sorted(gates))) or 'no'} channels: no "
            "known nanochat wrote this",
            value=str(path),
            fix="intone reads checkpoints of nanochat's master branch up to 92d63d4",
        )
    return JANUARY_2026 if has_scalars else YEAR_2025


def check_depth(found: Mapping[str, Tensor], depth: int, save: Save) -> None:
    """Raises UserError where the weights have another number of blocks than the settings say."""
    numbers = {name.split(".")[2] for name in found if name.startswith("transformer.h.")}
    if numbers != {str(number) for number in range(len(numbers))} or len(numbers) != depth:
        raise UserError(
            f"{save.model} has {len(numbers)} blocks, {save.meta.name} says n_layer {depth}",
            value=depth,
            fix="the two files are not of one save; copy both again",
        )


def _num_rows(found: Mapping[str, Tensor]) -> int | None:
    table = found.get("transformer.wte.weight")
    return None if table is None or table.dim() != 2 else table.shape[0]


def their_name(name: str) -> str:
    """nanochat's name of one of our parameters."""
    outer, _, rest = name.partition(".")
    if outer == "blocks":
        number, _, inner = rest.partition(".")
        part, _, kind = inner.rpartition(".")
        return f"transformer.h.{number}.{BLOCK_NAMES[part]}.{kind}"
    return f"{OUTER_NAMES[outer]}.{rest}" if rest else OUTER_NAMES[outer]


def stage_of(model: Path, meta: Mapping[str, Any]) -> tuple[str, str]:
    """(stage, why): by nanochat's name of the folder, else by what its scripts put into the meta file."""
    for folder in model.absolute().parents[:2]:
        if folder.name in STAGE_FOLDERS:
            return STAGE_FOLDERS[folder.name], f"it lies in {folder.name}"
    if "loop_state" in meta or "dataloader_state_dict" in meta:
        return "base", "its meta file has the loop state of base training"
    return "sft", "its meta file has no loop state, so it is no base model"


def _reasons(
    config: ModelConfig, era: Era, code: Mapping[str, Any], pattern: str | None, meta: Path
) -> dict[str, Choice]:
    """Every setting of the function that the files do not say, with its evidence."""
    why = f"not in the files, but in nanochat's code of {era.dates}, which wrote them: {era.evidence}"
    reasons = {name: Choice(getattr(config, name), why, "preset") for name in code}
    if pattern is None:
        reasons["window_pattern"] = Choice("L", f"{meta.name} names none: every block saw all tokens", "preset")
    else:
        reasons["window_pattern"] = Choice(pattern, f"{meta.name} says so", "from")
    return reasons
