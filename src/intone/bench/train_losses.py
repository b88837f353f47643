"""Is it the same training? One start, one function in both codes, and the losses of fifty steps on the same rows."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from intone.bench.train_nanochat import Checkout, NanochatChild, Way, readable
from intone.bench.train_ours import bench_home, matched, write_job
from intone.bench.train_weights import save_start, score
from intone.config import TrainJob
from intone.errors import UserError
from intone.hardware import Facts
from intone.log import human_duration, say
from intone.model.cost import num_parameters
from intone.paths import read_json, write_json
from intone.prepare import short_hash
from intone.prove.live import LineChild, WorkerChild
from intone.records import Choices
from intone.tune.trials import code_fingerprint

LOSS_STEP = 50  # where losses are compared: the mean of the five steps up to it
NUM_LOSSES = 5
SAME_LOSS = 0.01  # relative, against nanochat in fp32 (targets.json); 0.0003 was measured at depth 2
SAME_FP32 = 0.02  # relative, of our plan against our own fp32 (CONTRACTS)
SAME_FUNCTION = 1e-4  # relative, of the nats of one set of weights in both codes, fp32; 1e-7 was measured
CHECK_ROWS = 32
BLOCK_STEPS = 5  # between two lines of progress
TIMEOUT_S = 3600.0  # of a block: minutes on a small machine, in fp32


@dataclass(frozen=True)
class Match:
    """Our job with nanochat's start and rates, and what nanochat's driver said about the same training."""

    job: TrainJob
    nanochat: dict[str, Any]  # the driver's facts


def match(
    checkout: Checkout, job: TrainJob, rows: Path, facts: Facts, *, batch_tokens: int, scalar_rates: float = 1.0,
    fresh: bool = False,
) -> Match:  # fmt: skip
    """Our job made the same training as nanochat's at this size: start, rates, schedules. The start is made once.

    Raises UserError where the two models differ in windows, or by more than 1 % in any kind of parameter.
    """
    key = [
        checkout.revision, job.model.as_json(), job.tokenizer_hash, batch_tokens,
        code_fingerprint("bench/foreign", "bench/train_weights.py", "model/checkpoint.py", "model/gpt.py"),
    ]  # fmt: skip
    folder = bench_home() / "start" / short_hash(key)
    path = folder / "facts.json"
    if fresh or not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        way = Way(1, facts.cores_physical)
        child = NanochatChild(checkout, job.model, rows, way, facts, dtype="fp32", batch_tokens=batch_tokens, warm=0)
        with child, readable(child):
            theirs = dict(child.wait_ready().facts)
            child.ask("weights", path=str(folder / "start.npz"))
        check_shape(job, theirs)
        save_start(job.model, folder / "start.npz", folder, job.tokenizer_hash)
        write_json(path, theirs)
    theirs = read_json(path)
    check_shape(job, theirs)
    return Match(matched(job, theirs, folder, scalar_rates=scalar_rates), theirs)


def check_shape(job: TrainJob, nanochat: dict[str, Any]) -> None:
    """Raises UserError where a kind of parameter differs by more than 1 %, or windows differ."""
    for ours, a, b in parameter_kinds(job, nanochat):
        if abs(a - b) > 0.01 * b:
            raise UserError(f"{ours}: {a:,} parameters against nanochat's {b:,}: not the same model", value=a)
    model = job.model
    # a window of ours counts the token itself, nanochat's the tokens before it
    windows = [min(model.window(i), model.context) for i in range(model.depth)]
    expected = [min(window + 1, model.context) for window in nanochat["windows"]]
    if windows != expected:
        raise UserError(f"windows {windows} against nanochat's {expected}: not the same model", value=str(windows))


def parameter_kinds(job: TrainJob, nanochat: dict[str, Any]) -> list[tuple[str, int, int]]:
    """(kind, our parameters, nanochat's), the total last."""
    names = {
        "embedding": "wte", "value_embeddings": "value_embeds", "head": "lm_head", "matrices": "transformer_matrices",
        "scalars": "scalars", "total": "total",
    }  # fmt: skip
    counts = num_parameters(job.model)
    return [(ours, counts[ours], nanochat["parameters"][theirs]) for ours, theirs in names.items()]


# --- losses -----------------------------------------------------------------------------------------------------------


def their_loss(
    checkout: Checkout,
    same: TrainJob,
    rows: Path,
    way: Way,
    facts: Facts,
    *,
    dtype: str,
    batch_tokens: int,
    scalar_rates: float = 1.0,
    fresh: bool = False,
) -> float | None:
    """nanochat's loss at LOSS_STEP; kept, since neither its code nor its rows change.

    In fp32 its weights are then scored in both codes. Raises UserError where that differs: another function.
    """
    key = [
        checkout.revision, same.model.as_json(), same.data, same.tokenizer_hash, same.context, same.seed, dtype,
        batch_tokens, scalar_rates, code_fingerprint("bench/foreign"),
    ]  # fmt: skip

    def train() -> float | None:
        say(f"nanochat's {LOSS_STEP} steps in {dtype}, once, for its losses")
        child = NanochatChild(
            checkout, same.model, rows, way, facts, dtype=dtype, batch_tokens=batch_tokens, warm=0,
            scalar_rates=scalar_rates,
        )  # fmt: skip
        with child, readable(child):
            child.wait_ready()
            loss = loss_at_step(child)
            if dtype == "fp32":
                check_function(child, same, rows)
        return loss

    return kept_loss(f"nanochat-{short_hash(key)}", train, fresh=fresh)


def our_loss(same: TrainJob, choices: Choices, *, fresh: bool = False) -> float | None:
    """Our loss at LOSS_STEP under a plan; kept while job, plan and the training's code are the same."""
    [segment] = choices.segments
    plan = dataclasses.asdict(segment) | {"reason": None, "trials": None}
    key = [same.as_json(), plan, code_fingerprint("model", "train", "data")]

    def train() -> float | None:
        say(f"our own {LOSS_STEP} steps in {segment.dtype}, for their losses")
        folder = write_job(bench_home() / "live" / "losses", same, choices)
        with WorkerChild(folder, choices.environment, name="intone") as child, readable(child):
            child.wait_ready()
            return loss_at_step(child)

    return kept_loss(f"intone-{short_hash(key)}", train, fresh=fresh)


def in_fp32(choices: Choices) -> Choices:
    """The plan computed as plainly as can be: eager, fp32, PyTorch's own attention."""
    segment = replace(choices.segments[0], dtype="fp32", compiled=False, attention="sdpa", kernels="torch")
    return replace(choices, segments=(segment,))


def kept_loss(name: str, train: Callable[[], float | None], *, fresh: bool) -> float | None:
    """What train returned, now or before; None: a loss was not finite."""
    path = bench_home() / "losses" / f"{name}.json"
    if fresh or not path.exists():
        write_json(path, {"step": LOSS_STEP, "loss": train()})
    loss: float | None = read_json(path)["loss"]
    return loss


def loss_at_step(child: LineChild) -> float | None:
    """Trains a ready child on to LOSS_STEP -> mean loss of the last NUM_LOSSES steps, None where one is not finite."""
    losses: dict[int, float | None] = {}
    spent_s = 0.0
    while max(losses, default=0) < LOSS_STEP:
        block = child.block(steps=BLOCK_STEPS, timeout_s=TIMEOUT_S)
        losses |= {block["first_step"] + number: loss for number, loss in enumerate(block["losses"], 1)}
        spent_s += block["seconds"]
        left_s = spent_s / len(losses) * max(0, LOSS_STEP - max(losses))
        say(f"{child.name}   step {max(losses)}/{LOSS_STEP}   left {human_duration(left_s)}")
    last = [losses[LOSS_STEP - i] for i in range(NUM_LOSSES)]
    return None if None in last else sum(last) / NUM_LOSSES  # type: ignore[arg-type]


def check_function(child: NanochatChild, job: TrainJob, rows: Path) -> None:
    """Raises UserError unless nanochat's trained weights give the same nats in our code as in its own."""
    path = bench_home() / "check.npz"
    said = child.ask("evaluate", rows=CHECK_ROWS)
    child.ask("weights", path=str(path))
    ours = score(rows, model=job.model, weights=path, num_rows=CHECK_ROWS)
    path.unlink()
    nats = sum(ours["nats"])
    say(f"nanochat's weights after {said['step']} steps: {nats:.3f} nats in our code, {said['nats']:.3f} in its own")
    apart = abs(nats - said["nats"]) / said["nats"]
    if apart > SAME_FUNCTION or sum(ours["bytes"]) != said["bytes"]:
        raise UserError(f"the two models compute different functions: nats differ by {100 * apart:.3f}%", value=apart)


def check_losses(ours: float | None, theirs: float | None, ours_fp32: float | None) -> list[str]:
    """What to tell about the losses, a line each; None for the last two: not asked for.

    Raises UserError where our side did not learn as nanochat in fp32 and as our own fp32 did.
    """
    if ours is None:
        raise UserError(f"our loss is not finite within {LOSS_STEP} steps: no row is written", fix="try --dtype fp32")
    lines = []
    for name, loss, bound in (("nanochat in fp32", theirs, SAME_LOSS), ("our own fp32", ours_fp32, SAME_FP32)):
        if loss is None:
            continue
        apart = ours / loss - 1
        lines.append(f"loss at step {LOSS_STEP}: {ours:.4f}, {name} {loss:.4f}: {100 * apart:+.2f}%")
        if abs(apart) > bound:
            raise UserError(
                f"our loss at step {LOSS_STEP} is {100 * apart:+.2f}% away from {name}: more than {100 * bound:g}% is "
                "another training, no row is written",
                value=apart,
                fix="--scalar-rates 0.05 on both sides, where nanochat's own rates make its loss jump on the way",
            )
    return lines
