"""A report as Markdown: the same sections with tables in place of charts, for terminals, pull requests and wikis."""

from collections.abc import Sequence

from intone.report.document import Block, Commands, Document, Figure, KeyFigures, Prose, Samples, Table


def to_markdown(document: Document) -> str:
    """The document as CommonMark with tables."""
    parts = [f"# {plain(document.title)}", document.subtitle]
    parts += [part for block in document.lead for part in _block(block)]
    for section in document.sections:
        parts.append(f"## {section.title}")
        parts += [part for block in section.blocks for part in _block(block)]
    parts.append(document.footer)
    return "\n\n".join(part for part in parts if part) + "\n"


def plain(words: str) -> str:
    """Text in which nothing is markup: in one line, with every character escaped that could mean something."""
    escaped = "".join(f"\\{letter}" if letter in "\\`*_[]<>|#~&" else letter for letter in words)
    return " ".join(escaped.split())


def _block(block: Block) -> list[str]:
    if isinstance(block, Prose):
        return [block.words]
    if isinstance(block, KeyFigures):
        rows = [f"- {name}: **{value}**{f' ({note})' if note else ''}" for value, name, note in block.entries]
        return ["\n".join(rows)]
    if isinstance(block, Table):
        return [block.caption, _table(block)]
    if isinstance(block, Figure):
        title = f"### {block.title}" if block.title else ""
        return [title, block.caption, _table(block.numbers) if block.numbers else ""]
    if isinstance(block, Commands):
        return ["```\n" + "\n".join(line for line, _ in block.lines) + "\n```"]
    return [f"### {block.title}", _samples(block)]


def _table(table: Table) -> str:
    marks = [":--" if index < table.left else "--:" for index in range(len(table.header))]
    lines: list[Sequence[str]] = [list(table.header), marks]
    lines += [[plain(cell) for cell in row] for row in table.rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _samples(samples: Samples) -> str:
    lines = []
    for entry in samples.entries:
        label = f"{plain(entry.label)}: " if entry.label else ""
        wanted = f" (right: {plain(entry.wanted)})" if entry.wanted else ""
        lines.append(f"- {label}{plain(entry.prompt)} → {plain(entry.answer) or '(nothing)'}{wanted}")
    return "\n".join(lines)
