"""Precision and recall of the scan: what is counted, and that the page says what was judged."""

import json

import pytest

from intone.bench.rows import ROOT
from intone.bench.scan import (
    JUDGEMENTS,
    PAGE,
    Judgement,
    compare,
    keyed,
    main,
    page,
    precision_row,
    read_judgements,
)
from intone.optimise.scan.run import scan_texts

FAULT = "import pickle\ndef load(f):\n    return pickle.load(f)\n"


def test_the_page_is_made_from_the_judgements():
    assert PAGE.read_text(encoding="utf-8") == page(read_judgements(JUDGEMENTS))


def test_every_judgement_has_a_reason_and_stands_for_one_finding():
    judged = read_judgements(JUDGEMENTS)
    assert len({one.key for one in judged}) == len(judged) >= 60
    assert [one for one in judged if len(one.reason) < 15] == []


def test_precision_counts_what_holds():
    judged = read_judgements(JUDGEMENTS)
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
