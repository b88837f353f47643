"""The ledger of a round: everything that happened as one line each, so that a stopped round goes on where it was."""

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from intone.optimise.items import Item
from intone.paths import append_line, read_lines

NAME = "ledger.jsonl"


@dataclass(frozen=True)
class Try:
    """One change that was tried, and what came of it. Nothing that was tried is forgotten: crashes are in here too."""

    item: Item
    verdict: str  # faster | slower | same | not proven | rejected | crashed | told
    reason: str
    kept: bool
    comparison: Mapping[str, Any] | None
    gates: Mapping[str, Any] | None
    commit: str | None
    seconds: float

    def as_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "item": self.item.as_json()}

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> "Try":
        return Try(**{**value, "item": Item.from_json(value["item"])})


@dataclass(frozen=True)
class Ledger:
    """Lines of one round, in the order of time. Lines are only ever added."""

    folder: Path

    def note(self, kind: str, **values: Any) -> None:
        """Adds a line with the time of now."""
        now = time.strftime("%FT%TZ", time.gmtime())
        append_line(self.folder / NAME, {"kind": kind, "at": now, **values})

    def lines(self, kind: str) -> list[dict[str, Any]]:
        """The lines of a kind, oldest first."""
        return [line for line in read_lines(self.folder / NAME) if line["kind"] == kind]

    def tries(self) -> list[Try]:
        """What was tried so far."""
        return [Try.from_json(line["try"]) for line in self.lines("try")]
