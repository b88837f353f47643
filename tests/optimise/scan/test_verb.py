"""`intone scan` from the command line: exit codes, JSON, SARIF, marks, patches."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from intone.cli import main
from intone.optimise.scan import verb
from intone.optimise.scan.rulebook import RULES
from intone.optimise.scan.run import scan_path

HIGH = 'import torch\ndef pins(device: torch.device):\n    return device == "cuda"\n'
MEDIUM = "import pickle\ndef load(f):\n    return pickle.load(f)\n"


@pytest.fixture
def code(tmp_path, monkeypatch):
    monkeypatch.setenv("INTONE_HOME", str(tmp_path / "home"))
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "a.py").write_text(HIGH)
    (folder / "b.py").write_text(MEDIUM)
    return folder


def result(capsys):
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.parametrize(("fail_on", "code_"), [("critical", 0), ("high", 1), ("medium", 1), ("never", 0)])
def test_the_exit_code_is_for_ci(code, capsys, fail_on, code_):
    assert main(["scan", str(code), "--fail-on", fail_on]) == code_
    text = capsys.readouterr().out
    assert "a.py:3" in text and "b.py:3" in text
    assert max(map(len, text.replace(str(code), "PATH").splitlines())) <= 100


def test_json_holds_every_open_finding_with_its_place(code, capsys):
    assert main(["scan", str(code), "--json"]) == 1
    answer = result(capsys)
    assert (answer["verb"], answer["exit"]) == ("scan", 1)
    findings = [issue["finding"] for issue in answer["result"]["open"]]
    found = [(finding["rule"], finding["path"], finding["line"]) for finding in findings]
    assert found == [("S61", "b.py", 3), ("S33", "a.py", 3)]  # graver, but seldom right elsewhere


def test_dismissing_with_a_reason_lets_ci_pass(code, capsys):
    main(["scan", str(code), "--json"])
    opened = [issue["finding"] for issue in result(capsys)["result"]["open"]]
    name = next(finding["id"] for finding in opened if finding["severity"] == "high")
    assert main(["scan", str(code), "--dismiss", name]) == 2
    assert main(["scan", str(code), "--dismiss", name, "--reason", "the caller hands over a string"]) == 0
    capsys.readouterr()
    assert main(["scan", str(code)]) == 0
    assert main(["scan", str(code), "--board"]) == 0
    assert "the caller hands over a string" in capsys.readouterr().out
    assert main(["scan", str(code), "--reopen", name]) == 0
    assert main(["scan", str(code), "--confirm", name, "--reason", "seen on a GPU"]) == 0
    assert main(["scan", str(code)]) == 1


def test_what_was_not_proven_is_held_back_until_it_is_asked_for(code, capsys, monkeypatch):
    def unsure(*args, **words):
        scan = scan_path(*args, **words)
        return replace(scan, findings=tuple(replace(one, confidence="low") for one in scan.findings))

    monkeypatch.setattr(verb, "scan_path", unsure)
    assert main(["scan", str(code)]) == 0
    text = capsys.readouterr().out
    assert "a.py:3" not in text and "0 open" in text and "0 new" in text and "2 held back" in text
    main(["scan", str(code), "--json"])
    answer = result(capsys)["result"]
    assert (answer["open"], answer["held_back"]) == ([], 2)
    assert main(["scan", str(code), "--confidence", "low"]) == 1
    text = capsys.readouterr().out
    assert "a.py:3" in text and "held back" not in text
    name = next(line.split()[1] for line in text.splitlines() if "S33-" in line)
    assert main(["scan", str(code), "--confirm", name]) == 0
    assert main(["scan", str(code)]) == 1  # what a person confirmed counts, whatever the rule could prove
    assert "a.py:3" in capsys.readouterr().out


def test_one_fault_in_several_places_is_one_finding(code, tmp_path, capsys):
    (code / "c.py").write_text(MEDIUM)
    assert main(["scan", str(code), "--fail-on", "medium", "--sarif", str(tmp_path / "out.sarif")]) == 1
    text = capsys.readouterr().out
    assert "2 open (1 high, 1 medium)" in text and "and at c.py:3" in text and "exit 1: 2 open" in text
    results = json.loads((tmp_path / "out.sarif").read_text())["runs"][0]["results"]
    assert [(entry["ruleId"], entry["rank"] > 0) for entry in results] == [("S61", True), ("S33", True)]
    assert results[0]["rank"] >= results[1]["rank"] and "relatedLocations" in results[0]
    name = next(line.split()[1] for line in text.splitlines() if "S61-" in line)
    assert main(["scan", str(code), "--dismiss", name, "--reason", "our own file"]) == 0
    assert "with its copies: 1" in capsys.readouterr().out
    main(["scan", str(code), "--json"])
    assert [issue["finding"]["rule"] for issue in result(capsys)["result"]["open"]] == ["S33"]


def test_one_issue_is_explained(code, capsys):
    main(["scan", str(code)])
    assert main(["scan", str(code), "--issue", "S33"]) == 0
    text = capsys.readouterr().out
    assert "torch.device" in text and RULES["S33"][0].why[:30] in text and "first seen" in text


def test_sarif_has_the_structure_that_code_hosts_read(code, tmp_path, capsys):
    main(["scan", str(code)])
    name = next(line.split()[1] for line in capsys.readouterr().out.splitlines() if "S61-" in line)
    main(["scan", str(code), "--dismiss", name, "--reason", "our own file"])
    main(["scan", str(code), "--sarif", str(tmp_path / "out.sarif")])
    sarif = json.loads((tmp_path / "out.sarif").read_text())
    assert (sarif["version"], len(sarif["runs"])) == ("2.1.0", 1)
    run = sarif["runs"][0]
    rules = run["tool"]["driver"]["rules"]
    assert [rule["id"] for rule in rules] == list(RULES)
    assert all(rule["shortDescription"]["text"] and rule["help"]["text"] and rule["name"].isalnum() for rule in rules)
    assert all(rule["defaultConfiguration"]["level"] in ("error", "warning", "note") for rule in rules)
    assert len(run["results"]) == 2
    for entry in run["results"]:
        assert rules[entry["ruleIndex"]]["id"] == entry["ruleId"]
        assert entry["message"]["text"] and entry["partialFingerprints"]
        place = entry["locations"][0]["physicalLocation"]
        assert place["artifactLocation"]["uriBaseId"] in run["originalUriBaseIds"]
        assert 1 <= place["region"]["startLine"] <= place["region"]["endLine"]
        assert place["region"]["startColumn"] >= 1
    assert {entry["ruleId"]: "suppressions" in entry for entry in run["results"]} == {"S33": False, "S61": True}


def test_a_fix_is_shown_and_only_written_when_asked(code, capsys):
    pytest.importorskip("libcst", reason="the extra `scan` is not installed")
    assert main(["scan", str(code), "--fix", "S33"]) == 0
    assert '+    return device.type == "cuda"' in capsys.readouterr().out
    assert (code / "a.py").read_text() == HIGH
    assert main(["scan", str(code), "--fix", "S33", "--apply"]) == 0
    assert 'device.type == "cuda"' in (code / "a.py").read_text()
    assert main(["scan", str(code)]) == 0


def test_a_fix_that_must_be_done_by_hand_says_what_to_do(code, capsys):
    pytest.importorskip("libcst", reason="the extra `scan` is not installed")
    assert main(["scan", str(code), "--fix", "S61", "--apply"]) == 0
    text = capsys.readouterr().out
    assert "safetensors" in text and "nothing changed" in text
    assert (code / "b.py").read_text() == MEDIUM


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--only", "S99"], "unknown rule"),
        (["--fix", "S99"], "unknown rule"),
        (["--issue", "S33-00"], "unknown issue"),
        (["--apply"], "belongs to --fix"),
        (["--reason", "x"], "belongs to"),
        (["--confirm", "a", "--reopen", "b"], "two commands"),
    ],
)
def test_what_cannot_be_meant_is_refused(code, capsys, words, said):
    assert main(["scan", str(code), *words]) == 2
    assert said in capsys.readouterr().err


def test_a_folder_that_is_missing_or_empty_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("INTONE_HOME", str(tmp_path / "home"))
    assert main(["scan", str(tmp_path / "nowhere")]) == 2
    (tmp_path / "empty").mkdir()
    assert main(["scan", str(tmp_path / "empty")]) == 2
    assert "no Python files" in capsys.readouterr().err


def test_what_holds_nothing_readable_is_refused_not_praised(code, capsys):
    (code / "notes.txt").write_bytes(b"\xe2\x28")
    assert main(["scan", str(code / "notes.txt")]) == 2
    assert "notes.txt could be read: notes.txt cannot be read" in capsys.readouterr().err
    (code / "a.py").write_text("def (:")
    assert main(["scan", str(code / "a.py")]) == 2
    assert "is not Python of this version" in capsys.readouterr().err


def test_the_board_can_lie_in_the_scanned_folder(code):
    main(["scan", str(code), "--board-inside"])
    assert (code / ".intone" / "board.json").is_file()


def test_tests_of_the_scanned_code_are_left_out_unless_asked_for(code, capsys):
    (code / "test_b.py").write_text(MEDIUM.replace("def load", "def read"))
    main(["scan", str(code), "--json"])
    assert len(result(capsys)["result"]["open"]) == 2
    main(["scan", str(code), "--with-tests", "--json"])
    assert len(result(capsys)["result"]["open"]) == 3


def test_scanning_imports_no_torch(code):

    program = (
        f"import sys; from intone.cli import main; main(['scan', {str(code)!r}]); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True).returncode == 0
