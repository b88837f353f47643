"""What the agent can do in a worktree: read, search, edit, run the tests, measure; each answer is text for the model.

A path outside the worktree and a sealed file are refused. Nothing here decides whether a change is kept.
"""

import contextlib
import fnmatch
import os
import re
import signal
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from intone.errors import nearest

MAX_LINES = 200  # of one reading: a model with a context of 8,000 tokens still has room for its own words
MAX_MATCHES = 40
MAX_LINE = 240
OUTPUT_TAIL = 4000  # characters of a command's output
TEST_TIMEOUT_S = 600.0
FILE_BYTES = 2 * 2**20  # larger files are data, not code


class Refused(Exception):
    """The model asked for something it cannot have; the text goes back to it."""


@dataclass
class Tools:
    """The tools of one session in the worktree at root.

    sealed: patterns of paths, relative to root, that may be read but not changed. test_command: words, run in root;
    None: there are no tests. measure: what the model is told about the speed of its state so far; None: no measuring.
    """

    root: Path
    sealed: Sequence[str] = ()
    test_command: Sequence[str] | None = None
    measure: Callable[[], str] | None = None
    timeout_s: float = TEST_TIMEOUT_S
    edited: set[str] = field(default_factory=set)

    def call(self, action: dict[str, Any]) -> str:
        """Does one action and answers in text; a refusal is an answer too."""
        name = action.get("tool")
        known: dict[str, Callable[..., str]] = {
            "list": self.list_files, "read": self.read, "search": self.search, "edit": self.edit, "create": self.create,
            "run_tests": self.run_tests, "measure": self.run_measure,
        }  # fmt: skip
        if not isinstance(name, str) or name not in known:
            raise Refused(f"there is no tool {name!r}{hint(str(name), known)}; there are: {', '.join(known)}, done")
        given = {key: value for key, value in action.items() if key != "tool"}
        try:
            return known[name](**given)
        except TypeError:
            wanted = known[name].__code__.co_varnames[1 : known[name].__code__.co_argcount]
            raise Refused(f"{name} takes {', '.join(wanted) or 'no arguments'}, not {', '.join(given)}") from None

    # --- reading --------------------------------------------------------------------------------------------------

    def list_files(self, pattern: str = "*") -> str:
        """Files below the root whose path matches a pattern such as *.py."""
        found = [name for name in self._files() if fnmatch.fnmatch(name, pattern)]
        more = f"\n... and {len(found) - MAX_LINES} more" if len(found) > MAX_LINES else ""
        return "\n".join(found[:MAX_LINES]) + more or f"no file matches {pattern!r}"

    def read(self, path: str, first: int = 1, last: int | None = None) -> str:
        """Numbered lines of a file, at most MAX_LINES of them."""
        lines = self._text(path).split("\n")
        begin = max(1, int(first))
        end = min(len(lines), int(last) if last is not None else len(lines), begin + MAX_LINES - 1)
        body = "\n".join(f"{number:5} {lines[number - 1][:MAX_LINE]}" for number in range(begin, end + 1))
        more = f"\n... {len(lines) - end} more lines" if end < len(lines) else ""
        return (body or f"{path} has {len(lines)} lines") + more

    def search(self, pattern: str, files: str = "*") -> str:
        """Lines that match a regular expression, with their places."""
        try:
            wanted = re.compile(pattern)
        except re.error as problem:
            raise Refused(f"{pattern!r} is no regular expression: {problem}") from None
        found: list[str] = []
        for name in self._files():
            if not fnmatch.fnmatch(name, files) or (self.root / name).stat().st_size > FILE_BYTES:
                continue
            for number, line in enumerate((self.root / name).read_text(errors="replace").split("\n"), 1):
                if wanted.search(line[: 10 * MAX_LINE]):
                    found.append(f"{name}:{number}: {line.strip()[:MAX_LINE]}")
                    if len(found) >= MAX_MATCHES:
                        return "\n".join(found) + "\n... there are more"
        return "\n".join(found) or f"nothing matches {pattern!r}"

    # --- changing -------------------------------------------------------------------------------------------------

    def edit(self, path: str, old: str, new: str) -> str:
        """Replaces the one place in a file where old stands."""
        place = self._writable(path)
        text = self._text(path)
        count = text.count(old) if old else 0
        if count != 1:
            raise Refused(f"old stands {count} times in {path}; it must stand exactly once: give more of its lines")
        place.write_text(text.replace(old, new))
        self.edited.add(path)
        return f"{path} is changed"

    def create(self, path: str, text: str) -> str:
        """Writes a new file."""
        place = self._writable(path)
        if place.exists():
            raise Refused(f"{path} exists already; use edit")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
        self.edited.add(path)
        return f"{path} is written"

    # --- running --------------------------------------------------------------------------------------------------

    def run_tests(self) -> str:
        """Runs the tests and shows the end of their output."""
        if self.test_command is None:
            raise Refused("no test command was given for this code base")
        code, output = run_limited(self.test_command, self.root, self.timeout_s)
        word = "passed" if code == 0 else "did not end in time" if code is None else f"failed with exit code {code}"
        return f"the tests {word}\n{output[-OUTPUT_TAIL:]}"

    def run_measure(self) -> str:
        """The speed of the present state against the state before, as intone measured it."""
        if self.measure is None:
            raise Refused("nothing is measured while you work: the speed is measured after you are done")
        return self.measure()

    # --- paths ----------------------------------------------------------------------------------------------------

    def _files(self) -> list[str]:
        found = []
        for place, folders, names in os.walk(self.root):
            folders[:] = sorted(name for name in folders if not name.startswith((".", "__pycache__")))
            found += [str((Path(place) / name).relative_to(self.root)) for name in sorted(names) if name != ".git"]
        return found

    def _place(self, path: str) -> Path:
        place = (self.root / str(path)).resolve()
        if not place.is_relative_to(self.root.resolve()) or ".git" in place.relative_to(self.root.resolve()).parts:
            raise Refused(f"{path} lies outside the code base")
        return place

    def _writable(self, path: str) -> Path:
        place = self._place(path)
        name = str(place.relative_to(self.root.resolve()))
        if is_sealed(name, self.sealed):
            raise Refused(f"{name} is sealed: it belongs to what judges the change")
        return place

    def _text(self, path: str) -> str:
        place = self._place(path)
        if not place.is_file():
            raise Refused(f"there is no file {path}{hint(path, self._files())}")
        if place.stat().st_size > FILE_BYTES:
            raise Refused(f"{path} is larger than {FILE_BYTES // 2**20} MiB")
        return place.read_text(errors="replace")


def is_sealed(name: str, patterns: Sequence[str]) -> bool:
    """Whether a path below the root is one of the patterns, or lies in a folder that is."""
    parts = Path(name).parts
    heads = ["/".join(parts[: count + 1]) for count in range(len(parts))]
    return any(fnmatch.fnmatch(head, pattern.rstrip("/")) for head in heads for pattern in patterns)


def hint(word: str, known: Any) -> str:
    close = nearest(word, list(known))
    return f" (did you mean {close}?)" if close else ""


def run_limited(words: Sequence[str], folder: Path, timeout_s: float) -> tuple[int | None, str]:
    """(exit code, output) of a command in a session of its own; None: it was ended, with all it started."""
    process = subprocess.Popen(
        list(words), cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=timeout_s)
        code: int | None = process.returncode
    except subprocess.TimeoutExpired:
        code = None
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)  # what the tests left running must not disturb a measurement
    if code is None:
        output, _ = process.communicate()
    return code, output.decode(errors="replace")
