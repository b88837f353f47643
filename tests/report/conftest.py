"""A finished run of two stages on disk, written row by row, with numbers that are easy to add up."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from intone.config import OptimConfig, ScheduleConfig, TrainJob, model_config
from intone.paths import write_json
from intone.records import (
    Choice,
    Choices,
    EvalRow,
    EventRow,
    Outcome,
    SampleRow,
    Segment,
    StepRow,
    log_row,
    write_choices,
    write_outcome,
)
from intone.resolving import Layer, identity, resolve
from intone.runs import Run, create_run, with_state
from intone.settings import RunSettings

JOB = TrainJob(
    stage="base", model=model_config("modern", depth=2, vocab_size=300, context=64), tokenizer="/t", tokenizer_hash="h",
    data=("/d",), val="/v", context=64, steps=40, rows_per_step=5, optim=OptimConfig(),
    schedule=ScheduleConfig(warmup_steps=3), seed=7,
)  # fmt: skip
SEGMENT = Segment(0, device_batch=5, compiled=False, dtype="bf16", attention="sdpa", reason="settled", threads=2)
CHOICES = Choices(
    {
        "minutes": Choice(3.0, "--minutes", "flag"),
        "dtype": Choice("bf16", "1.6x as fast", "measured", ({"value": "fp32", "why": "slower by 1.6x"},), {"n": 5}),
        "keep": Choice(2, "default", "default"),
        "device": Choice("cpu", "no GPU here", "default"),
    },
    (SEGMENT,),
    {"device_batch": (5, 3, 2, 1)},
    {"OMP_NUM_THREADS": "2"},
)
STARTER = {
    "mean": 0.7, "low": 0.64, "high": 0.75,
    "skills": {
        "facts": {"score": 0.9, "low": 0.85, "high": 0.93, "num_items": 200},
        "story": {"score": 0.5, "low": 0.43, "high": 0.57, "num_items": 200},
    },
    "wrong": [
        {"skill": "story", "question": "Where is <Ann>?", "expected": "In | town.", "got": "`No`", "reason": "stop"}
    ],
}  # fmt: skip
STEP_S, DATA_S, FIRST_S = 0.5, 0.1, 2.5
SHAPES = {
    "blocks.0.mlp.up.weight": (10, 60), "embedding.weight": (30, 10), "head.weight": (9, 10), "smear_scale": (10,),
}  # fmt: skip


def write_stage(folder: Path, stage: str, *, steps: int, losses=lambda step: 4.0 / step, slow_first=True) -> None:
    """A finished stage: step rows, one evaluation of 3 s, one save of 1 s, samples, a model of 1,000 numbers."""
    write_choices(folder, CHOICES)
    write_json(folder / "config.json", replace(JOB, stage=stage, steps=steps).as_json())
    log = folder / "log.jsonl"
    for step in range(1, steps + 1):
        seconds = FIRST_S if step == 1 and slow_first else STEP_S
        row = StepRow(step, 320 * step, losses(step), 1.0, seconds, DATA_S, 320 / seconds, 2**30 + step * 2**20)
        log_row(log, row)
    log_row(log, EventRow(steps, "save", "4 KiB", 1.0))
    log_row(log, EvalRow(steps, 3.0, {"bpb": 1.5}))
    bpb = {"value": 1.5, "low": 1.4, "high": 1.6, "num_bytes": 5000}
    write_json(folder / "eval.json", {"format": 1, "step": steps, "bpb": bpb})
    log_row(folder / "samples.jsonl", SampleRow(steps, "Hello <b>", "world & *all*\nof it"))
    save = folder / "checkpoints" / f"step_{steps:06d}"
    save.mkdir(parents=True)
    save_file({name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}, save / "model.safetensors")
    write_outcome(folder, Outcome("done", steps))


@pytest.fixture
def finished(home) -> Run:
    """base of 40 steps and sft of 20, planned for 3 minutes: 60 s by the clock, of which 46 s were measured."""
    settings, _ = resolve(RunSettings, [Layer("flag", "test", {"minutes": 3.0, "data": ("starter",)})])
    run = create_run(identity(settings), verb="run", stages=("base", "sft"), name="first_try")
    write_stage(run.stage_folder("base"), "base", steps=40)
    write_stage(run.stage_folder("sft"), "sft", steps=20, losses=lambda step: 0.5 / step, slow_first=False)
    write_json(run.folder / "eval" / "eval.json", {"format": 1, "starter": STARTER})
    write_json(run.folder / "forecast.json", {"format": 1, "steps": 60, "step_s": 0.5, "minutes": 3.0})
    phases = {"planning": 4.0, "base": 28.0, "sft": 15.0, "evaluation": 2.0}
    write_json(run.folder / "spent.json", {"format": 1, "seconds": 61.0, "peak_bytes": 2**31, "phases": phases})
    facts = {"cpu_name": "Planted CPU", "cores_physical": 2, "memory_bytes": 2**33, "torch_version": "2.13.0"}
    kept = {name: {"value": value, "source": "driver", "unit": ""} for name, value in facts.items()}
    write_json(run.folder / "machine.json", {"format": 1, "intone": "0.1.0", "facts": kept})
    result = {
        "minutes": 1.0, "peak_bytes": 2**31, "bpb": {"value": 1.5, "low": 1.4, "high": 1.6},
        "starter": {key: value for key, value in STARTER.items() if key != "wrong"},
        "stages": [{"stage": "base", "mfu": 0.25}, {"stage": "sft", "mfu": None}],
        "chat": "intone chat --from first_try",
    }  # fmt: skip
    return with_state(run, "done", result=result)
