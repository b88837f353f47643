"""How variants of faults are written down: code with a mark at the fault, in one file or several, and code without."""

import re
import textwrap
from dataclasses import dataclass

from intone.optimise.scan.rulebook import RULES
from intone.optimise.scan.run import scan_texts

NEAR = 5  # lines between a mark and a finding about it, as in the measurement of recall
MARK = re.compile(r"#\s*<-")


@dataclass(frozen=True)
class Variant:
    """Files of one code base by name; fault: whether the line with the mark `# <-` must be found."""

    kind: str
    name: str
    texts: dict[str, str]
    fault: bool

    @property
    def place(self) -> tuple[str, int]:
        """File and line of the mark."""
        return next(
            (path, number)
            for path, text in self.texts.items()
            for number, line in enumerate(text.splitlines(), 1)
            if MARK.search(line)
        )

    def found(self) -> list[str]:
        """The findings of the kind, as path:line rule message."""
        rules = [number for number, (rule, _) in RULES.items() if rule.kind == self.kind]
        findings = list(scan_texts(self.texts, only=rules).findings)
        if self.fault:
            path, line = self.place
            findings = [one for one in findings if one.path == path and abs(one.line - line) <= NEAR]
        return [f"{one.path}:{one.line} {one.rule} {one.message}" for one in findings]


class Collection:
    """Variants of several kinds, entered one by one."""

    def __init__(self) -> None:
        self.variants: list[Variant] = []

    def fault(self, kind: str, name: str, code: str) -> None:
        """Code with a fault at the mark. `=== train.py` begins another file; without one the file is main.py."""
        self._enter(kind, name, code, True)

    def right(self, kind: str, name: str, code: str) -> None:
        """Code that is like a fault of the kind and is none."""
        self._enter(kind, name, code, False)

    def _enter(self, kind: str, name: str, code: str, fault: bool) -> None:
        parts = re.split(r"^=== (\S+)\n", textwrap.dedent(code), flags=re.M)
        texts = {"main.py": parts[0]} if parts[0].strip() else {}
        texts |= dict(zip(parts[1::2], parts[2::2], strict=True))
        assert not fault or sum(len(MARK.findall(text)) for text in texts.values()) == 1, f"{name}: one mark"
        self.variants.append(Variant(kind, name, texts, fault))
