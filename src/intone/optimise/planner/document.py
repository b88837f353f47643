"""A plan for one feature, as a person reads it (Markdown) and as a machine does (JSON)."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from intone.paths import write_atomic, write_json


@dataclass(frozen=True)
class Decision:
    """A question that the text left open, what was decided, and why."""

    question: str
    answer: str
    why: str


@dataclass(frozen=True)
class FeaturePlan:
    """What will be done and why. kind: the template that makes the change, "model", or None: nobody makes it yet."""

    text: str
    root: str
    kind: str | None
    read: tuple[str, ...]  # file:line and what stands there
    decided: tuple[Decision, ...]
    tasks: tuple[str, ...]
    files: tuple[str, ...]
    interfaces: tuple[str, ...]
    risks: tuple[str, ...]
    tests: tuple[str, ...]
    gates: tuple[str, ...]
    effect: str

    def as_json(self) -> dict[str, Any]:
        value = asdict(self)
        parts = {name: list(part) if isinstance(part, tuple) else part for name, part in value.items()}
        return {"format": 1, **parts}

    @property
    def markdown(self) -> str:
        """The plan as a page."""
        decided = [f"{one.question} {one.answer}. {one.why}" for one in self.decided]
        parts: Mapping[str, tuple[str, ...]] = {
            "What was read": self.read, "Decided": tuple(decided), "Tasks": self.tasks, "Files": self.files,
            "Interfaces": self.interfaces, "Risks": self.risks, "Tests": self.tests, "Gates": self.gates,
            "Expected effect": (self.effect,),
        }  # fmt: skip
        sections = [f"## {title}\n\n" + "\n".join(f"- {line}" for line in lines) for title, lines in parts.items()]
        return "\n\n".join([f"# Plan: {self.text}", *sections]) + "\n"

    def write(self, folder: Path) -> None:
        """plan.md and plan.json in a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / "plan.md", self.markdown)
        write_json(folder / "plan.json", self.as_json())
