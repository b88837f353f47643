"""What an evaluation of a run's stage is asked with: config.json of the job, from what the run says of itself"""

from typing import Any

from intone.config import TrainJob
from intone.errors import UserError
from intone.paths import read_json
from intone.records import read_choices
from intone.runs import Place


def evaluation_config(
    place: Place, *, tasks: tuple[str, ...], weights: str, val: str | None = None, num_items: int | None = None
) -> dict[str, Any]:
    """Everything in the stage's own dtype. val: folder of a token set; None: the run's own validation text.

    Raises UserError where bits per byte are asked for and there is no text.
    """
    job = text_job = TrainJob.from_json(read_json(place.folder / "config.json"))
    segment = read_choices(place.folder).segments[-1]
    if place.run is not None and (place.run.stage_folder("base") / "config.json").exists():
        text_job = TrainJob.from_json(read_json(place.run.stage_folder("base") / "config.json"))
    val = text_job.val if val is None else val
    if "bpb" in tasks and val is None:
        raise UserError("this run has no validation text", value=str(place.folder), fix="name one: --val PATH")
    return {
        "format": 1,
        "job": "evaluate",
        "from": str(place.folder),
        "tokenizer": job.tokenizer,
        "dtype": segment.dtype,
        "threads": segment.threads,
        "tasks": list(tasks),
        "val": val,
        "val_tokens": text_job.eval_tokens,
        "context": text_job.context,
        "num_items": num_items,
        "seed": 0,
        "weights": weights,
    }
