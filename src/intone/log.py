"""How numbers, sizes and durations are written for people, and lines on stderr for progress."""

import sys


def say(line: str = "") -> None:
    """One line of progress on stderr; results go to stdout by print."""
    print(line, file=sys.stderr, flush=True)


def three_digits(value: float) -> str:
    """A number with three significant digits and thousands commas: 0.0123, 3.21, 1,230."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    text = f"{value:.3g}"
    return f"{float(text):.5f}".rstrip("0").rstrip(".") if "e" in text else text


def human_count(value: float) -> str:
    """443k, 2.61M, 178M; below 10,000 the number itself with commas."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size and (unit != "k" or abs(value) >= 1e4):
            return f"{three_digits(value / size)}{unit}"
    return f"{value:,.0f}"


def human_bytes(value: float | None) -> str:
    """GiB (or MiB below 0.1 GiB) with three digits; None is "unknown"."""
    if value is None:
        return "unknown"
    gib = value / 2**30
    return f"{three_digits(gib)} GiB" if gib >= 0.1 else f"{three_digits(value / 2**20)} MiB"


def human_duration(seconds: float | None) -> str:
    """45 s, 3 min 20 s, 2 h 5 min, 3 days 4 h; None is "unknown"."""
    if seconds is None:
        return "unknown"
    if seconds < 10:
        return f"{three_digits(seconds)} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s" if whole < 600 else f"{round(whole / 60)} min"
    if whole < 48 * 3600:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} days {whole % 86400 // 3600} h"


def table(rows: list[list[str]], *, header: list[str], left: int = 1) -> str:
    """A plain text table: the first `left` columns left, the others right aligned, two spaces between."""
    everything = [header, *rows]
    widths = [max(len(row[i]) for row in everything) for i in range(len(header))]
    lines = []
    for row in everything:
        cells = [
            cell.ljust(w) if i < left else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
