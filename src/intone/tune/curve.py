"""The curve of a batch search in words: what every micro-batch costs, why this one, what was left on the table."""

from typing import TYPE_CHECKING

from intone.log import human_bytes, human_duration, table
from intone.tune.found import Found

if TYPE_CHECKING:
    from intone.tune.batch import Search


def describe(found_: Found, tokens_per_step: int) -> list[list[str]]:
    """Rows of the curve for people: micro-batch, passes, tokens/s, memory, % of best, how it is known."""
    known = [size.step_s for size in found_.curve if size.step_s]
    lines = []
    for size in found_.curve:
        mark = "*" if size.rows == found_.rows else ""
        if size.step_s is None:
            lines.append([f"{size.rows}{mark}", str(size.passes), "-", "-", "-", size.how])
            continue
        rate, share = tokens_per_step / size.step_s, min(known) / size.step_s
        memory = human_bytes(size.growth_bytes)
        lines.append([f"{size.rows}{mark}", str(size.passes), f"{rate:,.0f}", memory, f"{share:.1%}", size.how])
    return lines


def summary(found_: Found) -> str:
    """One line about the search itself."""
    ooms = f"{found_.num_out_of_memory} out of memory"
    return f"{found_.method}: {found_.num_probes} probes, {ooms}, {human_duration(found_.seconds)}"


def curve_text(
    found_: Found, tokens_per_step: int, *, unit: str = "tokens/s", name: str = "device_batch"
) -> str:  # fmt: skip
    """The curve as a table, the reason, and what was left on the table. name: of the setting that is chosen."""
    header = ["micro-batch", "passes", unit, "memory growth", "% of best", "known by"]
    lines = [table(describe(found_, tokens_per_step), header=header), ""]
    lines += [f"{name} {found_.rows}: {found_.reason}", f"left on the table: {found_.left}", summary(found_)]
    return "\n".join(lines)


def left_on_the_table(search: "Search", rows: int, worth: float) -> str:
    """What another choice could have given, in seconds and in memory. worth: gains up to this share are not told."""
    parts = []
    beyond = [size for size in search.sizes if not search.fits(size) and size not in search.failed]
    beyond = beyond if search.is_on_line() else []
    if beyond:
        size = min(beyond, key=search.step_s)
        gain = search.step_s(rows) / search.step_s(size) - 1
        if gain > worth:
            parts.append(f"{size} rows would be {gain:.1%} faster by the line, and do not fit")
    inside = search.known()
    if inside:
        gain = search.step_s(rows) / min(search.step_s(size) for size in inside) - 1
        if gain > 0:
            parts.append(f"{gain:.1%} of speed against the fastest size that fits")
    growth = search.growth_at(rows)
    if growth is not None and search.free_bytes:
        parts.append(f"{1 - growth / search.free_bytes:.0%} of free memory is not used")
    return "; ".join(parts) or "nothing that was seen"


def reason_for(search: "Search", rows: int, method: str, worth: float, margin: float) -> str:
    """Why this size. worth: what is within this share of the best is as good; margin: what bisection leaves free."""
    sizes = search.known() or [rows]
    fastest = min(sizes, key=lambda size: (search.step_s(size), size))
    share = search.step_s(fastest) / search.step_s(rows)
    if method == "bisect":
        first = f"the largest of {len(search.samples)} measured sizes that leaves {margin:.0%} of memory"
    elif fastest == rows or share >= 1:
        first = "the fastest step"
    elif search.computed(fastest) > search.computed(rows):
        first = f"pads less than {fastest}, whose step looked {1 - share:.1%} faster"
    else:
        first = f"the smallest within {worth:.0%} of the best step ({share:.1%} of that with {fastest})"
    growth = search.growth_at(rows)
    need = "" if growth is None else f", {human_bytes(growth)} of {human_bytes(search.free_bytes)} free"
    return f"{first}: {search.step_s(rows):.3g} s in {human_passes(search.computed(rows) // rows)}{need}"


def human_passes(number: int) -> str:
    return "1 pass" if number == 1 else f"{number:,} passes"
