"""The figures of a run: loss, validation, speed, memory, where the time went, and skills with their intervals."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from intone.log import human_bytes, human_count, human_duration
from intone.report.account import KINDS, Account, is_rewarded
from intone.report.charts import (
    Axis,
    Bar,
    Line,
    Share,
    Span,
    bar_chart,
    both,
    line_chart,
    share_chart,
    tips_over,
)
from intone.report.curves import average_steps, coarse, points, smoothed, steady
from intone.report.document import Figure, Table
from intone.report.record import RunRecord, StageRecord

COLOURS = {"base": 1, "mid": 2, "sft": 3, "rl": 4}
LOG_FROM = 20.0  # the smoothed loss falls by this factor: then only a logarithmic axis shows its end (guess)
TABLE_POINTS = 12  # of a curve in Markdown and under a figure
SMALLEST_SHARE = 0.002  # of the time that gets a part of its own in the bar


def loss_figure(record: RunRecord) -> Figure | None:
    """Training loss over the steps of all stages; None where no step has a finite loss."""
    smooth: list[tuple[StageRecord, list[float], list[float | None]]] = []
    for stage, xs in stage_steps(record):
        if is_rewarded(stage):
            continue  # its loss measures nothing: reward_figure
        average = average_steps(len(stage.steps))
        smooth.append((stage, xs, smoothed([row["loss"] for row in stage.steps], average)))
    values = [value for _, _, line in smooth for value in line if value is not None]
    if not values:
        return None
    raw = [row["loss"] for stage, _, _ in smooth for row in stage.steps if row["loss"] is not None]
    is_log = min(raw) > 0 and max(values) / min(values) > LOG_FROM
    lines = []
    for stage, xs, line in smooth:
        colour = COLOURS[stage.stage]
        lines.append(Line(points(xs, [row["loss"] for row in stage.steps]), colour, "faint"))
        lines.append(Line(points(xs, line), colour))
    scale = ", logarithmic" if is_log else ""
    y = Axis(f"loss in nats per token{scale}", None if is_log else 0.0, is_log=is_log)
    widths = sorted({average_steps(len(stage.steps)) for stage, _, _ in smooth})
    spread = f"{widths[0]}" if len(widths) == 1 else f"{widths[0]} to {widths[-1]}"
    ends = [f"{stage.stage} ends at {shown_loss(line[-1])}" for stage, _, line in smooth]
    return Figure(
        "Training loss",
        over_steps(record, lines, y, "training loss: " + ", ".join(ends), loss_words, height=300),
        f"Thin: every step. Bold: an average over about {spread} steps. Base and mid learn every token, "
        "SFT only what the assistant says, so their losses are different quantities."
        if len(smooth) > 1
        else f"Thin: every step. Bold: an average over about {spread} steps.",
        curve_table(record),
    )


def reward_figure(record: RunRecord) -> Figure | None:
    """The share of right answers over the steps of a stage that learned from them; None where none did."""
    lines, ends = [], []
    for stage, xs in stage_steps(record):
        if not is_rewarded(stage):
            continue
        shares = [100 * row["rollouts"]["right"] for row in stage.steps]
        average = average_steps(len(stage.steps))
        lines.append(Line(points(xs, shares), COLOURS[stage.stage], "faint"))
        lines.append(Line(points(xs, smoothed(shares, average)), COLOURS[stage.stage]))
        even, groups = (sum(row["rollouts"][name] for row in stage.steps) for name in ("even_groups", "groups"))
        ends.append(
            f"Bold: an average over about {average} steps. {100 * even / groups:.0f}% of the questions taught nothing, "
            "because all their answers got the same reward."
        )
    if not lines:
        return None
    svg = over_steps(record, lines, Axis("right answers, %", 0.0, 100.0), "share of right answers", right_words)
    return Figure("Right answers while training", svg, f"Thin: the answers of every step. {' '.join(ends)}")


def bpb_figure(record: RunRecord) -> Figure | None:
    """Validation bits per byte while training; None where no stage was evaluated more than once."""
    lines = []
    for stage, xs in stage_steps(record):
        places = {row["step"]: x for row, x in zip(stage.steps, xs, strict=True)}
        found = [
            (places[row["step"]], row["values"]["bpb"])
            for row in stage.evals
            if "bpb" in row["values"] and row["step"] in places
        ]
        lines.append(Line(found, COLOURS[stage.stage], "dots"))
    if max((len(line.points) for line in lines), default=0) < 2:
        return None
    y = Axis("validation, bits per byte")
    svg = over_steps(record, lines, y, "validation bits per byte at each evaluation", None)
    rows = [
        [stage.stage, f"{row['step']:,}", f"{row['values']['bpb']:.4f}"]
        for stage in record.started
        for row in stage.evals
        if "bpb" in row["values"]
    ]
    words = "Each stage is measured on its own validation text: values of different stages do not compare."
    return Figure("Validation while training", svg, words, Table(["stage", "step", "bits per byte"], rows))


def speed_figure(record: RunRecord) -> Figure:
    """Tokens per second over the steps, without the first ones of a stage, which are slow by nature."""
    lines = []
    for stage, xs in stage_steps(record):
        colour = COLOURS[stage.stage]
        rates = [row["tokens_per_s"] for row in steady(stage.steps)]
        late = xs[len(xs) - len(rates) :]
        lines.append(Line(points(late, rates), colour, "faint"))
        lines.append(Line(points(late, smoothed(rates, average_steps(len(rates)))), colour))
    svg = over_steps(record, lines, Axis("tokens per second", 0.0), "tokens per second", speed_words, height=200)
    words = "Thin: every step, with waiting for data and reading the loss. Bold: an average."
    return Figure("Speed", svg, words)


def memory_figure(record: RunRecord) -> Figure | None:
    """The worker's peak memory so far, over the steps; None where the platform does not tell."""
    lines = [
        Line(points(xs, [row["peak_bytes"] for row in stage.steps], scale=2**-30), COLOURS[stage.stage])
        for stage, xs in stage_steps(record)
    ]
    if not any(line.points for line in lines):
        return None
    svg = over_steps(record, lines, Axis("GiB", 0.0), "peak memory of the worker in GiB", memory_words, height=170)
    is_gpu = any((stage.choices and _device(stage)) == "cuda" for stage in record.started)
    where = "allocated on the GPU" if is_gpu else "resident"
    return Figure("Memory", svg, f"The most that the worker has had {where} since it began, in GiB.")


def _device(stage: StageRecord) -> str | None:
    chosen = stage.choices.settings.get("device") if stage.choices else None
    return chosen.value if chosen else None


def stage_steps(record: RunRecord) -> list[tuple[StageRecord, list[float]]]:
    """Every stage that has begun, with the place of each of its step rows among the steps of the run."""
    found, before = [], 0.0
    for stage in record.started:
        found.append((stage, [before + row["step"] for row in stage.steps]))
        before += stage.steps[-1]["step"]
    return found


def over_steps(
    record: RunRecord, lines: Sequence[Line], y: Axis, description: str,
    words: Callable[[StageRecord, Sequence[Mapping[str, Any]]], str] | None, *, height: int = 230,
) -> str:  # fmt: skip
    """A chart over the steps of the run, its stages marked; words says what a pointer over some rows shows."""
    spans, tips, before = [], [], 0.0
    for stage, xs in stage_steps(record):
        spans.append(Span(before, xs[-1], stage.stage, COLOURS[stage.stage]))
        before = xs[-1]
        if words is not None:
            num = max(4, round(48 * len(xs) / sum(len(s.steps) for s in record.started)))
            tips += tips_over(xs, lambda i, j, s=stage: words(s, s.steps[i : j + 1]), num=num)  # type: ignore[misc]
    x = Axis("step" if len(spans) == 1 else "step of the run", 0.0)
    marked = spans if len(spans) > 1 else []
    return both(
        lambda width: line_chart(
            lines, x=x, y=y, width=width, description=description, height=height, spans=marked, tips=tips
        )
    )


def loss_words(stage: StageRecord, rows: Sequence[Mapping[str, Any]]) -> str:
    """What a pointer over the loss shows."""
    losses = [row["loss"] for row in rows if row["loss"] is not None]
    mean = sum(losses) / len(losses) if losses else None
    return f"{_place(stage, rows)}: loss {shown_loss(mean)}"


def right_words(stage: StageRecord, rows: Sequence[Mapping[str, Any]]) -> str:
    """What a pointer over the rewards shows."""
    found = [row["rollouts"] for row in rows if row.get("rollouts")]
    if not found:
        return _place(stage, rows)
    right = sum(entry["right"] * entry["answers"] for entry in found) / sum(entry["answers"] for entry in found)
    return f"{_place(stage, rows)}: {100 * right:.1f}% right"


def speed_words(stage: StageRecord, rows: Sequence[Mapping[str, Any]]) -> str:
    """What a pointer over the speed shows: tokens by seconds, not the mean of rates."""
    seconds = sum(row["step_s"] for row in rows)
    tokens = sum(row["tokens_per_s"] * row["step_s"] for row in rows)
    return f"{_place(stage, rows)}: {human_count(tokens / seconds)} tokens/s"


def memory_words(stage: StageRecord, rows: Sequence[Mapping[str, Any]]) -> str:
    """What a pointer over the memory shows."""
    return f"{_place(stage, rows)}: {human_bytes(rows[-1]['peak_bytes'])}"


def _place(stage: StageRecord, rows: Sequence[Mapping[str, Any]]) -> str:
    first, last = rows[0]["step"], rows[-1]["step"]
    steps = f"step {first:,}" if first == last else f"steps {first:,} to {last:,}"
    return f"{stage.stage}, {steps}"


def shown_loss(value: float | None) -> str:
    """A loss as the tables write it."""
    return "not finite" if value is None else f"{value:.3f}"


def curve_table(record: RunRecord) -> Table:
    """The curves of all stages at a few steps."""
    rows = []
    for stage in record.started:
        curve = coarse(stage.steps, max(2, TABLE_POINTS // len(record.started)))
        for step, tokens, loss, rate, peak in zip(*curve.values(), strict=True):
            shown_rate = "unknown" if rate is None else f"{rate:,.0f}"
            assert step is not None and tokens is not None, "every group of rows ends with a step"
            numbers = [f"{step:,.0f}", human_count(tokens), shown_loss(loss), shown_rate, human_bytes(peak)]
            rows.append([stage.stage, *numbers])
    return Table(["stage", "step", "tokens", "loss", "tokens/s", "peak memory"], rows)


def steady_rate(stage: StageRecord) -> float | None:
    """Tokens per second of the steps after the slow first ones; None before there are any."""
    rows = steady(stage.steps)
    seconds = sum(row["step_s"] for row in rows)
    return sum(row["tokens_per_s"] * row["step_s"] for row in rows) / seconds if seconds else None


def time_figure(account: Account, *, has_restarts: bool) -> Figure:
    """Where the time went: one bar and a table, with what nobody measured as a part of its own."""
    colours = dict(steps=1, data=4, rollouts=4, first=2, evaluations=3, saves=5, planning=6, questions=3)
    left_s = account.unexplained_s
    entries = [(KINDS[kind], account.parts[kind], colours[kind]) for kind in KINDS if kind in account.parts]
    whole_s = account.total_s if left_s else sum(account.parts.values())
    assert whole_s is not None, "the whole is known where something of it is left"
    named = [*entries, *([("not explained", left_s, None)] if left_s else [])]

    def words(seconds: float) -> str:
        return f"{human_duration(seconds)}, {100 * seconds / whole_s:.1f}%"

    shares = [
        Share(name, seconds, colour, words(seconds))
        for name, seconds, colour in named
        if seconds >= SMALLEST_SHARE * whole_s
    ]
    svg = both(lambda width: share_chart(shares, width=width, description="shares of the time"))
    rows = [[name, human_duration(seconds), f"{100 * seconds / whole_s:.1f}%"] for name, seconds, _ in named]
    rows.append(["together", human_duration(whole_s), "100%"])
    return Figure("", svg, time_words(account, has_restarts=has_restarts), Table(["", "time", "share"], rows))


def time_words(account: Account, *, has_restarts: bool) -> str:
    """What the parts are, and what may be in the one that nobody measured."""
    words = "Measured by the worker and by the command that ran it."
    if account.total_s is None:
        return words + " How long the whole took was not kept, so what is missing here is unknown."
    if account.in_stages_s is not None:
        inside = f"{human_duration(account.in_stages_s)} of it inside the stages: starting workers, reading weights"
        words += f" Not explained is what no clock was on, {inside}"
    else:
        words += " Not explained is what no clock was on: planning, starting workers, reading weights"
    return words + (", and steps that were lost in restarts." if has_restarts else ".")


def skills_figure(starter: Mapping[str, Any]) -> Figure:
    """Held-out skills as bars with 95 % intervals, the mean below."""
    bars = [
        Bar(name, 100 * entry["score"], 100 * entry["low"], 100 * entry["high"], percent(entry, entry["score"]))
        for name, entry in starter["skills"].items()
    ]
    mean = Bar(
        "mean", 100 * starter["mean"], 100 * starter["low"], 100 * starter["high"], percent(starter, starter["mean"]),
        colour=6, is_total=True,
    )  # fmt: skip
    axis = Axis("right answers, %", 0.0, 100.0)
    shown = ", ".join(f"{bar.name} {bar.value:.0f}%" for bar in [*bars, mean])
    svg = both(lambda width: bar_chart([*bars, mean], axis=axis, width=width, description=f"skills: {shown}"))
    counts = sorted({entry["num_items"] for entry in starter["skills"].values()})
    each = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
    words = (
        f"{each} questions per skill about names, words and numbers that training never showed; "
        "greedy answers, right only if equal to the letter. Lines: 95% intervals."
    )
    rows = [
        [name, f"{100 * e['score']:.1f}%", f"{100 * e['low']:.1f}%", f"{100 * e['high']:.1f}%", f"{e['num_items']:,}"]
        for name, e in starter["skills"].items()
    ]
    ends = (f"{100 * starter[key]:.1f}%" for key in ("mean", "low", "high"))
    numbers = Table(["skill", "right", "low", "high", "questions"], [*rows, ["mean", *ends, ""]])
    return Figure("Skills", svg, words, numbers)


def percent(interval: Mapping[str, Any], value: float) -> str:
    """86.0% [81, 90]"""
    return f"{100 * value:.1f}% [{100 * interval['low']:.0f}, {100 * interval['high']:.0f}]"


def with_interval(value: Mapping[str, Any]) -> str:
    """0.662 [0.639, 0.686]"""
    return f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


def share_words(score: Mapping[str, Any]) -> str:
    """A share of right answers with its interval: 45.0% [38.2, 52.0]."""
    value = score.get("score", score.get("mean"))
    assert value is not None, "an evaluation has a score or a mean"
    return f"{100 * value:.1f}% [{100 * score['low']:.1f}, {100 * score['high']:.1f}]"
