"""The plan for our own stages: from findings to settings that answer them, each with its bounds, risk, gates, undo."""

from collections.abc import Callable, Sequence
from typing import Any

from intone.optimise.detect.finding import Bottleneck
from intone.optimise.items import Item, Plan
from intone.optimise.signals import Signals
from intone.optimise.stages.target import Part, State, Switch, Target, merged, words_of
from intone.optimise.stages.training import FAST_CODE, knee
from intone.tune.trial import attention_for

TRAIN_GATES = "recipe equal; losses and gradients within rounding of eager fp32; memory fits; then speed in turns"
WRITE_GATES = "greedy tokens those of the plain model; samples follow its probabilities; then speed in turns"
UNDO = "leave the setting out of the preset"
Answering = Callable[[Target, Signals, Bottleneck], list[Item]]


def plan_part(target: Target, part: Part, state: State, signals: Signals, findings: Sequence[Bottleneck]) -> Plan:
    """Items for one part as it is now, what mends wrong results first. What no setting answers is told in words."""
    items: list[Item] = []
    for finding in findings:
        found = answers(target, part, state, signals, finding)
        items += found or [told(part, finding)]
    unique = {item.name: item for item in reversed(items)}  # of two findings with one answer the first keeps it
    faults = {finding.detector for finding in findings if finding.is_fault}
    ranked = Plan.of(unique.values()).items
    return Plan(tuple(sorted(ranked, key=lambda item: (item.how == "instruction", item.finding not in faults))))


def answers(target: Target, part: Part, state: State, signals: Signals, finding: Bottleneck) -> list[Item]:
    """The settings that answer a finding; none where there is none."""
    switches = [
        entry for entry in target.switches
        if entry.part == part and entry.detector == finding.detector
        and state.get("switches", {}).get(entry.name, entry.now) != entry.mended
    ]  # fmt: skip
    if switches:
        return [switch_item(entry, finding) for entry in switches]
    made = TRAIN_ANSWERS if part == "train" else WRITE_ANSWERS
    answer = made.get(finding.detector)
    return answer(target, signals, finding) if answer is not None else []


def switch_item(switch: Switch, finding: Bottleneck) -> Item:
    """A switch of the target's own worker."""
    change = {"switches": {switch.name: switch.mended}}
    name = switch.name.replace("_", "-")
    return item(switch.part, name, switch.title, finding, switch.hypothesis, change, switch.risk)


def item(
    part: Part, name: str, title: str, finding: Bottleneck, hypothesis: str, change: State, risk: str,
    bound: float | None = None,
) -> Item:  # fmt: skip
    """An item that changes settings; part is kept in its change."""
    return Item(
        f"{part}-{name}", title, finding.detector, hypothesis, finding.evidence, (1.0, bound or finding.bound),
        "settings", {"part": part, **change}, risk, TRAIN_GATES if part == "train" else WRITE_GATES, UNDO,
        finding.place, finding.signal,
    )  # fmt: skip


# --- training -------------------------------------------------------------------------------------------------------


def more_rows(_target: Target, signals: Signals, finding: Bottleneck) -> list[Item]:
    rows = knee(signals.ladder)
    if rows is None or rows == signals.device_batch:
        return []
    gain = signals.ladder[str(rows)]
    return [item(
        "train", f"rows-{rows}", f"Let {rows} rows through at once", finding,
        f"{signals.device_batch} rows leave the device waiting; tokens per optimizer step stay what they are",
        {"segment": {"device_batch": rows}}, "more memory; sums of gradients round otherwise", gain,
    )]  # fmt: skip


def more_answers(_target: Target, signals: Signals, finding: Bottleneck) -> list[Item]:
    """Of a stage that learns from its own answers."""
    count = knee(signals.slots_ladder)
    if count is None or count == signals.num_slots:
        return []
    return [item(
        "train", f"slots-{count}", f"Write {count} answers at once", finding,
        "a step of a few texts reads all weights as one of many does; what they say does not depend on it",
        {"segment": {"num_slots": count}}, "more memory for the cache", signals.slots_ladder[str(count)],
    )]  # fmt: skip


def fast_code(_target: Target, signals: Signals, finding: Bottleneck) -> list[Item]:
    """The ways to compute that were measured to be faster, the best one first."""
    found: list[Item] = []
    risk = "rounding differs"
    if (signals.kernels_gain or 0.0) > FAST_CODE:
        found.append(item(
            "train", "kernels", "Compute steps with our CPU kernels", finding,
            "operators run one by one; fused kernels read and write less memory",
            {"segment": {"kernels": "native", "attention": "native", "compiled": False}}, risk, signals.kernels_gain,
        ))  # fmt: skip
    if (signals.compiled_gain or 0.0) > FAST_CODE:
        found.append(item(
            "train", "compile", "Compile the training step", finding,
            "operators run one by one; compiled ones are fused and need no Python between them",
            {"segment": {"compiled": True, "attention": attention_for(signals.device, True), "kernels": "torch"}},
            f"{risk}; compiling takes its time at the start of every run", signals.compiled_gain,
        ))  # fmt: skip
    return sorted(found, key=lambda entry: -(entry.expected[1] or 1.0))


def fast_format(_target: Target, signals: Signals, finding: Bottleneck) -> list[Item]:
    best = signals.best_dtype
    place = "segment" if signals.kind == "train" else "generate"
    part: Part = "train" if signals.kind == "train" else "generate"
    return [item(
        part, f"dtype-{best}", f"Compute products in {best}", finding,
        f"this device was measured to compute products faster in {best}", {place: {"dtype": best}},
        "rounds more coarsely: the gate holds it against fp32",
    )]  # fmt: skip


def other_threads(_target: Target, signals: Signals, finding: Bottleneck) -> list[Item]:
    assert signals.threads_gain is not None, "the finding rests on it"
    count, gain = signals.threads_gain
    place = "segment" if signals.kind == "train" else "generate"
    part: Part = "train" if signals.kind == "train" else "generate"
    return [item(
        part, f"threads-{count}", f"Compute on {count} thread{'s' * (count > 1)}", finding,
        "threads share the cores and wait for each other", {place: {"threads": count}}, "sums round otherwise", gain,
    )]  # fmt: skip


def other_attention(_target: Target, signals: Signals, finding: Bottleneck) -> list[Item]:
    assert signals.attention_gain is not None, "the finding rests on it"
    name, gain = signals.attention_gain
    return [item(
        "train", f"attention-{name}", f"Compute attention by {name}", finding,
        "the same attention takes otherwise many operations and bytes", {"segment": {"attention": name}},
        "rounding differs", gain,
    )]  # fmt: skip


def segments_of_memory(_target: Target, _signals: Signals, finding: Bottleneck) -> list[Item]:
    change = {"environment": {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}}
    return [item(
        "train", "segments", "Let device memory grow in place", finding,
        "memory in pieces of fixed size cannot be joined", change, "none: nothing is computed otherwise",
    )]  # fmt: skip


# --- generation -----------------------------------------------------------------------------------------------------


def more_slots(_target: Target, signals: Signals, finding: Bottleneck) -> list[Item]:
    rows = signals.batch_gain_rows
    return [item(
        "generate", f"slots-{rows}", f"Generate {rows} texts together", finding,
        "one text at a time reads all weights for each of its tokens", {"engine": {"num_slots": rows}},
        "more memory for the cache; each text's time to its end grows",
    )]  # fmt: skip


TRAIN_ANSWERS: dict[str, Answering] = {
    "D1": more_rows, "D2": fast_code, "D3": fast_code, "D9": more_answers, "D12": segments_of_memory,
    "D14": fast_format, "D17": other_attention, "D26": other_threads,
}  # fmt: skip
WRITE_ANSWERS: dict[str, Answering] = {"D9": more_slots, "D14": fast_format, "D26": other_threads}

TOLD = {
    "D4": "leave compiling out of a run as short as this, or keep its cache: it is reused by the next one",
    "D5": "keep the value on the device, read it every k-th step",
    "D6": "put the data on a faster disk, or tokenise it ahead of time: intone data",
    "D7": "use memory that the device can read by itself",
    "D8": "generate with a key-value cache",
    "D13": "give the model a smaller vocabulary or micro-batch; on a CPU our kernels compute the loss in pieces",
    "D15": "choose a vocabulary, width or number of rows that is a multiple of 64; a trained model keeps its own",
    "D16": "pack rows instead of padding them",
    "D22": "draw each sample's token from its own logits; look for equal rows in the data",
    "D24": "evaluate and save less often: --eval-every, --save-every-s; ask fewer held-out questions: --num-items",
    "D23": "leave out rows that teach nothing",
    "D28": "make the tensor at the named line once, and keep it",
    "D27": "end other programs, wait until the clock is steady, and start again",
}  # fmt: skip


def told(part: Part, finding: Bottleneck) -> Item:
    """What a person has to do, or may leave as it is."""
    words = TOLD.get(finding.detector, "no setting of ours answers this; look at the evidence")
    return Item(
        f"{part}-{finding.detector.lower()}", finding.title, finding.detector, finding.title, finding.evidence,
        (1.0, finding.bound), "instruction", {"part": part, "words": words}, "needs a person's judgement",
        TRAIN_GATES if part == "train" else WRITE_GATES, "take the change back", finding.place, finding.signal,
    )  # fmt: skip


def part_of(entry: Item) -> Part:
    part: Part = entry.change["part"]
    return part


def change_of(entry: Item) -> State:
    """What an item changes, without its part."""
    return {place: values for place, values in entry.change.items() if place != "part"}


def described(entry: Item) -> str:
    """The change in words, for a table."""
    return str(entry.change["words"]) if entry.how == "instruction" else words_of(change_of(entry))


def state_of(kept: Sequence[Item]) -> dict[str, dict[str, Any]]:
    """How everything is computed with these items' changes, in their order."""
    return merged(*(change_of(entry) for entry in kept))
