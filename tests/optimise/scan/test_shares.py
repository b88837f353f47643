"""Measured shares: what is held back, what comes first, and that the table is what the judgements give."""

from dataclasses import replace

import pytest

from intone.bench.judgements import Judged, Judgement, Sum, read_judgements, shares_of
from intone.bench.scan import JUDGEMENTS, main
from intone.optimise.scan import shares
from intone.optimise.scan.finding import Severity
from intone.optimise.scan.run import scan_texts
from intone.optimise.scan.shares import TABLE, Share, certainty, expected_share, rank, share_words
from intone.paths import read_json

FINDING = scan_texts({"a.py": "import pickle\ndef load(f):\n    return pickle.load(f)\n"}).findings[0]


@pytest.fixture
def measured(monkeypatch):
    def put(held, judged):
        monkeypatch.setattr(shares, "shares", lambda: {"S61": Share(held, judged), "S10": Share(30, 60)})

    return put


def test_the_table_is_what_the_judgements_give():
    assert read_json(TABLE)["rules"] == shares_of(read_judgements(JUDGEMENTS))


def test_copies_of_one_fault_count_once_and_what_was_mended_stays():
    one = Judgement("r@1", "a.py", "S61", "f", 1, 3, True, "a download")
    wrong = replace(one, path="b.py", rule="S45", holds=False, since="gone")
    judged = Judged(unseen=(one, replace(one, path="c.py")), met=(wrong,), sums=(Sum("t@1", "S45", 1, 2, "LOG.md"),))
    assert shares_of(judged) == {"S45": [1, 3], "S61": [1, 1]}


@pytest.mark.parametrize(
    ("held", "judged", "severity", "expected"),
    [
        (0, 0, "medium", "high"),  # what the rule says
        (0, 3, "medium", "high"),  # too few to say so
        (0, 5, "medium", "medium"),
        (0, 6, "medium", "low"),
        (1, 12, "medium", "low"),
        (1, 12, "critical", "medium"),
        (5, 15, "medium", "medium"),
        (8, 11, "medium", "high"),
    ],
)
def test_what_is_held_back_follows_from_the_share(measured, held, judged, severity: Severity, expected):
    measured(held, judged)
    assert certainty(replace(FINDING, severity=severity)) == expected


def test_what_rests_on_an_assumption_stays_held_back_whatever_the_share(measured):
    measured(16, 16)
    assert certainty(replace(FINDING, confidence="low")) == "low"


def test_what_is_grave_and_likely_right_comes_first(measured):
    measured(14, 16)
    often, seldom = FINDING, replace(FINDING, rule="S10")
    assert expected_share("S10") < expected_share("S61") < 1
    assert rank(replace(often, severity="high")) > rank(replace(seldom, severity="high")) > rank(seldom)
    assert 0 < rank(replace(seldom, severity="low")) < rank(replace(often, severity="critical")) < 100


def test_the_share_is_told_in_words(measured):
    for held, judged, words in [
        (14, 16, "of 16 such findings on code of strangers 14 held"),
        (0, 2, "of 2 such findings on code of strangers none held"),
        (1, 1, "the one such finding on code of strangers that was judged held"),
        (0, 0, "no such finding on code of strangers was judged yet"),
    ]:
        measured(held, judged)
        assert share_words(FINDING) == words


def test_the_shares_of_all_rules_are_printed(capsys):
    assert main(["shares"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    table = read_json(TABLE)["rules"].values()
    assert last.startswith(f"{sum(held for held, _ in table)} of {sum(judged for _, judged in table)} held")
