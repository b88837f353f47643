"""The charts of a report, drawn as inline SVG: lines over steps, bars with intervals, shares of a whole, ratios.

Colours are CSS classes (c1 to c6 fill, s1 to s6 stroke) that the page defines for light, dark and paper. Every chart
is drawn for a given width, once for a desk and once for a telephone, so that its text keeps its size.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from intone.report.axes import Scale, linear_scale, log_scale, tick_labels
from intone.report.svg import element, number, path, text, thinned, tip

WIDE, NARROW = 760, 344  # pixels: the column of the page on a desk, and on a telephone 376 wide
LETTER = 6.7  # width of a letter of 12 px in common sans-serif fonts, with a little to spare
NUM_TIPS = 48  # strips of a line chart that answer a pointer
BAR_HEIGHT, ROW_HEIGHT = 12, 26

Draw = Callable[[int], str]


@dataclass(frozen=True)
class Axis:
    """What an axis shows; low and high None: from the data. An axis with low 0 begins there."""

    label: str
    low: float | None = None
    high: float | None = None
    is_log: bool = False


@dataclass(frozen=True)
class Line:
    """Points sorted by x. faint: every single value; bold: the average that is meant; dots: a few measured values."""

    points: Sequence[tuple[float, float]]
    colour: int
    weight: Literal["faint", "bold", "dots"] = "bold"
    name: str = ""  # in the legend; empty: not there


@dataclass(frozen=True)
class Span:
    """A named stretch of the x axis."""

    begin: float
    end: float
    name: str
    colour: int


@dataclass(frozen=True)
class Tip:
    """What a pointer between two x values shows."""

    begin: float
    end: float
    words: str


@dataclass(frozen=True)
class Bar:
    """A measured value with the ends of its interval; shown is the value in words."""

    name: str
    value: float
    low: float | None
    high: float | None
    shown: str
    colour: int = 1
    is_total: bool = False  # set apart from those before


@dataclass(frozen=True)
class Share:
    """A part of a whole; unexplained parts are hatched, not coloured."""

    name: str
    value: float
    colour: int | None
    shown: str


@dataclass(frozen=True)
class Ratio:
    """A factor with its interval, beside a band in which a factor says nothing."""

    name: str
    value: float
    low: float
    high: float
    shown: str
    noise: tuple[float, float] | None = None
    colour: int = 1


def both(draw: Draw) -> str:
    """A chart for wide and for narrow screens; the page shows one of them."""
    wide = element("div", draw(WIDE), class_="wide")
    return wide + element("div", draw(NARROW), class_="narrow")


def canvas(width: int, height: float, description: str, *content: str) -> str:
    """The svg element; description is what somebody hears who cannot see it."""
    return element(
        "svg", *content, viewBox=f"0 0 {width} {number(height)}", role="img", aria_label=description,
        class_="chart", xmlns="http://www.w3.org/2000/svg",
    )  # fmt: skip


def line_chart(
    lines: Sequence[Line], *, x: Axis, y: Axis, width: int, description: str, height: int = 250,
    spans: Sequence[Span] = (), tips: Sequence[Tip] = (),
) -> str:  # fmt: skip
    """Lines over a shared x axis; spans are marked behind them and named above. Lines without points are left out."""
    lines = [line for line in lines if line.points]
    all_x, all_y = ([point[i] for line in lines for point in line.points] for i in (0, 1))
    top, bottom = 34.0, height - 40.0
    y_scale = _scale(y, all_y, bottom, top, num_ticks=5)
    left = 10.0 + LETTER * max(map(len, y_scale.labels))
    x_scale = _scale(x, all_x, left, width - 12.0, num_ticks=max(3, width // 110), exact=True)
    parts = [*_grid(x_scale, y_scale, x, y, width=width, height=height, top=top), *_spans(spans, x_scale, top, bottom)]
    for line in lines:
        parts.append(_line(line, x_scale, y_scale))
    parts += _legend(lines, right=width - 12.0)
    for entry in tips:
        begin, end = x_scale(entry.begin), x_scale(entry.end)
        box = dict(x=begin, y=top, width=max(end - begin, 0.5), height=bottom - top)
        parts.append(element("rect", tip(entry.words), class_="strip", **box))
    return canvas(width, height, description, *parts)


def _scale(
    axis: Axis, values: Sequence[float], start: float, end: float, *, num_ticks: int, exact: bool = False
) -> Scale:
    low = min(values) if axis.low is None else axis.low
    high = max(values) if axis.high is None else axis.high
    if axis.is_log:
        return log_scale(low, high, start, end, num_ticks=num_ticks + 1)
    return linear_scale(low, high, start, end, num_ticks=num_ticks, exact=exact)


def _grid(
    x_scale: Scale, y_scale: Scale, x: Axis, y: Axis, *, width: int, height: int, top: float
) -> list[str]:
    """Horizontal lines, tick labels and the names of both axes."""
    parts = [text(y.label, x=0, y=11, class_="axis-name")]
    for value, label in zip(y_scale.ticks, y_scale.labels, strict=True):
        place = y_scale(value)
        parts.append(element("line", x1=x_scale.start, x2=x_scale.end, y1=place, y2=place, class_="grid"))
        parts.append(text(label, x=x_scale.start - 7, y=place + 4, text_anchor="end", class_="tick"))
    bottom = y_scale.start
    parts.append(element("line", x1=x_scale.start, x2=x_scale.end, y1=bottom, y2=bottom, class_="axis"))
    for value, label in zip(x_scale.ticks, x_scale.labels, strict=True):
        place = x_scale(value)
        parts.append(element("line", x1=place, x2=place, y1=bottom, y2=bottom + 4, class_="axis"))
        parts.append(text(label, x=place, y=bottom + 17, text_anchor="middle", class_="tick"))
    parts.append(text(x.label, x=width - 12, y=height - 4, text_anchor="end", class_="axis-name"))
    return parts


def _spans(spans: Sequence[Span], x_scale: Scale, top: float, bottom: float) -> list[str]:
    """A line where each stretch begins, and its name above; a name that has no room is left to the pointer."""
    parts = []
    for index, span in enumerate(spans):
        begin, end = x_scale(span.begin), x_scale(span.end)
        if index:
            parts.append(element("line", x1=begin, x2=begin, y1=top - 12, y2=bottom, class_="border"))
        if end - begin > LETTER * len(span.name) + 6:
            parts.append(text(span.name, x=begin + 5, y=top - 5, class_=f"span c{span.colour}"))
    return parts


def _line(line: Line, x_scale: Scale, y_scale: Scale) -> str:
    points = [(x_scale(x), y_scale(y)) for x, y in line.points]
    if line.weight == "dots":
        dots = [
            element("circle", tip(f"{line.name} {shown:.4g}"), cx=x, cy=y, r=3.5, class_=f"dot c{line.colour}")
            for (x, y), (_, shown) in zip(points, line.points, strict=True)
        ]
        thread = element("path", d=path(points), class_=f"line thread s{line.colour}")
        return element("g", thread, *dots)
    columns = max(1, round(x_scale.end - x_scale.start))
    return element("path", d=path(thinned(points, columns)), class_=f"line {line.weight} s{line.colour}")


def _legend(lines: Sequence[Line], *, right: float) -> list[str]:
    """Names of the lines from the right, above the chart, each after a piece of its line."""
    parts = []
    for line in reversed([line for line in lines if line.name]):
        right -= LETTER * len(line.name)
        parts.append(text(line.name, x=right, y=11, class_="tick"))
        piece = path([(right - 22, 7), (right - 6, 7)])
        weight = "bold" if line.weight == "dots" else line.weight
        parts.append(element("path", d=piece, class_=f"line {weight} s{line.colour}"))
        right -= 36
    return parts


def bar_chart(bars: Sequence[Bar], *, axis: Axis, width: int, description: str) -> str:
    """Horizontal bars from zero with whiskers over their intervals, names on the left and values on the right."""
    left = 14 + LETTER * max(len(bar.name) for bar in bars)
    right = 14 + LETTER * max(len(bar.shown) for bar in bars)
    largest = max(max(bar.value, bar.high or bar.value) for bar in bars)
    high = largest if axis.high is None else axis.high
    scale = linear_scale(0.0, high, left, width - right, num_ticks=max(2, int((width - left - right) // 90)))
    extra = 10 if any(bar.is_total for bar in bars) else 0
    bottom = 22 + ROW_HEIGHT * len(bars) + extra
    parts = [text(axis.label, x=left, y=11, class_="axis-name")]
    for value, label in zip(scale.ticks, scale.labels, strict=True):
        place = scale(value)
        parts.append(element("line", x1=place, x2=place, y1=20, y2=bottom, class_="grid"))
        parts.append(text(label, x=place, y=bottom + 15, text_anchor="middle", class_="tick"))
    y = 22.0
    for bar in bars:
        if bar.is_total:
            parts.append(element("line", x1=0, x2=width, y1=y + 5, y2=y + 5, class_="axis"))
            y += 10
        parts.append(_bar(bar, scale, y, left=left, width=width))
        y += ROW_HEIGHT
    return canvas(width, bottom + 22, description, *parts)


def _bar(bar: Bar, scale: Scale, y: float, *, left: float, width: int) -> str:
    middle = y + ROW_HEIGHT / 2
    weight = " strong" if bar.is_total else ""
    parts = [
        tip(f"{bar.name}: {bar.shown}"),
        element("rect", x=0, y=y, width=width, height=ROW_HEIGHT, class_="row"),
        text(bar.name, x=left - 10, y=middle + 4, text_anchor="end", class_=f"name{weight}"),
        element(
            "rect", x=left, y=middle - BAR_HEIGHT / 2, width=max(scale(bar.value) - left, 0.5), height=BAR_HEIGHT,
            class_=f"bar c{bar.colour}",
        ),
        text(bar.shown, x=width - 2, y=middle + 4, text_anchor="end", class_=f"value{weight}"),
    ]  # fmt: skip
    if bar.low is not None and bar.high is not None:
        parts.append(_whisker(scale(bar.low), scale(bar.high), middle))
    return element("g", *parts)


def _whisker(begin: float, end: float, y: float) -> str:
    """An interval: a line with a short bar at either end."""
    left, right, top = number(begin), number(end), number(y - 4)
    ends = f"M{left} {top}v8M{right} {top}v8M{left} {number(y)}H{right}"
    return element("path", d=ends, class_="whisker")


def share_chart(shares: Sequence[Share], *, width: int, description: str) -> str:
    """One bar that is the whole, cut into its parts in order, and below it what each part is and how much."""
    whole = sum(share.value for share in shares)
    columns = 2 if width > NARROW else 1
    cell = (width - 40 * (columns - 1)) / columns
    per_column = -(-len(shares) // columns)
    parts, x = [], 0.0
    for index, share in enumerate(shares):
        size = width * share.value / whole if whole else 0.0
        kind = "hatch" if share.colour is None else f"c{share.colour}"
        column, row = divmod(index, per_column)
        left, y = column * (cell + 40), 52 + 24 * row
        parts += [
            element("g", tip(f"{share.name}: {share.shown}"),
                    element("rect", x=x, y=0, width=max(size - 1, 0.5), height=30, class_=f"part {kind}")),
            element("rect", x=left, y=y, width=11, height=11, class_=f"part {kind}"),
            text(share.name, x=left + 19, y=y + 10, class_="name"),
            text(share.shown, x=left + cell, y=y + 10, text_anchor="end", class_="value"),
        ]  # fmt: skip
        x += size
    return canvas(width, 52 + 24 * per_column, description, *parts)


def ratio_chart(ratios: Sequence[Ratio], *, axis: Axis, width: int, description: str) -> str:
    """Factors as points with whiskers on a logarithmic axis around 1; grey bands are differences that say nothing."""
    left = 14 + LETTER * max(len(ratio.name) for ratio in ratios) if width > NARROW else 4.0
    right = 14 + LETTER * max(len(ratio.shown) for ratio in ratios) if width > NARROW else 4.0
    step = 34 if width > NARROW else 52  # a telephone has the name and the value above the point
    ends = [end for r in ratios for end in (r.low, r.high, *(r.noise or ()))]
    scale = _ratio_scale(min(ends), max(ends), left, width - right, narrow=width <= NARROW)
    bottom = 24 + step * len(ratios)
    parts = [text(axis.label, x=left, y=11, class_="axis-name")]
    for value, label in zip(scale.ticks, scale.labels, strict=True):
        kind = "axis" if abs(value - 1) < 1e-9 else "grid"
        parts.append(element("line", x1=scale(value), x2=scale(value), y1=20, y2=bottom, class_=kind))
        parts.append(text(f"{label}x", x=scale(value), y=bottom + 15, text_anchor="middle", class_="tick"))
    for row, ratio in enumerate(ratios):
        parts.append(_ratio(ratio, scale, 24 + step * row, step, left=left, width=width))
    return canvas(width, bottom + 22, description, *parts)


def _ratio_scale(low: float, high: float, start: float, end: float, *, narrow: bool) -> Scale:
    """Even for factors near each other, where 1.05 must have its place; logarithmic from a factor of three on."""
    low, high = min(low, 1.0), max(high, 1.0)
    if high / low > 3:
        return log_scale(low, high, start, end, num_ticks=4 if narrow else 7)
    return linear_scale(low, high, start, end, num_ticks=4 if narrow else 7)


def _ratio(ratio: Ratio, scale: Scale, y: float, step: float, *, left: float, width: int) -> str:
    is_narrow = width <= NARROW
    middle = y + (step - 14 if is_narrow else step / 2)
    name_y = y + 14 if is_narrow else middle + 4
    parts = [tip(f"{ratio.name}: {ratio.shown}"), element("rect", x=0, y=y, width=width, height=step, class_="row")]
    if ratio.noise is not None:
        begin, end = (scale(value) for value in ratio.noise)
        band = dict(x=begin, y=middle - 10, width=max(end - begin, 1.0), height=20)
        parts.append(element("rect", class_="band", **band))
    name = shortened(ratio.name, width - LETTER * (len(ratio.shown) + 1)) if is_narrow else ratio.name
    parts += [
        text(name, x=0 if is_narrow else left - 10, y=name_y, text_anchor="start" if is_narrow else "end",
             class_="name"),
        _whisker(scale(ratio.low), scale(ratio.high), middle),
        element("circle", cx=scale(ratio.value), cy=middle, r=5, class_=f"dot c{ratio.colour}"),
        text(ratio.shown, x=width - 2, y=name_y, text_anchor="end", class_="value"),
    ]  # fmt: skip
    return element("g", *parts)


def shortened(words: str, room: float) -> str:
    """The words, or as many of their letters as fit into this many pixels before an ellipsis."""
    letters = int(room / LETTER)
    return words if len(words) <= letters else words[: max(1, letters - 1)].rstrip() + "…"


def tips_over(
    xs: Sequence[float], words: Callable[[int, int], str], *, num: int = NUM_TIPS
) -> list[Tip]:
    """Strips that cut sorted x values into at most num even groups; words(first, last) says one group, by index."""
    count = len(xs)
    cuts = [round(i * count / min(num, count)) for i in range(min(num, count) + 1)] if count else []
    tips = []
    for first, after in zip(cuts, cuts[1:], strict=False):
        begin = xs[0] if first == 0 else (xs[first - 1] + xs[first]) / 2
        end = xs[-1] if after == count else (xs[after - 1] + xs[after]) / 2
        tips.append(Tip(begin, end, words(first, after - 1)))
    return tips


__all__ = [
    "Axis", "Bar", "Line", "Ratio", "Share", "Span", "Tip", "bar_chart", "both", "line_chart", "ratio_chart",
    "share_chart", "tick_labels", "tips_over",
]  # fmt: skip
