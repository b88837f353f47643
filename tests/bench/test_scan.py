"""Precision and recall of the scan: what is counted, and that the page says what was judged."""

import json
from dataclasses import replace

import pytest

from intone.bench import scan
from intone.bench.judgements import Count, Judged, Judgement, page, read_judgements
from intone.bench.rows import ROOT
from intone.bench.scan import JUDGEMENTS, PAGE, compare, keyed, main, precision_row
from intone.optimise.scan.run import scan_texts

FAULT = "import pickle\ndef load(f):\n    return pickle.load(f)\n"


def test_the_page_is_made_from_the_judgements():
    assert PAGE.read_text(encoding="utf-8") == page(read_judgements(JUDGEMENTS))


def test_every_judgement_has_a_reason_and_stands_for_one_finding():
    kept = read_judgements(JUDGEMENTS)
    judged = [*kept.tuned, *kept.unseen, *(one for count in kept.later for one in count.judgements)]
    assert len({one.key for one in judged}) == len(judged) >= 60
    assert [one for one in judged if len(one.reason) < 15] == []


def test_precision_counts_what_holds():
    judged = read_judgements(JUDGEMENTS).tuned
    row = precision_row(judged, "test")
    assert row.n == len(judged) and row.value == pytest.approx(sum(one.holds for one in judged) / len(judged))
    assert row.value >= 0.8


def test_a_finding_that_nobody_judged_is_not_counted_as_right():
    found = keyed("r@1", scan_texts({"a.py": FAULT + FAULT.replace("load(f):", "read(f):")}).findings)
    judged = [
        Judgement("r@1", "a.py", "S61", "load", 1, 3, True, "it is"),
        Judgement("r@1", "a.py", "S10", "x", 1, 1, True, ""),
    ]
    known, unjudged, gone = compare(found, judged)
    assert (len(known), unjudged, [one.rule for one in gone]) == (1, [("r@1", "a.py", "S61", "read", 1)], ["S10"])


@pytest.fixture
def unseen(tmp_path, monkeypatch):
    """A repository that no rule was made with, two findings of it judged, and a place for what is written."""
    monkeypatch.setattr(scan, "JUDGEMENTS", tmp_path / "judged.json")
    monkeypatch.setattr(scan, "PAGE", tmp_path / "page.md")
    (tmp_path / "repo").mkdir()
    (tmp_path / "repo" / "a.py").write_text(FAULT + FAULT.replace("load(f):", "read(f):"))
    holds = {"load": True, "read": False}
    judged = [Judgement("u@1", "a.py", "S61", name, 1, 3, holds[name], "because it is") for name in holds]
    Judged(unseen=tuple(judged), tuned=(Judgement("t@1", "a.py", "S61", "load", 1, 3, True, "tuned"),)).write(
        tmp_path / "judged.json"
    )
    return tmp_path


def count(folder):
    return main(
        ["precision", "--unseen", "--write", "--out", str(folder / "rows.jsonl"), f"u@1={folder / 'repo'}"]
    )


def test_unseen_code_is_counted_once_and_apart_from_what_the_rules_were_tuned_on(unseen):
    assert count(unseen) == 0 and count(unseen) == 0
    rows = [json.loads(line) for line in (unseen / "rows.jsonl").read_text().splitlines()]
    assert [(row["id"], row["value"], row["n"]) for row in rows] == [("cpu.scan.precision_unseen", 0.5, 2)]
    said = (unseen / "page.md").read_text()
    assert "judged by reading the code: 1 of 1 hold" in said and "1 of 2 hold (50%" in said


def test_the_count_of_unseen_code_stays_when_rules_name_less_and_more(unseen, capsys):
    count(unseen)
    (unseen / "repo" / "a.py").write_text(FAULT + FAULT.replace("load(f):", "more(f):"))
    assert count(unseen) == 1 and "not judged: u@1 a.py S61 more" in capsys.readouterr().out
    kept = read_judgements(unseen / "judged.json")
    more = Judgement("u@1", "a.py", "S61", "more", 1, 6, True, "named by newer rules", "new")
    Judged(kept.tuned, (*kept.unseen, more), kept.unseen_rules).write(unseen / "judged.json")
    assert count(unseen) == 0 and len((unseen / "rows.jsonl").read_text().splitlines()) == 1
    assert [(one.function, one.since) for one in read_judgements(unseen / "judged.json").unseen] == [
        ("load", ""),
        ("read", "gone"),
        ("more", "new"),
    ]
    said = (unseen / "page.md").read_text()
    assert "1 of 2 hold (50%" in said
    assert "of the 1 that do not hold 1 are named no longer, of the others 0; 1 came in addition, 1 hold." in said


def test_a_later_count_has_rules_of_its_own_and_leaves_the_first_as_it_was(unseen, capsys):
    count(unseen)
    first = read_judgements(unseen / "judged.json")
    judged = tuple(
        Judgement(repo, "a.py", "S61", name, 1, 3, name == "load", "one and the same reason")
        for repo in ("v@1", "w@1")
        for name in ("load", "read")
    )
    replace(first, later=(Count(None, judged),)).write(unseen / "judged.json")
    folders = [f"{name}={unseen / 'repo'}" for name in ("v@1", "w@1")]
    words = ["precision", "--unseen", "--write", "--out", str(unseen / "rows.jsonl")]
    assert main([*words, folders[0]]) == 2 and "give all of it: v@1 w@1" in capsys.readouterr().err
    assert main([*words, *folders]) == 0 and main([*words, *folders]) == 0
    rows = [json.loads(line) for line in (unseen / "rows.jsonl").read_text().splitlines()]
    assert [(row["value"], row["n"]) for row in rows] == [(0.5, 2), (0.5, 4)]
    assert "v@1=... w@1=..." in rows[1]["command"]
    kept = read_judgements(unseen / "judged.json")
    assert (kept.unseen, kept.unseen_rules) == (first.unseen, first.unseen_rules) and kept.later[0].rules is not None
    said = (unseen / "page.md").read_text()
    assert "on other code expect less: there 2 of 4 hold" in said and "1 of 2 hold (50%" in said
    assert f"with the rules of commit {kept.later[0].rules}: 2 of 4 hold" in said
    (unseen / "repo" / "a.py").write_text(FAULT)
    assert main([*words, folders[1]]) == 0  # one of them is enough to compare
    now = read_judgements(unseen / "judged.json").later[0].counted
    assert [(one.repo, one.function, one.since) for one in now] == [
        ("v@1", "load", ""),
        ("v@1", "read", ""),
        ("w@1", "load", ""),
        ("w@1", "read", "gone"),
    ]
    assert "of the 2 that do not hold 1 are named no longer" in (unseen / "page.md").read_text()


def test_copies_of_one_fault_are_told_apart_on_the_page():
    one = Judgement("v@1", "a.py", "S61", "load", 1, 3, True, "copied to two files")
    judged = (one, replace(one, path="b.py"), replace(one, path="c.py", holds=False, reason="another thing"))
    said = page(Judged(tuned=(one,), later=(Count("abc", judged),)))
    assert "2 of 3 hold (67%" in said and "without copies 1 of 2 hold" in said
    assert "further code bases" not in page(Judged(tuned=(one,), later=(Count(None, judged),)))


@pytest.fixture
def planted(tmp_path):
    (tmp_path / "a.py").write_text(FAULT)
    (tmp_path / "b.py").write_text("x = 1\n")
    labels = {
        "planted": [
            {"path": "a.py", "kind": "pickle", "line": 3},
            {"path": "b.py", "kind": ["rng", "padding"], "line": 1},
        ],
        "clean": ["b.py", {"path": "a.py", "kind": "pickle"}],
    }
    (tmp_path / "labels.json").write_text(json.dumps(labels))
    return tmp_path


def test_recall_counts_found_missed_and_false_alarms(planted, capsys):
    assert main(["recall", str(planted), "--write", "--out", str(planted / "rows.jsonl")]) == 0
    said = capsys.readouterr().out
    assert "1 of 2 planted faults found; 1 alarms in 2 clean files" in said and "missed: b.py:1 rng|padding" in said
    row = json.loads((planted / "rows.jsonl").read_text())
    assert (row["id"], row["value"], row["n"]) == ("cpu.scan.recall", 0.5, 2)


def test_the_row_names_folders_of_the_repository_as_a_person_types_them(tmp_path):
    rows = tmp_path / "rows.jsonl"
    assert main(["recall", str(ROOT / "tests" / "optimise" / "planted_project"), "--write", "--out", str(rows)]) == 0
    command = json.loads(rows.read_text())["command"]
    assert command == "python -m intone.bench.scan recall tests/optimise/planted_project"


def test_a_place_that_a_finding_only_names_is_told_and_not_counted(tmp_path, capsys):
    (tmp_path / "a.py").write_text(
        "def number(t):\n    return t.item()\n\n\n\n\n\n\ndef train(model, opt, loader):\n    for batch in loader:\n"
        "        loss = model(batch)\n        loss.backward()\n        opt.step()\n        print(number(loss))\n"
    )
    (tmp_path / "labels.json").write_text(json.dumps({"planted": [{"path": "a.py", "kind": "host-sync", "line": 2}]}))
    main(["recall", str(tmp_path)])
    said = capsys.readouterr().out
    assert "0 of 1" in said and "named by a finding elsewhere" in said


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ({"planted": [], "clean": [["a.py"]]}, "['a.py'] among the clean files of labels.json names no file"),
        ({"planted": [], "clean": [{"name": "a.py"}]}, "among the clean files of labels.json names no file"),
        ({"faults": []}, "names no planted faults"),
        ([], "names no planted faults"),
    ],
)
def test_labels_of_another_form_are_refused_in_words(labels, said, planted, capsys):
    (planted / "labels.json").write_text(json.dumps(labels))
    assert main(["recall", str(planted)]) == 2
    assert said in capsys.readouterr().err


def test_a_label_with_an_unknown_class_is_refused(planted, capsys):
    (planted / "labels.json").write_text(json.dumps({"planted": [{"path": "a.py", "kind": "pickles", "line": 3}]}))
    assert main(["recall", str(planted)]) == 2
    assert "unknown class" in capsys.readouterr().err
