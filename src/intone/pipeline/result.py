"""What came out of a run: the result object for machines, and what a person reads at the end"""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from intone.config import TrainJob
from intone.log import human_bytes, human_count, human_duration, say, table, three_digits
from intone.model.cost import train_flops_per_token
from intone.paths import read_json
from intone.pipeline.plan_files import EVAL_FOLDER, FORECAST
from intone.prepare import epochs_of
from intone.records import read_log
from intone.runs import Run

LATE = 1.1  # of the planned minutes: a run that takes longer says so


def collect_result(run: Run, *, seconds: float, peak_bytes: int) -> dict[str, Any]:
    """The result object of `run --json`."""
    path = run.folder / EVAL_FOLDER / "eval.json"
    skills = read_json(path).get("starter") if path.exists() else None
    if skills is not None:
        skills = {key: value for key, value in skills.items() if key != "wrong"}
    return {
        "minutes": seconds / 60,
        "peak_bytes": peak_bytes,
        "bpb": stage_bpb(run, "base"),
        "starter": skills,
        "stages": [stage_summary(run, stage) for stage in run.stages],
        "chat": f"intone chat --from {run.name}",
    }


def stage_bpb(run: Run, stage: str) -> dict[str, Any] | None:
    """Bits per byte at the end of a stage on its validation text, with its interval."""
    path = run.stage_folder(stage) / "eval.json"
    bpb = read_json(path).get("bpb") if path.exists() else None
    return {key: bpb[key] for key in ("value", "low", "high")} if bpb else None


def stage_summary(run: Run, stage: str) -> dict[str, Any]:
    """What a stage did: seconds in steps, tokens, tokens per second, steps, and its share of the machine's rate."""
    rows = read_log(run.stage_folder(stage) / "log.jsonl", "step")
    job = TrainJob.from_json(read_json(run.stage_folder(stage) / "config.json"))
    seconds = sum(row["step_s"] for row in rows)
    tokens = rows[-1]["tokens"] if rows else 0
    mfu = None
    if job.peak_flops and rows and job.rollouts is None:
        typical_s = statistics.median(row["step_s"] for row in rows)
        flops = train_flops_per_token(job.model, job.context) * job.rows_per_step * job.context
        mfu = flops / typical_s / job.peak_flops
    return {
        "stage": stage,
        "seconds": seconds,
        "tokens": tokens,
        "tokens_per_s": tokens / seconds if seconds else None,
        "steps": len(rows),
        "loss": next((row["loss"] for row in reversed(rows) if row["loss"] is not None), None),
        "data": epochs_of(read_json(run.stage_folder(stage) / "config.json"), tokens),
        "skipped": sum(row["skipped"] for row in rows),
        "mfu": mfu,  # at the median step
        **(rollout_summary(rows) if job.rollouts is not None else {}),
    }


def rollout_summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What a reinforcement stage wrote: answers, the share right in its first and last tenth of the steps, and time."""
    found = [row["rollouts"] for row in rows]
    tenth = max(1, len(found) // 10)
    groups, seconds = sum(entry["groups"] for entry in found), sum(row["step_s"] for row in rows)
    return {
        "answers": sum(entry["answers"] for entry in found),
        "right_first": statistics.fmean(entry["right"] for entry in found[:tenth]) if found else None,
        "right_last": statistics.fmean(entry["right"] for entry in found[-tenth:]) if found else None,
        "even_groups_share": sum(entry["even_groups"] for entry in found) / groups if groups else None,
        "cut": sum(entry["cut"] for entry in found),
        "rollout_share": sum(entry["rollout_s"] for entry in found) / seconds if seconds else None,
    }


def stage_answers(run: Run, stage: str) -> dict[str, Any] | None:
    """Held-out questions of a reinforcement stage: {"before", "after"}, each as `starter` of a run; None elsewhere."""
    path = run.stage_folder(stage) / "eval.json"
    found = read_json(path) if path.exists() else {}
    if "answers" not in found:
        return None
    sides = {"before": found.get("before"), "after": found["answers"]}
    return {
        side: value and {key: entry for key, entry in value.items() if key != "wrong"} for side, value in sides.items()
    }


def answers_lines(answers: Mapping[str, Any]) -> list[str]:
    """Held-out questions before and after a reinforcement stage, kind by kind."""
    before, after = answers["before"], answers["after"]
    kinds = {**after["skills"], "mean": after}
    rows = []
    for name, now in kinds.items():
        then = before and (before if name == "mean" else before["skills"].get(name))
        rows.append([name, *(score_words(entry) for entry in (then, now)), str(now.get("num_items", ""))])
    return ["", table(rows, header=["held-out questions", "right before", "right after", "questions"])]


def score_words(score: Mapping[str, Any] | None) -> str:
    """A share right with its interval: 45.0% [38, 52]."""
    if not score:
        return "unknown"
    value = score.get("score", score.get("mean"))
    return f"{100 * value:.1f}% {interval(score)}"


def write_page(run: Run) -> Path | None:
    """The run's report.html, with its Markdown and JSON; None where it could not be written, which is said."""
    try:
        from intone.report.write import write_run_report  # here: a package that is missing must not fail a run either

        return write_run_report(run.folder).html
    except Exception as error:  # a finished run must not fail for the sake of its page, whatever is wrong with it
        say(f"the report was not written ({type(error).__name__}: {error}); try: intone report {run.name}")
        return None


def run_text(run: Run, result: Mapping[str, Any], page: Path | None) -> str:
    """What a person reads at the end: stages, skills, an honest word, its page, and the next command."""
    lines = [stages_table(result), ""]
    bpb = result["bpb"]
    if bpb:
        span = f"[{bpb['low']:.3f}, {bpb['high']:.3f}]"
        lines.append(f"base model: {bpb['value']:.3f} bits per byte {span} on validation text")
    if result["starter"]:
        lines += [skills_table(result["starter"]), "", honest_word(result["starter"])]
    elif answers := stage_bpb(run, "sft"):
        lines += [
            f"chat model: {answers['value']:.3f} bits per byte of the answers in the validation conversations",
            "Starter skills were not asked: its conversations were your own. A model of this size trained for minutes "
            "picks up form and frequent words, not facts.",
        ]
    lines += late_word(run, result["minutes"])
    lines += [
        f"{three_digits(result['minutes'])} minutes, peak memory {human_bytes(result['peak_bytes'])}, in {run.folder}",
        *([] if page is None else [f"report: {page}"]),
        f"next: {result['chat']}",
    ]
    return "\n".join(lines)


def late_word(run: Run, minutes: float) -> list[str]:
    """One line where a run took clearly longer than was planned, else none."""
    forecast = read_json(run.folder / FORECAST)
    planned = forecast["minutes"]
    if minutes - forecast.get("fetch_s", 0.0) / 60 <= LATE * planned:
        return []
    return [
        f"{three_digits(minutes)} minutes instead of {planned:g}: its steps became slower after the last look at them, "
        "or it was started more than once"
    ]


def stages_table(result: Mapping[str, Any]) -> str:
    rows = [
        [
            entry["stage"],
            f"{entry['steps']:,}",
            human_count(entry["tokens"]),
            "unknown" if entry["tokens_per_s"] is None else f"{entry['tokens_per_s']:,.0f}",
            "-" if entry["loss"] is None else f"{entry['loss']:.3f}",
            human_duration(entry["seconds"]),
        ]
        for entry in result["stages"]
    ]
    return table(rows, header=["stage", "steps", "tokens", "tokens/s", "last loss", "time"])


def skills_table(starter: Mapping[str, Any]) -> str:
    rows = [
        [name, f"{100 * skill['score']:.1f}%", interval(skill), str(skill["num_items"])]
        for name, skill in starter["skills"].items()
    ]
    rows.append(["mean", f"{100 * starter['mean']:.1f}%", interval(starter), ""])
    return table(rows, header=["held-out skill", "right", "interval", "questions"])


def interval(score: Mapping[str, Any]) -> str:
    """The ends of a score's interval in percent: [81, 93]."""
    return f"[{100 * score['low']:.0f}, {100 * score['high']:.0f}]"


def honest_word(starter: Mapping[str, Any]) -> str:
    """What the model can and cannot do, from its scores alone."""
    skills = starter["skills"]
    good = [name for name, skill in skills.items() if skill["score"] >= 0.9]
    middling = [name for name, skill in skills.items() if 0.5 <= skill["score"] < 0.9]
    poor = [name for name, skill in skills.items() if skill["score"] < 0.5]
    parts = []
    if good:
        parts.append(f"It is reliable at {', '.join(good)}.")
    if middling:
        parts.append(f"It is often right at {', '.join(middling)}.")
    if poor:
        parts.append(f"It is mostly wrong at {', '.join(poor)}: train longer (--minutes).")
    parts.append("It knows a small world only: other topics get confident nonsense.")
    return " ".join(parts)
