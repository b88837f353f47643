"""The curve of a batch search in words: what every micro-batch costs, why this one, what was left on the table."""

from intone.log import human_bytes, human_duration, table
from intone.tune.found import Found


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


def curve_text(found_: Found, tokens_per_step: int, *, unit: str = "tokens/s") -> str:
    """The curve as a table, the reason, and what was left on the table."""
    header = ["micro-batch", "passes", unit, "memory growth", "% of best", "known by"]
    lines = [table(describe(found_, tokens_per_step), header=header), ""]
    lines += [f"device_batch {found_.rows}: {found_.reason}", f"left on the table: {found_.left}", summary(found_)]
    return "\n".join(lines)
