"""A stage that learns from rewards and is right by chance: a random model whose replies must end in the number 7"""

import json
from dataclasses import replace
from pathlib import Path

from tests.tiny_jobs import SEGMENT, write_job

from intone.config import RolloutConfig, ScheduleConfig, TrainJob, model_config

CONTEXT = 64
MODEL = model_config("modern", depth=1, vocab_size=265, context=CONTEXT)
# of 265 tokens ten are digits: one reply of 24 tokens in eighteen or so ends in a 7, and three groups in four are mixed
ASKED = dict(prompts=6, samples=24, max_tokens=24)


def rewarded_job(folder: Path, job: TrainJob, **segment: object) -> Path:
    """config.json and choices.json of the stage below folder; segment: how it is computed."""
    for name in ("train", "val"):
        rows = [{"question": f"{name} {n}?", "answer": 7} for n in range(30)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = {"files": (str(folder / "train.jsonl"),), "val_files": (str(folder / "val.jsonl"),)}
    made = replace(
        job, stage="rl", data=(), val=None, keep=0, steps=1000, context=CONTEXT, model=MODEL,
        rows_per_step=ASKED["prompts"] * ASKED["samples"], rollouts=RolloutConfig(**ASKED, **files, num_items=3),
        schedule=ScheduleConfig(lr_scale=0.05, warmup_steps=0, warmdown_share=1.0, final_share=0.0),
    )  # fmt: skip
    return write_job(folder, made, replace(SEGMENT, **segment))
