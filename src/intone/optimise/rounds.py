"""Rounds on disk: their folders, and the one that a second call goes on with"""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from intone.errors import UserError
from intone.log import say
from intone.optimise.ledger import Ledger
from intone.paths import home, read_json
from intone.report.write import Written


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
            ledger = Ledger(path)
            began = next((f", begun {line['at']}" for line in ledger.lines("signals")), "")
            say(f"goes on with the round {path.name}{began}, {len(ledger.tries())} changes tried; --new begins again")
            return path
    return None


@contextmanager
def known_at_a_stop(ledger: Ledger, write_report: Callable[[], Written]) -> Iterator[None]:
    """Where Ctrl-C ends what is inside, a report of what is known so far is written, and said where it is."""
    try:
        yield
    except KeyboardInterrupt:
        tries = ledger.tries()
        kept = sum(entry.kept for entry in tries)
        if ledger.lines("signals"):
            say(f"{len(tries)} changes tried so far, {kept} kept; report: {write_report().html}")
        say("the same command goes on where this one was stopped")
        raise


def named_round(name: str | None) -> Path:
    """The round of that name, the newest without one. Raises UserError where there is none."""
    folders = [path for path in newest_first() if name in (None, path.name)]
    if not folders:
        raise UserError(f"there is no round {name or ''}".strip(), value=name, fix=f"see the folders in {rounds()}")
    return folders[0]


def newest_first() -> list[Path]:
    return [path.parent for path in sorted(rounds().glob("*/target.json"), key=lambda path: -path.stat().st_mtime)]
