"""What every template gives: a plan, and edits that apply only where the code stands as the template knows it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from intone.errors import UserError
from intone.optimise.planner.document import FeaturePlan


@dataclass(frozen=True)
class Written:
    """One change: its subject and reason for the commit, and the files of tests that judge it."""

    subject: str
    why: str
    tests: tuple[str, ...]


@dataclass(frozen=True)
class Template:
    """A planned feature. write makes the change in a folder that is a copy of the code base."""

    plan: FeaturePlan
    write: Callable[[Path], Written]


def replace_once(root: Path, name: str, old: str, new: str) -> None:
    """Puts new where old stands in a file. Raises UserError unless old stands there exactly once."""
    path = root / name
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    if text.count(old) != 1:
        first = old.strip().splitlines()[0]
        raise UserError(
            f"{name} is not as this template knows it: {first!r} stands there {text.count(old)} times", value=name,
            fix="let a model write the patch: --model NAME --base-url URL",
        )  # fmt: skip
    path.write_text(text.replace(old, new), encoding="utf-8")


def create(root: Path, name: str, text: str) -> None:
    """Writes a new file. Raises UserError where there is one."""
    path = root / name
    if path.exists():
        raise UserError(f"{name} exists already", value=name, fix="remove it, or choose another name")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def place_of(root: Path, name: str, words: str) -> str:
    """file:line and the line of the first place where words stand, for a plan's list of what was read."""
    path = root / name
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1) if path.is_file() else ():
        if words in line:
            return f"{name}:{number} {line.strip()}"
    return f"{name} has no {words!r}"
