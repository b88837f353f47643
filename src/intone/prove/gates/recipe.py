"""The gate on the recipe: do two job folders ask for the same mathematics, whatever way it is computed?"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from intone.config import RolloutConfig, TrainJob
from intone.data.loader import Batch, Rows
from intone.data.questions import Questions
from intone.data.shards import TokenSet
from intone.data.tokenizer import Tokenizer
from intone.model.checkpoint import WEIGHTS, list_checkpoints
from intone.model.cost import num_parameters
from intone.paths import file_sha256, read_json
from intone.prove.gates.result import Gate, GateResult, NotJudged, Threshold, not_judged

NAME = "recipe"
FIRST_STEPS = 3  # whose rows are compared: enough to see order, packing and masks; the rest follows from the settings
COST_S = 0.1
THRESHOLD = Threshold(
    f"tokens per optimizer step, parameters, data, the rows of the first {FIRST_STEPS} steps, schedule, optimizer and "
    "seed are equal", "rule: micro-batch and kernels are free, the recipe is not (case study: batch 4 -> 93)",
)  # fmt: skip

# fields that follow from others: a declared cause that differs explains them
ROW_CAUSES = ("rows_per_step", "context", "tokenizer", "data", "data_weights", "learn_all", "seed")
EFFECTS = {
    "tokens_per_step": ("rows_per_step", "context"),
    "parameters": ("model",),
    **dict.fromkeys(("supervised_tokens", "rows", "repeated_rows"), ROW_CAUSES),
    "questions": (*ROW_CAUSES, "rollouts"),
}

RowsOf = Callable[[TrainJob], Batch]


@dataclass(frozen=True)
class Recipe:
    """Everything that determines which function is trained on what, by name, causes before their effects."""

    fields: Mapping[str, Any]


def read_recipe(folder: Path, *, rows_of: RowsOf | None = None) -> Recipe:
    """The recipe of a training job folder, from config.json and the data and saves that it names.

    rows_of: the rows of the first steps; by default those that this code's Rows gives. Paths and whatever only says
    how often to save or what to print are no part of it. Raises UserError for a folder that is no training job,
    NotJudged where the save that it starts from is not there.
    """
    job = TrainJob.from_json(read_json(folder / "config.json"))
    fields = {
        "tokens_per_step": job.rows_per_step * job.context,
        "rows_per_step": job.rows_per_step,
        "context": job.context,
        "parameters": num_parameters(job.model)["total"],
        **{f"model.{name}": value for name, value in job.model.as_json().items()},
        "tokenizer": job.tokenizer_hash,
        "data": [content_of(Path(part)) for part in job.data],
        "data_weights": None if job.weights is None else list(job.weights),
        "learn_all": job.learn_all,
        "steps": job.steps,
        **{f"schedule.{name}": value for name, value in dataclasses.asdict(job.schedule).items()},
        **{f"optimizer.{name}": value for name, value in dataclasses.asdict(job.optim).items()},
        "seed": job.seed,
        "first_weights": None if job.init_from is None else weights_of(Path(job.init_from)),
        "keep_optimizer": job.keep_optimizer,
        "validation": None if job.val is None else content_of(Path(job.val)),
        "validation_tokens": job.eval_tokens,
    }
    if job.rollouts is not None:
        return Recipe(fields | asked_fields(job, job.rollouts))
    batch = (rows_of or first_rows)(job)
    return Recipe(fields | {
        "supervised_tokens": int((batch.targets >= 0).sum()),
        "rows": rows_hash(batch),
        "repeated_rows": Rows.duplicate_rows(batch),
    })  # fmt: skip


def asked_fields(job: TrainJob, config: RolloutConfig) -> dict[str, Any]:
    """What is asked, and how answers are drawn, of a stage that writes its rows itself."""
    tokenizer = Tokenizer.load(Path(job.tokenizer))
    questions = Questions(dataclasses.replace(config, num_items=1), job.seed, tokenizer, job.context)
    digest = hashlib.sha256()
    for number in range(FIRST_STEPS * config.prompts):
        question = questions.at(number)
        digest.update(json.dumps([questions.prompt(question), question.answer, question.rule]).encode())
    settings = {f"rollouts.{name}": value for name, value in dataclasses.asdict(config).items()}
    for name in ("files", "val_files"):
        settings[f"rollouts.{name}"] = [file_sha256(Path(path))[:16] for path in getattr(config, name)]
    return settings | {"questions": digest.hexdigest()[:16]}


def first_rows(job: TrainJob) -> Batch:
    """The rows of the job's first steps."""
    sets = [TokenSet.open(Path(part)) for part in job.data]
    weights = None if job.weights is None else list(job.weights)
    rows = Rows(sets, job.context, job.seed, weights=weights, learn_all=job.learn_all, one_text=job.one_text)
    return rows.rows(0, FIRST_STEPS * job.rows_per_step)


def rows_hash(batch: Batch) -> str:
    """16 hex digits over ids, targets and segments, in their order."""
    digest = hashlib.sha256()
    for array in (batch.ids, batch.targets, batch.documents):
        digest.update(repr((array.shape, array.dtype.str)).encode() + array.tobytes())
    return digest.hexdigest()[:16]


def content_of(folder: Path) -> str:
    """16 hex digits of what a token set holds, wherever it lies and whenever it was made."""
    manifest = TokenSet.open(folder).manifest
    files = [entry["files"] for entry in manifest["shards"]]
    sums = [{name: facts["sha256"] for name, facts in entry.items()} for entry in files]
    return hashlib.sha256(json.dumps([manifest["kind"], sums], sort_keys=True).encode()).hexdigest()[:16]


def weights_of(job_folder: Path) -> str:
    """16 hex digits of the weights in a job's newest save, as its manifest says. Raises NotJudged where it has none."""
    saves = list_checkpoints(job_folder)
    if not saves:
        raise NotJudged(f"{job_folder} has no save to start from", "train that stage first, or restore its folder")
    return str(read_json(saves[-1] / "manifest.json")["files"][WEIGHTS]["sha256"])[:16]


def judge(baseline: Recipe, candidate: Recipe, *, declared: Collection[str] = ()) -> GateResult:
    """Passed where all fields are equal but those that the change declares; names the first that differs.

    declared: names of fields, or their first parts ("schedule"); a change that declares any is a change of the
    recipe and needs the statistical parity of losses.
    """
    a, b = baseline.fields, candidate.fields
    names = [*a, *(name for name in b if name not in a)]
    unequal = [name for name in names if a.get(name) != b.get(name) or (name in a) != (name in b)]
    changed = {part for name in unequal for part in (name, name.split(".")[0]) if part in declared}
    causes = {name: (name, name.split(".")[0], *EFFECTS.get(name, ())) for name in unequal}
    allowed = [name for name in unequal if changed.intersection(causes[name])]
    found = [name for name in unequal if name not in allowed]
    evidence = {
        "fields": len(names),
        "differences": {name: [a.get(name), b.get(name)] for name in unequal},
        "declared": allowed,
    }
    if found:
        first = found[0]
        others = f" ({len(found) - 1} more: {', '.join(found[1:6])})" if len(found) > 1 else ""
        return GateResult(
            NAME, False, f"{first} is {shown(a.get(first))} in the baseline and {shown(b.get(first))} in the candidate"
            + others, THRESHOLD, evidence,
            fix=f"give both sides the same {first}, or declare the change as one of the recipe: "
            "it then has to show equal losses over several seeds",
        )  # fmt: skip
    if allowed:
        reason = f"differs only in what the change declares: {', '.join(allowed)}"
        return GateResult(NAME, True, reason, THRESHOLD, evidence)
    if not names:
        return not_judged(NAME, "no field was compared", "read both recipes with read_recipe")
    rows = f"{a.get('rows_per_step', 0) * FIRST_STEPS:,} rows"
    if "questions" in a:
        rows = f"the questions of {FIRST_STEPS} steps"
    return GateResult(NAME, True, f"{len(names)} fields are equal, {rows} among them", THRESHOLD, evidence)


def gate(baseline: Path, candidate: Path, *, declared: Collection[str] = ()) -> Gate[tuple[Recipe, Recipe]]:
    """The gate on two job folders."""
    return Gate(
        NAME,
        COST_S,
        lambda: (read_recipe(baseline), read_recipe(candidate)),
        lambda recipes: judge(*recipes, declared=declared),
    )


def shown(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
