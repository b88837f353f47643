"""Rounds on disk: their folders, and the one that a second call goes on with"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from intone.errors import UserError
from intone.optimise.ledger import Ledger
from intone.paths import home, read_json


def rounds() -> Path:
    """The folder of all rounds."""
    return home() / "optimise"


def new_folder(word: str) -> Path:
    """An empty folder for a round, named after its target and a number."""
    stem = re.sub(r"[^a-z0-9]+", "-", word.lower()).strip("-") or "program"
    number = 1
    while (rounds() / f"{stem}-{number}").exists():
        number += 1
    folder = rounds() / f"{stem}-{number}"
    folder.mkdir(parents=True)
    return folder


def unfinished(target: Mapping[str, Any]) -> Path | None:
    """The newest round whose target.json says all of this, and that did not come to its end."""
    for path in newest_first():
        found = read_json(path / "target.json")
        if all(found.get(name) == value for name, value in target.items()) and not Ledger(path).lines("end"):
            return path
    return None


def named_round(name: str | None) -> Path:
    """The round of that name, the newest without one. Raises UserError where there is none."""
    folders = [path for path in newest_first() if name in (None, path.name)]
    if not folders:
        raise UserError(f"there is no round {name or ''}".strip(), value=name, fix=f"see the folders in {rounds()}")
    return folders[0]


def newest_first() -> list[Path]:
    return [path.parent for path in sorted(rounds().glob("*/target.json"), key=lambda path: -path.stat().st_mtime)]
