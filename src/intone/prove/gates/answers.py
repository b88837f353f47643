"""The gates on a stage that learns from its own answers: what it writes, and the gradient of the same answers"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from intone.config import RolloutConfig
from intone.dist import World
from intone.engine.load import load_model
from intone.model.gpt import GPT
from intone.prove.gates import parity, training
from intone.prove.gates.decode import ORIGIN, TOLERANCE
from intone.prove.gates.parity import GradientError, Losses
from intone.prove.gates.result import Gate, GateResult, NotJudged, Threshold
from intone.prove.trial import Side, trial
from intone.records import Segment, read_choices
from intone.train.kept import ANSWERS, Written, keep, read_kept
from intone.train.plan import pick_device
from intone.train.step import DTYPES

WRITES, LEARNS = "own answers", "gradient of equal answers"
MAX_ANSWERS = 16  # whose probabilities are held against the plain model's; every one is a pass over a whole text
TRAIN_FIRST = "make `intone train rl` run first"
# what decides about the bits of an answer; threads and formats round otherwise
EXACT = ("dtype", "threads")


@dataclass(frozen=True)
class Reference:
    """What is right for one stage, from the weights that it starts from.

    written: the first step's answers, as the stage is planned at the start of a round. taught: the folder of the same
    answers, rewarded by turns: whatever they are worth, each of them teaches something then. losses, gradients: of
    learning from those, in eager fp32; own: how far the baseline's gradients in its own dtype are, None where that is
    fp32.
    """

    segment: Segment
    written: Written
    taught: Path
    losses: Losses
    gradients: training.Gradients
    own: GradientError | None


def reference(baseline: Side, scratch: Path) -> Reference:
    """Two trials of one step, three where the baseline is not fp32; the answers stay below scratch.

    Raises NotJudged where one does not end well.
    """
    first = training.first_segment(baseline)[0]
    written = first_answers(baseline, scratch)
    folder = scratch / "taught"
    rewards = [[float(number % 2) for number in range(len(group))] for group in written.ids]
    keep(folder, 0, dataclasses.replace(written, rewards=rewards))
    losses, right = taught(baseline, scratch, folder, training.plain(baseline))
    if right is None:
        raise NotJudged(f"the plain training in fp32 did not end well: {losses.message}", TRAIN_FIRST)
    own = None
    if first.dtype != "fp32":
        own = training.gradient_error(taught(baseline, scratch, folder, (first,))[1], right)
    return Reference(first, written, folder, losses, right, own)


def first_answers(side: Side, scratch: Path) -> Written:
    """What a side writes in its first step, drawn as its model has it. Raises NotJudged where it does not run."""
    config = dataclasses.replace(rollouts_of(side), keep_answers=True, temperature=1.0, top_k=None, num_items=1)
    with trial(side, scratch, steps=1, rollouts=config) as found:
        if found.outcome.outcome != "done":
            raise NotJudged(f"a step of answers ended with {found.outcome.outcome}: {found.outcome.message}",
                            TRAIN_FIRST)  # fmt: skip
        return read_kept(found.folder / ANSWERS, 0)


def taught(
    side: Side, scratch: Path, answers: Path, segments: tuple[Segment, ...]
) -> tuple[Losses, training.Gradients | None]:
    """One step on kept answers by the real worker -> its loss, and its gradients where it ended well."""
    config = dataclasses.replace(rollouts_of(side), answers=str(answers), num_items=1)
    with trial(side, scratch, segments=segments, steps=1, keep=1, rollouts=config) as found:
        return training.losses_of(found), training.saved_gradients(found)


def rollouts_of(side: Side) -> RolloutConfig:
    config = training.job_of(side).rollouts
    assert config is not None, "the caller looked"
    return config


# --- what it writes -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """What a candidate wrote. error: per token of some answers, nats between its log-probability and the plain one's.

    right: what it has to be, token for token; None: formats or threads are others, which rounds otherwise.
    """

    written: Written
    right: Written | None
    error: Sequence[float]


def gather_written(right: Reference, candidate: Side, scratch: Path) -> Found:
    """The candidate's first answers, and their probabilities beside the plain model's."""
    written = first_answers(candidate, scratch)
    segment, device = training.first_segment(candidate)[0], pick_device(read_choices(candidate.folder), World())
    is_equal = all(getattr(segment, name) == getattr(right.segment, name) for name in EXACT)
    # a GPU gives the same bits at its full price only
    is_exact = is_equal and (device.type == "cpu" or training.job_of(candidate).deterministic)
    model = plain_model(candidate, device)
    texts = [
        (prompt, ids, said)
        for prompt, group, logprobs in zip(written.prompts, written.ids, written.logprobs, strict=True)
        for ids, said in zip(group, logprobs, strict=True)
    ]
    chosen = texts[:: -(-len(texts) // MAX_ANSWERS)]
    error = [value for text in chosen for value in errors(model, *text)]
    return Found(written, right.written if is_exact else None, error)


def plain_model(side: Side, device: torch.device) -> GPT:
    """The model that the side starts from, computed plainly in fp32."""
    job = training.job_of(side)
    if job.init_from is not None:
        return load_model(Path(job.init_from), dtype="fp32", device=device)
    model = GPT(job.model).to(device)
    model.init_weights(job.seed)
    return model


@torch.inference_mode()
def errors(model: GPT, prompt: Sequence[int], ids: Sequence[int], said: Sequence[float | None]) -> list[float]:
    """|log-probability that was said - the plain model's| of every token that was drawn."""
    text = torch.tensor([[*prompt, *ids]], device=model.embedding.weight.device)
    logprobs = model.logits(text)[0, len(prompt) - 1 : -1].double().log_softmax(-1)
    plain = logprobs.gather(-1, text[0, len(prompt) :, None])[:, 0].tolist()
    return [abs(value - right) for value, right in zip(said, plain, strict=True) if value is not None]


def judge_written(found: Found, *, dtype: str) -> GateResult:
    """The same answers where nothing rounds otherwise, and in any case such as the plain model would draw."""
    tolerance = TOLERANCE[DTYPES[dtype]]
    words = "answers are the same, token for token, and " if found.right is not None else ""
    threshold = Threshold(
        f"{words}log-probabilities of what was drawn are the plain fp32 model's within {tolerance:g} nats ({dtype})",
        ORIGIN,
    )
    num_answers = sum(map(len, found.written.ids))
    evidence: dict[str, Any] = {
        "answers": num_answers, "tokens_compared": len(found.error), "same_asked": found.right is not None,
        "largest_error_nats": max(found.error, default=None),
    }  # fmt: skip
    fix = "take the change back: what is learned from must be what the model writes"
    if found.right is not None:
        pairs = [
            (question, number) for question, group in enumerate(found.right.ids)
            for number, ids in enumerate(group) if list(ids) != list(found.written.ids[question][number])
        ]  # fmt: skip
        if pairs:
            question, number = pairs[0]
            reason = f"{len(pairs)} of {num_answers} answers are others, first answer {number + 1} of question"
            return GateResult(WRITES, False, f"{reason} {question + 1}", threshold, evidence, fix=fix)
    if not found.error:
        raise NotJudged("the model drew no token", "ask for longer answers: --max-tokens")
    worst = max(found.error)
    if not worst <= tolerance:
        reason = f"a token's log-probability is {worst:.3g} nats off the plain model's"
        return GateResult(WRITES, False, reason, threshold, evidence, fix=fix)
    same = f"{num_answers} answers are the same, and " if found.right is not None else ""
    reason = f"{same}log-probabilities of {len(found.error):,} tokens are the plain model's within {worst:.1e} nats"
    return GateResult(WRITES, True, reason, threshold, evidence)


# --- what it learns -------------------------------------------------------------------------------------------------


def gather_taught(right: Reference, candidate: Side, scratch: Path) -> tuple[Reference, Losses]:
    """The candidate's loss on the reference's answers, and how far its gradients are from the reference's."""
    losses, found = taught(candidate, scratch, right.taught, training.first_segment(candidate))
    return right, dataclasses.replace(losses, gradient=training.gradient_error(found, right.gradients))


def judge_taught(right: Reference, candidate: Losses, *, dtype: str) -> GateResult:
    """Loss and gradients of the same answers stay as close to fp32 eager's as right code of the dtype does.

    The loss is a sum of signed log-probabilities near 0: it is compared in nats, not as a share of itself.
    """
    limits = parity.LIMITS[dtype]
    threshold = Threshold(
        f"{dtype} against fp32 eager on the same answers: loss within {limits.first_loss:.0e} nats, gradients within "
        f"{limits.gradient:.0e}, their norm {limits.norm:.0e}, any large tensor's {limits.tensor:.0e}", parity.ORIGIN,
    )  # fmt: skip
    ended = parity.judge_ends(right.losses, candidate, threshold)
    if ended is not None:
        return dataclasses.replace(ended, name=LEARNS)
    assert candidate.gradient is not None, "it ended well"
    loss, plain = candidate.losses[0], right.losses.losses[0]
    assert loss is not None and plain is not None, "judge_ends() looked"
    evidence = {
        "loss_error_nats": abs(loss - plain), "gradient_error": candidate.gradient.gradient,
        "norm_error": candidate.gradient.norm, "tensor_error": candidate.gradient.tensor,
        "worst_tensor": candidate.gradient.worst, "loss": loss, "loss_fp32": plain,
    }  # fmt: skip
    fix = "the change computes something else: undo it, or keep the part in fp32 that loses the digits"
    problem = parity.gradient_problem(candidate.gradient, limits, right.own)
    if problem is None and not abs(loss - plain) <= limits.first_loss:
        problem = f"the loss is {loss:.6g}, fp32's {plain:.6g}: allowed are {limits.first_loss:.0e} nats between them"
    if problem is not None:
        return GateResult(LEARNS, False, problem, threshold, evidence, fix=fix)
    reason = f"gradients within {candidate.gradient.gradient:.1e}, the loss within {abs(loss - plain):.1e} nats"
    return GateResult(LEARNS, True, reason, threshold, evidence)


def gates(right: Callable[[], Reference], candidate: Side, scratch: Path) -> list[Gate[Any]]:
    """Both gates on one candidate. right: the reference, which is made at the first need; its NotJudged is theirs."""
    dtype = training.first_segment(candidate)[0].dtype
    return [
        Gate(WRITES, 2 * training.TRIAL_COST_S, lambda: gather_written(right(), candidate, scratch),
             lambda found: judge_written(found, dtype=dtype)),
        Gate(LEARNS, 3 * training.TRIAL_COST_S, lambda: gather_taught(right(), candidate, scratch),
             lambda found: judge_taught(*found, dtype=dtype)),
    ]  # fmt: skip
