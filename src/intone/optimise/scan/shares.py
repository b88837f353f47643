"""How often findings of a rule held on code of strangers, and what follows: what is shown, and in which order."""

import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from intone.optimise.scan.finding import CONFIDENCES, LEAST, Confidence, Finding, Severity
from intone.paths import read_json

TABLE = Path(__file__).with_name("shares.json")
HELD_BACK = 1 / 3  # below it who reads finds two wrong ones for each right one; guess
SURE = 2 / 3
ENOUGH = 4  # judged findings from which on a large share is called high; guess
ONE_SIDED = 1.645  # normal quantile: 19 times of 20 the true share is no larger than the bound
PRIOR = 3  # findings: as much as the share of all rules counts beside a rule's own few; guess
# how grave a finding is beside a critical one, for the order in which they are shown; guess
WEIGHTS: dict[Severity, float] = {"critical": 1.0, "high": 0.8, "medium": 0.55, "low": 0.2}


@dataclass(frozen=True)
class Share:
    """Of judged findings of a rule on code of strangers, how many held. Copies of one fault count once."""

    held: int
    judged: int

    @property
    def upper(self) -> float:
        """what the true share is no larger than, 19 times of 20 (Wilson's bound); 1 where nothing was judged."""
        n, z = self.judged, ONE_SIDED
        if not n:
            return 1.0
        p = self.held / n
        return (p + z * z / (2 * n) + z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))) / (1 + z * z / n)


@cache
def shares() -> dict[str, Share]:
    """Rule -> its share, where findings of it were judged. `python -m intone.bench.scan shares` writes the table."""
    return {rule: Share(held, judged) for rule, (held, judged) in read_json(TABLE)["rules"].items()}


def share_of(rule: str) -> Share:
    """The share of a rule; none of none where nothing was judged."""
    return shares().get(rule, Share(0, 0))


def expected_share(rule: str) -> float:
    """How likely a finding of a rule holds on code of a stranger, 0..1: its share, drawn to that of all rules."""
    every = shares().values()
    overall = (sum(one.held for one in every) + 1) / (sum(one.judged for one in every) + 2)
    mine = share_of(rule)
    return (mine.held + PRIOR * overall) / (mine.judged + PRIOR)


def certainty(finding: Finding) -> Confidence:
    """How sure a finding is: by the measured share of its rule, and where too little was judged by what the rule says.

    low: its rule had to assume a fact, or most likely fewer than a third of its findings hold. A critical one is never
    held back for its share: one of three that holds is worth the look.
    """
    mine = share_of(finding.rule)
    if finding.confidence == "low":
        return "low"
    if mine.upper < HELD_BACK:
        return "medium" if finding.severity == "critical" else "low"
    if mine.judged < ENOUGH:
        return finding.confidence
    return "high" if mine.held >= SURE * mine.judged else "medium"


def is_sure(finding: Finding, least: Confidence = LEAST) -> bool:
    """Whether a finding is shown, counted and fails CI."""
    return CONFIDENCES.index(certainty(finding)) >= CONFIDENCES.index(least)


def rank(finding: Finding) -> float:
    """0..100, for the order: how grave a finding is, times how likely it holds."""
    return 100 * WEIGHTS[finding.severity] * expected_share(finding.rule)


def share_words(finding: Finding) -> str:
    """The share in words for people: of 16 such findings on code of strangers 14 held."""
    mine = share_of(finding.rule)
    if not mine.judged:
        return "no such finding on code of strangers was judged yet"
    if mine.judged == 1:
        return f"the one such finding on code of strangers that was judged {'held' if mine.held else 'did not hold'}"
    return f"of {mine.judged} such findings on code of strangers {mine.held or 'none'} held"
