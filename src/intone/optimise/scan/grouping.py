"""Findings that are one fault in several places: copies of a function, or many callers of one helper."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import TypeVar

from intone.optimise.scan.finding import Finding

Entry = TypeVar("Entry")


def grouped(entries: Sequence[Entry], finding_of: Callable[[Entry], Finding]) -> list[tuple[Entry, ...]]:
    """The entries, those of one fault together, in the order of their first."""
    first: dict[Hashable, int] = {}
    groups: list[list[Entry]] = []
    for entry in entries:
        keys = list(_keys(finding_of(entry)))
        number = next((first[key] for key in keys if key in first), len(groups))
        if number == len(groups):
            groups.append([])
        groups[number].append(entry)
        for key in keys:
            first.setdefault(key, number)
    return [tuple(group) for group in groups]


def _keys(finding: Finding) -> Iterator[Hashable]:
    """What findings of one fault have in common: the line and its function's name, or the helper that it lies in.

    A line that stands in no function says nothing of its surroundings: only whole programs are copied so.
    """
    name = finding.function.rpartition(".")[2]
    yield (finding.rule, finding.confidence, name, finding.excerpt, finding.message)
    if finding.also:
        yield (finding.rule, finding.confidence, finding.also)
