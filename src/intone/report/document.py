"""What a report says, apart from how it looks: sections of text, tables, figures and commands, rendered three ways.

In prose and captions a part between `backticks` is code; everything else is plain text that the renderers escape.
Foreign text (what a model wrote, names of files) goes into tables, commands and samples, where nothing is markup.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Prose:
    """A paragraph."""

    words: str


@dataclass(frozen=True)
class KeyFigures:
    """A few numbers that a reader should take away: (value, what it is, a word about it)."""

    entries: Sequence[tuple[str, str, str]]


@dataclass(frozen=True)
class Table:
    """Columns and rows of text; the first `left` columns are aligned left. folded: behind a line to click."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: int = 1
    caption: str = ""
    folded: bool = False
    stacked: bool = False  # on a telephone a row becomes a block of lines


@dataclass(frozen=True)
class Figure:
    """A chart with its caption, and its numbers as a table for readers of Markdown and screens without pictures."""

    title: str
    svg: str  # markup of ours, not escaped again
    caption: str
    numbers: Table | None = None


@dataclass(frozen=True)
class Commands:
    """Lines to type, each with what it does."""

    lines: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Sample:
    """What a model made of a prompt; wanted: the right answer where there is one."""

    prompt: str
    answer: str
    label: str = ""
    wanted: str = ""


@dataclass(frozen=True)
class Samples:
    """Texts of a model. folded: behind a line to click, which is title."""

    title: str
    entries: Sequence[Sample]
    folded: bool = False


Block = Prose | KeyFigures | Table | Figure | Commands | Samples


@dataclass(frozen=True)
class Section:
    """A heading with blocks under it; anchor is its place in the address bar."""

    title: str
    anchor: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Document:
    """A whole report. data is its JSON form, which holds every number that the page shows."""

    kind: str  # run | comparison | results | round
    title: str
    subtitle: str
    sections: Sequence[Section]
    data: dict[str, Any]
    lead: Sequence[Block] = field(default=())
    footer: str = ""
