"""What a person who read the code says of the scan's findings, how it is kept, and docs/scan-precision.md from it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from intone.evals.intervals import proportion
from intone.optimise.scan import rules as _rules  # noqa: F401  enters the rules
from intone.optimise.scan.rulebook import RULES
from intone.paths import read_json, write_json

COMMAND = "python -m intone.bench.scan"


@dataclass(frozen=True)
class Judgement:
    """What a person who read the code says of a finding. number: the how-many-th of this rule in this function."""

    repo: str  # owner/name@commit
    path: str
    rule: str
    function: str
    number: int
    line: int
    holds: bool
    reason: str
    since: str = ""  # what came after the count of unseen code: "gone" not named any more, "new" not in the count

    @property
    def key(self) -> tuple[str, str, str, str, int]:
        """What a judgement is about; lines may move with the scanner's version, not with the code's."""
        return (self.repo, self.path, self.rule, self.function, self.number)

    @property
    def entry(self) -> dict[str, Any]:
        """As it is kept in the file."""
        return {name: value for name, value in asdict(self).items() if name != "since" or value}


@dataclass(frozen=True)
class Sum:
    """Of a rule's findings in a repository how many held, where the judgements themselves were not kept."""

    repo: str
    rule: str
    held: int
    judged: int
    source: str  # where the count is told


@dataclass(frozen=True)
class Count:
    """A later count of code that no rule was made with, by the rules of its own day. rules: None before it."""

    rules: str | None
    judgements: tuple[Judgement, ...]

    @property
    def counted(self) -> list[Judgement]:
        """The judgements of the count, without those of findings that newer rules name in addition."""
        return [one for one in self.judgements if one.since != "new"]


@dataclass(frozen=True)
class Judged:
    """The judgements that are kept: of code that the rules were tuned on, and of code that they had never seen.

    unseen: as counted once, with the rules of that day; a later count only says what has changed since.
    unseen_rules: the commit of those rules; None before that count.
    later: further counts, each of other code bases, the newest last. The shares of rules are not drawn from them.
    met: of code of strangers, as the rules of a day named it, with which rules were changed afterwards.
    sums: of such code where only the numbers for each rule were kept.
    """

    tuned: tuple[Judgement, ...] = ()
    unseen: tuple[Judgement, ...] = ()
    unseen_rules: str | None = None
    met: tuple[Judgement, ...] = ()
    sums: tuple[Sum, ...] = ()
    later: tuple[Count, ...] = ()

    @property
    def counted(self) -> list[Judgement]:
        """The judgements of the count of unseen code."""
        return [one for one in self.unseen if one.since != "new"]

    def write(self, path: Path) -> None:
        """Keeps them in a file, in the order of their places."""
        value: dict[str, Any] = {"format": 1, "judgements": [one.entry for one in _ordered(self.tuned)]}
        value["unseen"] = {"rules": self.unseen_rules, "judgements": [one.entry for one in _ordered(self.unseen)]}
        sums = [asdict(one) for one in self.sums]
        value["later"] = [
            {"rules": one.rules, "judgements": [each.entry for each in _ordered(one.judgements)]} for one in self.later
        ]
        value["met"] = {"judgements": [one.entry for one in _ordered(self.met)], "sums": sums}
        write_json(path, value)


def _ordered(judged: Sequence[Judgement]) -> list[Judgement]:
    return sorted(judged, key=lambda one: (one.repo, one.path, one.line, one.rule, one.number))


def read_judgements(path: Path) -> Judged:
    """The judgements of a file. Raises UserError where it is missing or damaged."""
    value = read_json(path)
    unseen = value.get("unseen", {"rules": None, "judgements": []})
    met = value.get("met", {"judgements": [], "sums": []})
    return Judged(
        tuple(Judgement(**entry) for entry in value["judgements"]),
        tuple(Judgement(**entry) for entry in unseen["judgements"]),
        unseen["rules"],
        tuple(Judgement(**entry) for entry in met["judgements"]),
        tuple(Sum(**entry) for entry in met["sums"]),
        tuple(
            Count(one["rules"], tuple(Judgement(**entry) for entry in one["judgements"]))
            for one in value.get("later", [])
        ),
    )


def page(judged: Judged) -> str:
    """docs/scan-precision.md: every finding with its judgement, and the counts by repository and rule."""
    newest = next((one.counted for one in reversed(judged.later) if one.rules), judged.counted)
    lines = [
        "# Findings in other people's code, judged",
        "",
        "Every finding of `intone scan` in the repositories below, judged by reading the code: "
        f"{_share(judged.tuned)}.",
        "A finding holds where what it says is the case at that place and the cost or danger that it names is real; "
        "how much it matters is its severity. Tests of these repositories were not scanned.",
        "The rules were tuned while looking at these repositories, and one reader judged: on other code expect less"
        + (f": there {_share(newest)}, see the end." if newest else "."),
        f"`{COMMAND} precision NAME=FOLDER ...` counts again; this page is made from `scan-judgements.json`.",
        "",
        *_counts(judged.tuned),
        *_places(judged.tuned, "##"),
    ]
    if judged.counted:
        lines += _unseen(judged)
    for later in judged.later:
        lines += _later(later)
    if judged.met:
        lines += _met(judged)
    return "\n".join(lines) + "\n"


def _unseen(judged: Judged) -> list[str]:
    """The lines about code that the rules were not made with."""
    lines = [
        "",
        "## On code bases that the rules were not made with",
        "",
        f"No rule had been run on the repositories below when they were scanned, once, with the rules of commit "
        f"{judged.unseen_rules}: {_share(judged.counted)}.",
        "Judged more strictly than above: a maintainer would have to agree that the cost or danger is real at that "
        "place. Not so: a read outside a hot loop, a compile that would be useless, a file that nothing loads.",
        f"`{COMMAND} precision --unseen NAME=FOLDER ...` compares; the count itself stays.",
    ]
    lines += _changes(judged.unseen)
    return [*lines, "", *_counts(judged.counted), *_places(judged.unseen, "###")]


def _later(count: Count) -> list[str]:
    """The lines about a later count of code that the rules were not made with."""
    if count.rules is None:
        return []
    places = {(one.repo, one.rule, one.reason): one.holds for one in count.counted}
    lines = [
        "",
        "## On further code bases, by the rules of a later day",
        "",
        f"Nor had any rule been run on these when they were scanned, once, with the rules of commit {count.rules}: "
        f"{_share(count.counted)}. Judged as strictly, with every doubt against a finding, by a reader who had no part "
        "in the rules.",
        f"Findings of one rule with the same reason in one repository are copies of one fault: without copies "
        f"{sum(places.values())} of {len(places)} hold. The shares of rules below are not drawn from this count.",
        *_changes(count.judgements),
    ]
    return [*lines, "", *_counts(count.counted), *_places(count.judgements, "###")]


def _changes(judged: Sequence[Judgement]) -> list[str]:
    """What rules that were changed after a count name no longer or in addition; no line where that is nothing."""
    gone = [one for one in judged if one.since == "gone"]
    new = [one for one in judged if one.since == "new"]
    if not gone and not new:
        return []
    wrong = sum(not one.holds for one in judged if one.since != "new")
    return [
        f"Then rules were changed, with these judgements known: of the {wrong} that do not hold "
        f"{sum(not one.holds for one in gone)} are named no longer, of the others "
        f"{sum(one.holds for one in gone)}; {len(new)} came in addition, {sum(one.holds for one in new)} hold."
    ]


def _met(judged: Judged) -> list[str]:
    """The lines about code of strangers that rules were changed with, and the shares of rules."""
    named = [one for one in judged.met if one.since != "new"]
    today = [one for one in judged.met if one.since != "gone"]
    lines = [
        "",
        "## On code of strangers that rules were changed with afterwards",
        "",
        f"As the rules named it when it was first read: {_share(named)}. As they name it after they were changed for "
        f"it: {_share(today)}, which says little about other code.",
        f"`{COMMAND} precision --met NAME=FOLDER ...` compares.",
        *[f"Of {one.repo} only numbers are kept: {one.rule} {one.held} of {one.judged}." for one in judged.sums],
        "",
        *_counts(named),
        *_places(judged.met, "###"),
        "",
        "## What a rule reached on code of strangers",
        "",
        "Over the first count of unseen code and the part above, as findings were first named, copies of one fault "
        "counted once; the scan tells this beside each finding, orders by it, and holds rules back by it. "
        f"`{COMMAND} shares --write` makes the table.",
        "",
        "| rule | | judged | held |",
        "|---|---|--:|--:|",
    ]
    for rule, (held, num) in shares_of(judged).items():
        lines.append(f"| {rule} | {RULES[rule][0].name} | {num} | {held} |")
    return lines


def _share(judged: Sequence[Judgement]) -> str:
    """How many hold, in words."""
    right, total = sum(one.holds for one in judged), len(judged)
    if not total:
        return "none yet"
    interval = proportion(right, total)
    return f"{right} of {total} hold ({right / total:.0%}, 95% interval {interval.low:.0%} to {interval.high:.0%})"


def _counts(judged: Sequence[Judgement]) -> list[str]:
    """Tables by repository and by rule."""
    lines = ["| repository | findings | hold |", "|---|--:|--:|"]
    for repo in sorted({one.repo for one in judged}):
        mine = [one for one in judged if one.repo == repo]
        lines.append(f"| {repo} | {len(mine)} | {sum(one.holds for one in mine)} |")
    lines += ["", "| rule | | findings | hold |", "|---|---|--:|--:|"]
    for rule in sorted({one.rule for one in judged}):
        mine = [one for one in judged if one.rule == rule]
        lines.append(f"| {rule} | {RULES[rule][0].name} | {len(mine)} | {sum(one.holds for one in mine)} |")
    return lines


def _places(judged: Sequence[Judgement], heading: str) -> list[str]:
    """A table a repository with every finding and why it holds or not."""
    lines = []
    for repo in sorted({one.repo for one in judged}):
        lines += ["", f"{heading} {repo}", "", "| place | rule | holds | reason |", "|---|---|---|---|"]
        for one in sorted((one for one in judged if one.repo == repo), key=lambda j: (j.path, j.line, j.rule)):
            holds = ("yes" if one.holds else "**no**") + (f", {one.since}" if one.since else "")
            lines.append(f"| {one.path}:{one.line} | {one.rule} | {holds} | {one.reason} |")
    return lines


def shares_of(judged: Judged) -> dict[str, list[int]]:
    """Rule -> [held, judged] on code of strangers, as its findings were first named there, before they were mended.

    What was mended afterwards stays in the count: errors that were mended on one code base came back in other forms on
    the next. Findings of a rule with the same reason in one repository are copies of one fault, and count once.
    """
    once = {(one.repo, one.rule, one.reason): one.holds for one in [*judged.unseen, *judged.met]}
    pairs = [(rule, int(holds), 1) for (_, rule, _), holds in once.items()]
    pairs += [(one.rule, one.held, one.judged) for one in judged.sums]
    return {
        rule: [sum(held for name, held, _ in pairs if name == rule), sum(num for name, _, num in pairs if name == rule)]
        for rule in sorted({rule for rule, _, _ in pairs})
    }
