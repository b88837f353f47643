"""What was seen behind the profile, as signals: constants made anew, odd sizes, processes that train together"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from intone.paths import read_json

SHORT = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16", "float64": "fp64"}


def late_signals(found: Mapping[str, Any], step_s: float | None, num_steps: int, folder: Path) -> dict[str, Any]:
    """Fields of Signals in what the probe, or the clocks in our worker, wrote: {} where they came not so far.

    num_steps: steady ones that were looked at. folder: that places are told from.
    """
    signals: dict[str, Any] = {}
    constants = found["constants"]
    if constants and step_s:
        signals["constant_share"] = min(1.0, sum(row[0] for row in constants) / step_s)
        _, _, path, line = constants[0]
        signals["constant_place"] = f"{shortened(path, folder)}:{line}"
    odd = max(found["twins"], key=lambda one: one["share"] * (1 - 1 / one["gain"]), default=None)
    if odd is not None:
        signals["odd_product"] = (words_of(odd), odd["share"], odd["gain"])
    kept = found.get("swaps", {}).get("kept")
    if kept is not None:
        signals |= {"kept_gain": kept[0], "kept_bytes": kept[1]}
    team = found.get("team")
    if team and team["num_processes"] > 1:
        signals["num_processes"] = team["num_processes"]
        signals["exchanges_per_step"] = found["exchanges"] / num_steps if num_steps else None
        own_s = team.get("own_s", {})
        # the others of another machine wrote theirs there
        if len(own_s) == team["num_processes"]:
            times = tuple(own_s[str(rank)] for rank in range(len(own_s)))
            signals["rank_step_s"] = times
            signals["exchange_share"] = max(0.0, 1.0 - max(times) / team["with_s"])
    return signals


def words_of(odd: Mapping[str, Any]) -> str:
    """The sizes of a product and of its twin: 64 x 768 x 50,257 in fp32, beside 64 x 768 x 50,304."""
    count, *sizes = odd["sizes"]
    plain, twin = (" x ".join(f"{size:,}" for size in one) for one in (sizes, odd["twin"][1:]))
    times = f"{count:,} times " if count > 1 else ""
    return f"{times}{plain} in {SHORT[odd['dtype']]}, beside {twin}"


def shortened(path: str, folder: Path) -> str:
    """The path as seen from the folder, where it lies below it."""
    place = Path(path)
    return str(place.relative_to(folder)) if place.is_relative_to(folder) else path


def rank_files(out: Path) -> list[Path]:
    """Where the processes of a team say how long their own work takes, beside what the first one writes."""
    return sorted(out.parent.glob(f"{out.name}.rank*"))


def with_ranks(found: dict[str, Any], out: Path) -> dict[str, Any]:
    """What the probe wrote, with the own work of every process in its team."""
    rows = [read_json(path) for path in rank_files(out)]
    if found.get("team"):
        found["team"]["own_s"] = {str(row["rank"]): row["own_s"] for row in rows}
    return found
