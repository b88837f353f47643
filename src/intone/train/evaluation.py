"""What a stage measures of itself: bits per byte on fixed rows, and samples a person can read."""

import time
from pathlib import Path

from intone.config import TrainJob
from intone.data.chat import Message
from intone.data.loader import validation_rows
from intone.data.shards import TokenSet
from intone.data.tokenizer import Tokenizer
from intone.engine.engine import Engine
from intone.engine.requests import Request
from intone.evals.bpb import bits_per_byte
from intone.log import human_duration, say
from intone.model.gpt import GPT
from intone.paths import write_json
from intone.pulse import beat, beating
from intone.records import EvalRow, SampleRow, log_row

SAMPLE_TOKENS = 64


def evaluate_stage(
    folder: Path, job: TrainJob, model: GPT, tokenizer: Tokenizer, val: TokenSet | None, step: int
) -> float | None:
    """Logs and prints bpb and samples of the model at this step -> bpb, None without validation text."""
    begin_s = time.monotonic()
    bpb = None
    if val is not None:
        rows = beating(folder, validation_rows(val, job.context, job.eval_tokens))
        device = model.embedding.weight.device
        result = bits_per_byte(model, rows, tokenizer.token_bytes, device=device, dtype=model.compute_dtype)
        bpb = float(result["value"])
        write_json(folder / "eval.json", {"format": 1, "step": step, "bpb": result})
    write_samples(folder, job, model, tokenizer, step)
    seconds = time.monotonic() - begin_s
    values = {} if bpb is None else {"bpb": bpb}
    log_row(folder / "log.jsonl", EvalRow(step, seconds, values))
    shown = "no validation text" if bpb is None else f"validation {bpb:.4f} bits per byte"
    say(f"{job.stage:<4} step {step:,}   {shown}   ({human_duration(seconds)})")
    return bpb


def write_samples(folder: Path, job: TrainJob, model: GPT, tokenizer: Tokenizer, step: int) -> None:
    """Continues the job's prompts greedily and appends them to samples.jsonl."""
    if not job.samples:
        return
    is_chat = job.stage != "base"
    beat(folder)
    prompts = [[Message("user", text)] if is_chat else text for text in job.samples]
    room = job.context // 2
    requests = [Request(prompt=p, max_tokens=min(SAMPLE_TOKENS, room), temperature=0.0) for p in prompts]
    engine = Engine(model, tokenizer, num_slots=len(requests), dtype=model.compute_dtype)
    try:
        for text, completions in zip(job.samples, engine.generate(requests), strict=True):
            log_row(folder / "samples.jsonl", SampleRow(step, text, completions[0].text))
    finally:
        engine.close()
