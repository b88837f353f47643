"""`intone import`: recognises a foreign checkpoint and makes a complete run folder of it, or leaves nothing behind."""

import contextlib
import os
import shutil
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from intone.config import OptimConfig, ScheduleConfig, TrainJob
from intone.data.tokenizer import Tokenizer
from intone.errors import UserError
from intone.exchange.files import read_json_object
from intone.exchange.nanochat import STAGE_FOLDERS, find_save, has_saves, read_nanochat
from intone.exchange.plain_folder import is_plain, read_plain
from intone.exchange.transformers_folder import ARCHITECTURE, read_transformers
from intone.exchange.vocabulary import check_vocabulary, find_tokenizer, nanochat_home, read_tokenizer
from intone.exchange.weights import PADDED_TO, ForeignModel
from intone.fields import shown
from intone.hardware import Facts, load_facts
from intone.log import human_count, say, three_digits
from intone.model.checkpoint import save_checkpoint
from intone.paths import disk_errors, runs_folder, sync_folder, write_json
from intone.records import Answer, Choice, Choices, Outcome, Segment, utc_now, write_choices, write_outcome
from intone.resolving import Resolved, identity
from intone.runs import Run, check_name, free_names, save_run
from intone.settings import ImportSettings

TOKENIZER = "tokenizer"  # folder of the tokenizer inside an imported run
SEARCH_DEPTH = 3  # folders below PATH in which checkpoints are looked for, to name them: base, kind, tag


@dataclass(frozen=True)
class Found:
    """A foreign model with the tokenizer that belongs to it."""

    model: ForeignModel
    tokenizer: Tokenizer
    tokenizer_path: Path


def import_verb(settings: ImportSettings, _origins: Mapping[str, Resolved]) -> Answer:
    """`intone import PATH` -> a finished run with one stage. Raises UserError for what cannot be imported."""
    if settings.name is not None:
        check_name(settings.name)
        if (runs_folder() / settings.name).exists():
            raise _taken(settings.name)
    path = Path(settings.path).expanduser().absolute()
    try:
        found = read_foreign(path, settings)
    except PermissionError as error:
        raise UserError(
            f"cannot read {error.filename}: {error.strerror}", value=str(error.filename), fix="make it readable for you"
        ) from None
    dtype = choose_dtype(found.model, load_facts())
    with disk_errors(runs_folder()), building_folder() as folder:
        run = write_run(folder, found, dtype, settings)
    return Answer(dict(run.result or {}), import_text(run, found, dtype), run=run.name, path=str(run.folder))


# --- what PATH is ---------------------------------------------------------------------------------------------------


def read_foreign(path: Path, settings: ImportSettings) -> Found:
    """Whatever PATH is, read and checked. Raises UserError where it is nothing we know."""
    if not path.exists():
        is_hub_name = settings.path.count("/") == 1 and not settings.path.startswith((".", "/", "~"))
        download = f"; from the Hugging Face hub: hf download {settings.path} --local-dir {path.name}"
        fix = f"check the spelling{download if is_hub_name else ''}"
        raise UserError(f"{path} does not exist", value=settings.path, fix=fix)
    if path.is_file() or has_saves(path):
        return from_nanochat(path, settings)
    if settings.step is not None:
        raise UserError(f"--step is for nanochat's folders, {path} is none", value=settings.step, fix="leave it out")
    if (path / "run.json").exists():
        raise UserError(f"{path} is a run of intone", value=str(path), fix=f"intone chat --from {path}")
    if (path / "config.json").is_file():
        return from_config(path, read_json_object(path / "config.json"), settings)
    raise _nothing_known(path)


def from_nanochat(path: Path, settings: ImportSettings) -> Found:
    """A nanochat save with its tokenizer: in its folder, in nanochat's place beside it, or in nanochat's home."""
    save = find_save(path, settings.step)
    folder = save.model.parent
    places = [folder, folder / "tokenizer"]
    if folder.parent.name in STAGE_FOLDERS:
        places.append(folder.parent.parent / "tokenizer")
    places.append(nanochat_home() / "tokenizer")
    tokenizer_path = find_tokenizer(settings.tokenizer, places)
    tokenizer = read_tokenizer(tokenizer_path)
    model = read_nanochat(save)
    check_vocabulary(tokenizer, tokenizer_path, model.config.vocab_size, folder)
    return Found(model, tokenizer, tokenizer_path)


def from_config(folder: Path, settings: Mapping[str, Any], asked: ImportSettings) -> Found:
    """A folder with a config.json: of intone, or of transformers' NanoChat. Raises UserError for others."""
    kind = settings.get("model_type")
    if kind != "nanochat" and not is_plain(settings):
        architectures = settings.get("architectures")
        what = architectures[0] if isinstance(architectures, list) and architectures else kind
        raise UserError(
            f"{folder} holds the architecture {str(what)[:80]!r}",
            value=str(what)[:80],
            fix=f"intone imports {ARCHITECTURE}, checkpoints of nanochat and its own exports",
        )
    tokenizer_path = find_tokenizer(asked.tokenizer, [folder])
    tokenizer = read_tokenizer(tokenizer_path)

    def vocab_of(rows: int) -> int:
        is_padded = tokenizer.vocab_size < rows <= -(-tokenizer.vocab_size // PADDED_TO) * PADDED_TO
        if not is_padded:
            check_vocabulary(tokenizer, tokenizer_path, rows, folder)
        return tokenizer.vocab_size

    if is_plain(settings):
        model = read_plain(folder, settings)
        check_vocabulary(tokenizer, tokenizer_path, model.config.vocab_size, folder)
    else:
        model = read_transformers(folder, settings, vocab_of)
    return Found(model, tokenizer, tokenizer_path)


def _nothing_known(path: Path) -> UserError:
    """The error for a folder without a checkpoint; names those that lie below it."""
    below = [
        folder
        for depth in range(1, SEARCH_DEPTH + 1)
        for folder in sorted(path.glob("/".join("*" * depth)))
        if folder.is_dir() and (has_saves(folder) or (folder / "config.json").is_file())
    ]
    if below:
        names = ", ".join(str(folder) for folder in below[:8])
        return UserError(f"{path} holds checkpoints in its folders", value=str(path), fix=f"name one of: {names}")
    return UserError(
        f"{path} holds no checkpoint that intone knows",
        value=str(path),
        fix="name a folder with nanochat's model_*.pt and meta_*.json, or one that transformers' save_pretrained wrote",
    )


def choose_dtype(model: ForeignModel, facts: Facts) -> Choice:
    """What the model computes in here: bf16 where it was trained in it and this machine is faster with it."""
    trained = f"trained in {model.trained_in} ({model.trained_reason})"
    narrow, wide = facts.bf16_flops_per_s, facts.fp32_flops_per_s
    if model.trained_in != "bf16":
        return Choice("fp32", trained, "from")
    if narrow is None or wide is None:
        return Choice("fp32", f"{trained}, but how fast bf16 is here is unknown", "default")
    measured = {"bf16_flops_per_s": narrow, "fp32_flops_per_s": wide}
    ratio = f"products in bf16 are {three_digits(narrow / wide)} times as fast as in fp32 here"
    return Choice("bf16" if narrow > wide else "fp32", f"{trained}, {ratio}", "measured", measured=measured)


# --- the run --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def building_folder() -> Iterator[Path]:
    """A folder among the runs under a name that no run has; gone afterwards unless it was renamed.

    What earlier imports left when they were killed is deleted.
    """
    runs_folder().mkdir(parents=True, exist_ok=True)
    for left in runs_folder().glob(".import-*.tmp"):
        if not _is_alive(left.name.removeprefix(".import-").removesuffix(".tmp")):
            shutil.rmtree(left, ignore_errors=True)
    folder = runs_folder() / f".import-{os.getpid()}.tmp"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _is_alive(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ValueError, ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def write_run(building: Path, found: Found, dtype: Choice, asked: ImportSettings) -> Run:
    """Writes the whole run into the building folder and renames it to its name. Raises UserError, DiskFull."""
    model = found.model
    stage_folder = building / model.stage
    say(f"importing {human_count(_num_parameters(model))} parameters from {model.path}")
    found.tokenizer.save(building / TOKENIZER)
    save_checkpoint(
        stage_folder, model.step, model=model.config, weights=model.weights, optimizer={},
        state={"step": model.step}, tokenizer_hash=found.tokenizer.hash,
    )  # fmt: skip
    segment = Segment(
        0, device_batch=1, compiled=False, dtype=dtype.value, attention="sdpa", reason=f"imported; {dtype.reason}"
    )
    write_choices(stage_folder, Choices({**model.reasons, "dtype": dtype}, (segment,)))
    write_outcome(stage_folder, Outcome("done", model.step, f"imported from {model.path}"))
    for name in [asked.name] if asked.name is not None else free_names(model.config.depth):
        final = runs_folder() / name
        write_json(stage_folder / "config.json", _job(found, final).as_json())
        run = Run(
            final, "import", (model.stage,), "done", utc_now(), _settings(found, asked), _result(found, final, dtype)
        )
        save_run(replace(run, folder=building))
        try:
            final.mkdir()
        except FileExistsError:
            continue  # taken since it was looked up
        os.replace(building, final)
        sync_folder(final.parent)
        return run
    raise _taken(str(asked.name))


def _taken(name: str) -> UserError:
    return UserError(f"run {name!r} exists already", value=name, fix="choose another --name")


def _job(found: Found, final: Path) -> TrainJob:
    """config.json: what is known of the training, so that the stage can be talked to and trained further."""
    model = found.model
    return TrainJob(
        stage=model.stage, model=model.config, tokenizer=str(final / TOKENIZER), tokenizer_hash=found.tokenizer.hash,
        data=(), val=None, context=model.config.context, steps=model.step, rows_per_step=1, optim=OptimConfig(),
        schedule=ScheduleConfig(), seed=0,
    )  # fmt: skip


def _settings(found: Found, asked: ImportSettings) -> dict[str, Any]:
    """What was asked, and the settings of the model that `--from` hands on."""
    config = found.model.config
    shape = {"depth": config.depth, "context": config.context, "vocab_size": config.vocab_size}
    return {**identity(asked), "path": str(found.model.path), **shape, "preset": found.model.preset}


def _result(found: Found, final: Path, dtype: Choice) -> dict[str, Any]:
    """The result object of `import --json`."""
    model = found.model
    reasons = {**model.reasons, "dtype": dtype}
    return {
        "kind": model.kind,
        "source": str(model.path),
        "preset": model.preset,
        "stage": model.stage,
        "stage_reason": model.stage_reason,
        "step": model.step,
        "num_parameters": _num_parameters(model),
        "tokenizer": {
            "source": str(found.tokenizer_path),
            "folder": str(final / TOKENIZER),
            "vocab_size": found.tokenizer.vocab_size,
            "hash": found.tokenizer.hash,
        },
        "model": model.config.as_json(),
        "reasons": {name: {"value": choice.value, "reason": choice.reason} for name, choice in reasons.items()},
        "notes": list(model.notes),
        "chat": f"intone chat --from {final.name}",
    }


def _num_parameters(model: ForeignModel) -> int:
    return sum(value.numel() for value in model.weights.values())


def import_text(run: Run, found: Found, dtype: Choice) -> str:
    """What a person reads: what it was taken for and why, and how to go on."""
    model, config = found.model, found.model.config
    by_reason: dict[str, list[str]] = {}
    for name, choice in model.reasons.items():
        by_reason.setdefault(choice.reason, []).append(f"{name} {shown(choice.value)}")
    lines = [
        f"{model.kind}, step {model.step:,}" if model.step else model.kind,
        f"{human_count(_num_parameters(model))} parameters: depth {config.depth}, width {config.width:,}, "
        f"{config.num_heads} heads of {config.head_width}, context {config.context:,}",
        *(f"{', '.join(values)}: {reason}" for reason, values in by_reason.items()),
        f"tokenizer {found.tokenizer_path}: {found.tokenizer.vocab_size:,} entries",
        f"stage {model.stage}: {model.stage_reason}",
        f"dtype {dtype.value}: {dtype.reason}",
        *model.notes,
        f"run {run.name} in {run.folder}",
        f"next: intone chat --from {run.name}",
    ]
    options: Any = {"width": 100, "subsequent_indent": "  ", "break_long_words": False, "break_on_hyphens": False}
    return "\n".join(line for text in lines for line in textwrap.wrap(text, **options))
