"""The issue board of a code base, on disk: what is open, confirmed, dismissed with a reason, or fixed."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from intone.errors import Damaged, UserError, unknown_name
from intone.optimise.scan.finding import CONFIDENCES, LEAST, Confidence, Finding
from intone.optimise.scan.grouping import grouped
from intone.optimise.scan.run import Scan
from intone.optimise.scan.shares import is_sure, rank
from intone.paths import FolderLock, home, read_json, write_json
from intone.records import FORMAT, utc_now

State = Literal["open", "confirmed", "dismissed", "fixed"]


@dataclass(frozen=True)
class Issue:
    """A finding over time. reason: why it was dismissed, a note of who confirmed, or how it came to be fixed."""

    finding: Finding
    state: State
    reason: str
    first_seen: str
    last_seen: str

    def as_json(self) -> dict[str, Any]:
        """Every field, for the board's file."""
        return {
            "state": self.state,
            "reason": self.reason,
            "first_seen": self.first_seen,
            "last_seen": self.last_seen,
            "finding": self.finding.as_json(),
        }


@dataclass(frozen=True)
class Change:
    """What a scan changed on the board."""

    new: int = 0
    fixed: int = 0
    reopened: int = 0


@dataclass
class Board:
    """The issues of one scanned folder by id. Every change of state is written at once by save()."""

    root: Path
    folder: Path
    issues: dict[str, Issue]
    scans: int = 0

    @staticmethod
    def folder_of(root: Path, *, inside: bool = False) -> Path:
        """Where a folder's board lies: under INTONE_HOME, or in the folder's own .intone where that was asked for."""
        if inside:
            return root / ".intone"
        digest = hashlib.sha256(str(root.absolute()).encode()).hexdigest()[:12]
        return home() / "optimise" / "boards" / f"{root.absolute().name or 'root'}-{digest}"

    @staticmethod
    def load(root: Path, *, inside: bool = False) -> "Board":
        """The board of a folder, empty where there is none yet. Raises Damaged."""
        folder = Board.folder_of(root, inside=inside)
        file = folder / "board.json"
        if not file.exists():
            return Board(root, folder, {})
        value = read_json(file)
        try:
            issues = {
                name: Issue(**{**entry, "finding": Finding.from_json(entry["finding"])})
                for name, entry in value["issues"].items()
            }
            return Board(root, folder, issues, value["scans"])
        except (KeyError, TypeError) as error:
            raise Damaged(
                f"{file} is not a board of this version: {error}",
                value=str(file),
                fix="move it away; the next scan makes a new one",
            ) from None

    def save(self) -> None:
        """Writes the board, as a whole or not at all."""
        value = {
            "format": FORMAT,
            "root": str(self.root.absolute()),
            "scans": self.scans,
            "issues": {name: issue.as_json() for name, issue in sorted(self.issues.items())},
        }
        write_json(self.folder / "board.json", value)

    def lock(self) -> FolderLock:
        """Held while the board is read, changed and written, so that two scans do not undo each other."""
        return FolderLock(self.folder / "lock", wait=True, what="this board")

    def sync(self, scan: Scan, *, rules: Iterable[str] = (), least: Confidence = LEAST) -> Change:
        """Brings the board up to a scan: new findings open, those that are gone are fixed, those that came back reopen.

        rules: the ones that were applied, where not all were; issues of others stay as they are. So do those in files
        that could not be read. A dismissed finding stays dismissed while its code is there. All findings are kept; the
        change counts those of at least this confidence.
        """
        now, applied = utc_now(), set(rules)
        unread = {name for name, _ in scan.unread}
        found = {finding.id: finding for finding in scan.findings}
        hidden = {entry.finding.id: entry for entry in scan.suppressed}
        new = fixed = reopened = 0
        for name, finding in found.items():
            old = self.issues.get(name)
            if old is None:
                self.issues[name] = Issue(finding, "open", "", now, now)
                new += is_sure(finding, least)
            elif old.state == "fixed" or old.state == "dismissed" and old.reason.startswith(IN_CODE):
                self.issues[name] = replace(old, finding=finding, state="open", reason="it is back", last_seen=now)
                reopened += is_sure(finding, least)
            else:
                self.issues[name] = replace(old, finding=finding, last_seen=now)
        for name, entry in hidden.items():
            first = self.issues[name].first_seen if name in self.issues else now
            self.issues[name] = Issue(entry.finding, "dismissed", f"{IN_CODE}{entry.reason}", first, now)
        for name, issue in self.issues.items():
            gone = name not in found and name not in hidden and issue.state != "fixed"
            if gone and (not applied or issue.finding.rule in applied) and issue.finding.path not in unread:
                self.issues[name] = replace(issue, state="fixed", reason="the code that it was found in is gone")
                fixed += is_sure(issue.finding, least)
        self.scans += 1
        return Change(new, fixed, reopened)

    def find(self, name: str) -> Issue:
        """The issue with an id, or with the only id that begins so. Raises UserError."""
        if name in self.issues:
            return self.issues[name]
        matches = [key for key in self.issues if key.lower().startswith(name.lower())]
        if len(matches) == 1:
            return self.issues[matches[0]]
        if matches:
            raise UserError(
                f"{name} means {len(matches)} issues: {', '.join(sorted(matches)[:5])}",
                value=name,
                fix="write more of the id",
            )
        raise unknown_name("issue", name, self.issues)

    def confirm(self, name: str, note: str = "") -> Issue:
        """A person looked and agrees. Raises UserError."""
        return self._set(name, "confirmed", note)

    def dismiss(self, name: str, reason: str) -> Issue:
        """A person looked and does not agree, or accepts it; the reason stays with it. Raises UserError."""
        if not reason.strip():
            raise UserError("a dismissal needs a reason", value=name, fix='add --reason "why it is right as it is"')
        return self._set(name, "dismissed", reason.strip())

    def reopen(self, name: str) -> Issue:
        """Takes a dismissal or confirmation back. Raises UserError."""
        return self._set(name, "open", "")

    def _set(self, name: str, state: State, reason: str) -> Issue:
        issue = replace(self.find(name), state=state, reason=reason)
        self.issues[issue.finding.id] = issue
        return issue

    def in_state(self, *states: State) -> list[Issue]:
        """The issues in some of the states, the gravest first."""
        return sorted((issue for issue in self.issues.values() if issue.state in states), key=gravity)

    def open_issues(self, least: Confidence = LEAST) -> list[Issue]:
        """What still has to be dealt with: what a person confirmed, and what is open and sure enough."""
        issues = self.in_state("open", "confirmed")
        return [issue for issue in issues if issue.state == "confirmed" or is_sure(issue.finding, least)]

    def open_groups(self, least: Confidence = LEAST) -> list[tuple[Issue, ...]]:
        """The open issues, those together that are one fault in several places; the gravest first."""
        return grouped(self.open_issues(least), lambda issue: issue.finding)

    def with_copies(self, name: str) -> list[Issue]:
        """An issue and the open ones that are the same fault in other places. Raises UserError."""
        issue = self.find(name)
        group = next((group for group in self.open_groups(CONFIDENCES[0]) if issue in group), (issue,))
        return [issue, *(one for one in group if one is not issue)]


IN_CODE = "in the code: "  # begins the reason of a dismissal that stands as a comment in the code


def gravity(issue: Issue) -> tuple[float, str, int]:
    """Sorts first what is grave and likely right, then by place."""
    finding = issue.finding
    return (-rank(finding), finding.path, finding.line)
