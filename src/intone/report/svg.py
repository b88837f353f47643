"""SVG as text: elements with escaped attributes, polylines thinned to what a screen can show."""

import html
from collections.abc import Sequence

Points = Sequence[tuple[float, float]]


def element(name: str, *content: str, **attributes: str | float | None) -> str:
    """One element. content is markup (see text()); an attribute class_ is class, stroke_width is stroke-width.

    Attributes that are None are left out; numbers get at most one decimal, which is a tenth of a pixel.
    """
    words = [name]
    for key, value in attributes.items():
        if value is not None:
            shown = html.escape(value) if isinstance(value, str) else number(value)
            words.append(f'{key.rstrip("_").replace("_", "-")}="{shown}"')
    opening = " ".join(words)
    return f"<{opening}>{''.join(content)}</{name}>" if content else f"<{opening}/>"


def text(words: str, **attributes: str | float | None) -> str:
    """A text element with its words escaped."""
    return element("text", html.escape(words, quote=False), **attributes)


def tip(words: str) -> str:
    """What a pointer over the surrounding element shows."""
    return element("title", html.escape(words, quote=False))


def number(value: float) -> str:
    """A coordinate: one decimal at most."""
    shown = f"{value:.1f}"
    return shown[:-2] if shown.endswith(".0") else shown


def path(points: Points) -> str:
    """The d attribute of a line through points."""
    return "M" + "L".join(f"{number(x)} {number(y)}" for x, y in points)


def thinned(points: Points, columns: int) -> list[tuple[float, float]]:
    """A line that looks the same drawn over this many columns of pixels: lowest and highest point of each column.

    points are sorted by x. Fewer than twice as many points as columns stay as they are.
    """
    if len(points) <= 2 * columns:
        return list(points)
    first, last = points[0][0], points[-1][0]
    width = (last - first) / columns or 1.0
    groups: list[list[tuple[float, float]]] = [[] for _ in range(columns)]
    for point in points:
        groups[min(columns - 1, int((point[0] - first) / width))].append(point)
    kept: list[tuple[float, float]] = []
    for group in filter(None, groups):
        ends = {min(group, key=lambda p: p[1]), max(group, key=lambda p: p[1])}
        kept += sorted(ends)
    return kept
