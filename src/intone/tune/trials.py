"""Keeps what was measured on this machine, so that the same question is never measured twice."""

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from intone.errors import Damaged
from intone.hardware import Facts, quiet
from intone.log import human_duration
from intone.paths import append_line, disk_errors
from intone.records import FORMAT, Choice, from_json, utc_now

CODE = (".py", ".cpp", ".h")
PACKAGE = Path(__file__).resolve().parents[1]


def code_fingerprint(*parts: str) -> str:
    """12 hex digits over the source files that a measurement ran; parts are files or folders of this package."""
    digest = hashlib.sha256()
    for part in parts:
        path = PACKAGE / part
        files = sorted(file for file in path.rglob("*") if file.suffix in CODE) if path.is_dir() else [path]
        for file in files:
            digest.update(f"{file.relative_to(PACKAGE)}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:12]


class Trials:
    """INTONE_HOME/machine/<fingerprint>/trials.jsonl: measured choices under the question they answer.

    A row that cannot be read is skipped: its question is measured again. With fresh nothing is looked up.
    """

    def __init__(self, facts: Facts, *, fresh: bool = False, clock: Callable[[], float] = time.time) -> None:
        self.path = facts.folder / "trials.jsonl"
        self.fresh = fresh
        self._clock = clock
        self._torch_version = facts.torch_version

    def find(self, kind: str, key: Mapping[str, Any]) -> Choice | None:
        """The newest kept answer, with origin "cached" and its age in the reason; None: not measured yet."""
        if self.fresh or not self.path.exists():
            return None
        wanted = self._full_key(kind, key)
        for line in reversed(self.path.read_bytes().splitlines()):
            found = read_row(line, wanted)
            if found is not None:
                choice, date = found
                age_s = max(0.0, self._clock() - datetime.fromisoformat(date).timestamp())
                return dataclasses.replace(
                    choice, origin="cached", reason=f"{choice.reason} (measured {human_duration(round(age_s))} ago)"
                )
        return None

    def knows(self, kind: str) -> bool:
        """Whether anything of this kind is kept, for any question: a look that reads no row, for who must not wait."""
        return not self.fresh and self.path.exists() and f'"{kind}"'.encode() in self.path.read_bytes()

    def record(self, kind: str, key: Mapping[str, Any], choice: Choice) -> None:
        """Appends a measured choice."""
        full_key = self._full_key(kind, key)
        row = {"format": FORMAT, "key": full_key, "choice": dataclasses.asdict(choice), "date": utc_now()}
        with disk_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            end_torn_line(self.path)
        append_line(self.path, row)

    def settle(self, kind: str, key: Mapping[str, Any], decide: Callable[[], Choice]) -> Choice:
        """The kept answer, or that of decide, called while nobody else measures on this machine.

        Only a choice with origin "measured" is kept: one made for lack of a measurement is made again next time.
        decide must not call settle or load_facts: the lock is not re-entrant.
        """
        kept = self.find(kind, key)
        if kept is not None:
            return kept
        with quiet(self.path.parent, f"tuning of {kind}"):
            kept = self.find(kind, key)  # somebody else may have measured it while we waited
            if kept is not None:
                return kept
            choice = decide()
            if choice.origin == "measured":
                self.record(kind, key, choice)
            return choice

    def _full_key(self, kind: str, key: Mapping[str, Any]) -> dict[str, Any]:
        """The key as JSON gives it back, so that tuples and lists compare equal."""
        return dict(json.loads(json.dumps({"kind": kind, "torch": self._torch_version, **key})))


def read_row(line: bytes, wanted: Mapping[str, Any]) -> tuple[Choice, str] | None:
    """(choice, ISO date) of a row with the wanted key; None where it has another one or cannot be read."""
    try:
        row = json.loads(line)
        if row["format"] != FORMAT or row["key"] != wanted:
            return None
        datetime.fromisoformat(row["date"])
        choice = from_json(Choice, row["choice"], what="choice")
        return dataclasses.replace(choice, beat=tuple(choice.beat)), row["date"]
    except (ValueError, KeyError, TypeError, Damaged):
        return None


def end_torn_line(path: Path) -> None:
    """Ends a last line that a crash cut short, so that the next row does not grow onto it."""
    if not path.exists() or path.stat().st_size == 0:
        return
    with open(path, "r+b") as file:
        file.seek(-1, 2)
        if file.read(1) != b"\n":
            file.write(b"\n")
