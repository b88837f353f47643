"""`intone export`: weights, settings and tokenizer of a run as one folder, for transformers or as plain safetensors."""

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from intone.config import ModelConfig, TrainJob
from intone.data.tokenizer import Tokenizer
from intone.errors import Damaged, UserError
from intone.exchange import plain_folder, transformers_folder
from intone.log import human_bytes, human_count, say
from intone.model.checkpoint import load_weights
from intone.paths import disk_errors, read_json, sync_folder, write_json
from intone.records import Answer, read_choices
from intone.resolving import Resolved
from intone.runs import Place, find_stage, folder_bytes
from intone.settings import ExportSettings

# every name an export can write: a folder with other files in it is not ours to replace
OURS = frozenset(
    ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
)


@dataclass(frozen=True)
class Source:
    """What is exported."""

    place: Place
    config: ModelConfig
    weights: dict[str, Tensor]
    step: int
    tokenizer: Tokenizer


def export_verb(settings: ExportSettings, _origins: Mapping[str, Resolved]) -> Answer:
    """`intone export RUN --to DIR` -> what was written. Raises UserError where the format cannot hold the model."""
    target = Path(settings.to).expanduser().absolute()
    check_target(target, force=settings.force)
    source = read_source(settings.run)
    form = choose_format(settings.format, source)
    say(f"writing {human_count(sum(w.numel() for w in source.weights.values()))} parameters to {target}")
    with disk_errors(target), replaced_folder(target) as folder:
        notes = (write_transformers if form == "transformers" else write_plain)(folder, source)
    run = source.place.run.name if source.place.run else None
    size = folder_bytes(target)
    result = {
        "format": form, "to": str(target), "stage": source.place.stage, "step": source.step,
        "size_bytes": size, "notes": notes,
    }  # fmt: skip
    head = f"{source.place.folder} as {form}: {human_bytes(size)} in {target}"
    return Answer(result, "\n".join([head, *notes]), run=run, path=str(target))


def read_source(reference: str) -> Source:
    """The newest good save of a stage with its tokenizer. Raises UserError or Damaged."""
    place = find_stage(reference)
    config, weights, checkpoint = load_weights(place.folder)
    job = TrainJob.from_json(read_json(place.folder / "config.json"))
    tokenizer = Tokenizer.load(Path(job.tokenizer))
    if tokenizer.hash != checkpoint.tokenizer_hash:
        raise Damaged(
            f"the tokenizer in {job.tokenizer} is not the one that {place.folder} was trained with",
            value=tokenizer.hash,
            fix="restore that folder, or train again",
        )
    return Source(place, config, weights, checkpoint.step, tokenizer)


def choose_format(asked: str, source: Source) -> str:
    """transformers where it can compute the model, else safetensors. Raises UserError where it cannot and was asked."""
    obstacle = transformers_folder.why_not(source.config)
    if asked == "transformers" and obstacle is not None:
        raise UserError(
            f"transformers has no architecture for this model: {obstacle}",
            value=asked,
            fix="use --format safetensors; models trained with --preset classic export to transformers",
        )
    if asked != "auto":
        return asked
    return "safetensors" if obstacle else "transformers"


def write_transformers(folder: Path, source: Source) -> list[str]:
    """Fills folder with what AutoModelForCausalLM and AutoTokenizer load -> notes for the person."""
    config, tokenizer = source.config, source.tokenizer
    write_json(folder / "config.json", transformers_folder.to_settings(config, tokenizer))
    write_json(folder / "generation_config.json", transformers_folder.token_ids(tokenizer))
    weights = transformers_folder.to_weights(source.weights, config.vocab_size)
    _save(weights, folder / transformers_folder.WEIGHTS)
    tokenizer.save(folder)
    notes = [f"AutoModelForCausalLM and AutoTokenizer load it as transformers' {transformers_folder.ARCHITECTURE}"]
    if config.rope_bf16:
        notes.append(
            "its rotary tables were rounded to bfloat16 in training; transformers rounds them only when it computes in "
            "bfloat16, so in float32 its logits differ from ours in the third decimal"
        )
    return notes


def write_plain(folder: Path, source: Source) -> list[str]:
    """Fills folder with our weights and settings as they are -> notes for the person."""
    dtype = read_choices(source.place.folder).segments[-1].dtype
    settings = plain_folder.to_settings(source.config, stage=source.place.stage, step=source.step, trained_in=dtype)
    write_json(folder / "config.json", settings)
    _save(source.weights, folder / plain_folder.WEIGHTS)
    source.tokenizer.save(folder)
    obstacle = transformers_folder.why_not(source.config)
    notes = ["intone import reads it back, bit for bit"]
    if obstacle:
        notes.append(f"transformers has no architecture for this model ({obstacle}); config.json says its function")
    return notes


def _save(weights: dict[str, Tensor], path: Path) -> None:
    """One safetensors file, on disk when this returns; transformers asks for the note about the format."""
    # scan: ok[S60] into a folder that gets its name when all of it is written
    save_file({name: value.contiguous() for name, value in weights.items()}, path, metadata={"format": "pt"})
    shutil.copymode(path.with_name("config.json"), path)  # safetensors makes files that only their owner reads
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def check_target(target: Path, *, force: bool) -> None:
    """Raises UserError unless the folder is new or empty, or an export that --force may replace."""
    if not target.exists():
        return
    if not target.is_dir():
        raise UserError(f"{target} is a file", value=str(target), fix="name a folder: --to DIR")
    names = sorted(path.name for path in target.iterdir())
    if not names:
        return
    others = [name for name in names if name not in OURS]
    if others:
        raise UserError(
            f"{target} holds other files: {', '.join(others[:5])}",
            value=str(target),
            fix="name another folder: --to DIR; --force replaces nothing but an export",
        )
    if not force:
        raise UserError(
            f"{target} holds an export already", value=str(target), fix="name another folder, or add --force"
        )


@contextlib.contextmanager
def replaced_folder(target: Path) -> Iterator[Path]:
    """A folder to fill that takes the place of target when all went well; else target is as it was."""
    target.parent.mkdir(parents=True, exist_ok=True)
    new, old = (target.with_name(f".{target.name}.{os.getpid()}.{what}") for what in ("new", "old"))
    new.mkdir()
    try:
        yield new
        if target.exists():
            os.replace(target, old)
        try:
            os.replace(new, target)
        except BaseException:
            if old.exists():
                os.replace(old, target)
            raise
        sync_folder(target.parent)
    finally:
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
