"""How a worker is measured from outside: commands come in on stdin, answers go out on stdout, one JSON object a line.

The protocol, which any program can speak (prove/live.py is the other end):
  once:     {"ready": true, "first_s": ..., "warm_s": ..., "facts": {...}}: the first step or pass with compiling, then
            the seconds of warming up
  command:  {"do": "block", ...} -> one answer with "seconds", measured with the device idle at both ends
  command:  {"do": "quit"}, or the end of stdin -> the program ends
  an error: {"error": message, "outcome": one of errors.OUTCOMES, "fix": text or null}, then the program ends
Nothing else may stand on stdout; stderr is free for logs.
"""

import contextlib
import json
import os
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TextIO

from intone.errors import UserError, unknown_name
from intone.records import Outcome


@dataclass(frozen=True)
class Exchange:
    """The worker's end of the conversation."""

    commands: TextIO
    answers: TextIO

    @classmethod
    def on_standard_streams(cls) -> "Exchange":
        """Takes stdin and stdout for the conversation; what other code prints goes to stderr from now on."""
        answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
        sys.stdout.flush()
        os.dup2(2, 1)
        return cls(sys.stdin, answers)

    def answer(self, value: dict[str, Any]) -> None:
        """One line. Raises BrokenPipeError where nobody listens any more."""
        self.answers.write(json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n")
        self.answers.flush()

    def ready(self, first_s: float, warm_s: float, facts: dict[str, Any]) -> None:
        """Says that blocks can come."""
        self.answer({"ready": True, "first_s": first_s, "warm_s": warm_s, "facts": facts})

    def fail(self, outcome: Outcome) -> None:
        """Says how the worker ends; harmless where nobody listens any more."""
        with contextlib.suppress(OSError, ValueError):
            self.answer({"error": outcome.message, "outcome": outcome.outcome, "fix": outcome.fix})

    def blocks(self, known: Collection[str]) -> Iterator[dict[str, Any]]:
        """The block commands until "quit" or the end of stdin, without their "do".

        Raises UserError for a line that is no command, and for a key that is not known: it would be ignored.
        """
        for line in self.commands:
            try:
                command = json.loads(line)
                what = command.pop("do")
            except (ValueError, KeyError, AttributeError, TypeError):
                example = 'for example {"do": "block", "steps": 5}'
                raise UserError(f"{line.strip()!r} is no command", value=line.strip(), fix=example) from None
            if what == "quit":
                return
            if what != "block":
                raise unknown_name("command", str(what), ("block", "quit"))
            for key in command:
                if key not in known:
                    raise unknown_name("key of a block", key, known)
            yield command


def whole_number(command: Mapping[str, Any], name: str, default: int | None = None, *, least: int = 1) -> int:
    """command[name], at least `least`. Raises UserError for anything else."""
    value = command.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"{name} {value!r} is not a whole number above {least - 1}", value=value)
    return value
