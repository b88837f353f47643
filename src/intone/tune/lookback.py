"""Whether a micro-batch that was remembered still does what it did: its run's first steps are the look at it"""

from pathlib import Path

from intone.hardware import Facts, load_facts
from intone.log import human_bytes, say
from intone.records import Choice, read_choices, read_log
from intone.tune.found import Found
from intone.tune.settle_batch import QUESTION, found_in
from intone.tune.trials import Trials

STEPS = 12  # that are looked at, after the first, which allocates
DRIFT_S = 0.10  # a step may take so much longer than in the search (training.md 3.2); the fastest of each are compared
DRIFT_BYTES = 0.10  # so much more memory: what two processes of equal steps differ by on a CPU's heap (LOG.md)


def look_back(folder: Path, facts: Facts | None = None) -> str | None:
    """Why the remembered micro-batch of the job in folder no longer holds; then its answer is forgotten. None: it does.

    Nothing is said of a micro-batch that was not remembered, or not used for long enough.
    """
    choices = read_choices(folder)
    chosen = choices.settings.get("device_batch")
    found = None if chosen is None or chosen.origin != "cached" else found_in(chosen)
    if chosen is None or chosen.measured is None or found is None or choices.segments[0].device_batch != found.rows:
        return None
    until = choices.segments[1].from_step if len(choices.segments) > 1 else None
    rows = [row for row in read_log(folder / "log.jsonl", "step")[: STEPS + 1] if until is None or row["step"] <= until]
    why = drift(found, [row["step_s"] for row in rows[1:]], [row["peak_bytes"] for row in rows])
    if why is not None:
        trials = Trials(facts or load_facts())
        trials.record("device_batch", chosen.measured[QUESTION], Choice(None, f"forgotten: {why}", "measured"))
        say(f"the micro-batch of an earlier search is searched again next time: {why}")
    return why


def drift(found: Found, step_s: list[float], peak_bytes: list[int | None]) -> str | None:
    """What is no longer as the search saw it, in words."""
    if len(step_s) < STEPS:
        return None
    fastest = min(step_s)
    if fastest > (1 + DRIFT_S) * found.step_s:
        return f"its fastest step took {fastest:.3g} s, in the search {found.step_s:.3g} s"
    peaks = [peak for peak in peak_bytes if peak is not None]
    if not peaks or found.start_bytes is None or found.predicted_bytes is None:
        return None
    expected = found.start_bytes + found.predicted_bytes
    if max(peaks) > (1 + DRIFT_BYTES) * expected:
        return f"it takes {human_bytes(max(peaks))}, in the search {human_bytes(expected)}"
    return None
