"""Where the time of a run went, from its log and what the supervisor kept; what nobody measured is not explained."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from intone.report.curves import steady
from intone.report.record import RunRecord, StageRecord

PLANNING, EVALUATION = "planning", "evaluation"  # phases of spent.json beside the stages
# kind -> words; in the order of a report
KINDS = {
    "planning": "tokenizer, data and tuning",
    "steps": "training steps",
    "data": "waiting for data",
    "rollouts": "writing answers to learn from",
    "first": "first steps (compiling)",
    "evaluations": "evaluations and samples",
    "saves": "saves",
    "questions": "final evaluation",
}


@dataclass(frozen=True)
class Account:
    """Seconds by kind (keys of KINDS; those that were measured), and of the whole, None where that is unknown."""

    parts: Mapping[str, float]
    total_s: float | None
    in_stages_s: float | None  # of what is not explained: inside the stages' workers, None where unknown

    @property
    def unexplained_s(self) -> float | None:
        """What is left of the whole, never below zero."""
        return None if self.total_s is None else max(0.0, self.total_s - sum(self.parts.values()))


def time_account(record: RunRecord) -> Account:
    """The account of a run, or of the one stage that was asked for."""
    phases: Mapping[str, float] = (record.spent or {}).get("phases") or {}
    parts = {kind: 0.0 for kind in KINDS}
    for stage in record.started:
        for kind, seconds in stage_seconds(stage).items():
            parts[kind] += seconds
    if not record.is_part:
        parts["planning"] = phases.get(PLANNING, 0.0)
        parts["questions"] = phases.get(EVALUATION, 0.0)
    known = {kind: seconds for kind, seconds in parts.items() if seconds > 0}
    names = [stage.stage for stage in record.stages]
    in_stages_s = None
    if all(name in phases for name in names):
        inside = sum(seconds for kind, seconds in known.items() if kind not in ("planning", "questions"))
        in_stages_s = max(0.0, sum(phases[name] for name in names) - inside)
    return Account(known, whole_seconds(record, phases), in_stages_s)


def stage_seconds(stage: StageRecord) -> dict[str, float]:
    """Seconds of one stage by kind, as its log tells them."""
    rows = stage.steps
    even = steady(rows)
    typical_s = sum(row["step_s"] for row in even) / len(even) if even else 0.0
    slow = rows[: len(rows) - len(even)]
    first_s = sum(row["step_s"] - typical_s for row in slow)
    data_s = sum(row["data_s"] for row in even)
    return {
        "steps": sum(row["step_s"] for row in rows) - first_s - data_s,
        "rollouts" if is_rewarded(stage) else "data": data_s,
        "first": first_s,
        "evaluations": sum(row["seconds"] for row in stage.evals),
        "saves": _seconds_of(stage.events, "save"),
    }


def is_rewarded(stage: StageRecord) -> bool:
    """Whether a stage learned from its own answers: what its steps wait for is their writing."""
    return any(row.get("rollouts") for row in stage.steps[:1])


def _seconds_of(events: Sequence[Mapping[str, Any]], name: str) -> float:
    return sum(row.get("seconds") or 0.0 for row in events if row["event"] == name)


def whole_seconds(record: RunRecord, phases: Mapping[str, float]) -> float | None:
    """Seconds of what the report is about by the clock, over all processes that worked on it."""
    if record.is_part:
        return phases.get(record.stages[0].stage)
    result = record.run.result or {}
    if record.run.state == "done" and result.get("minutes") is not None:
        return 60 * float(result["minutes"])
    return (record.spent or {}).get("seconds")
