"""`intone report` through the command line: three files, the same bytes for the same rows, nothing heavy imported."""

import json
import subprocess
import sys

import pytest

from intone.cli import main
from intone.report.write import write_run_report

HEAVY = ["torch", "numpy", "matplotlib", "transformers", "tokenizers", "pyarrow", "fastapi", "huggingface_hub"]


def files(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*report*")}


def test_the_verb_writes_three_files_beside_the_run_and_says_where(finished, capsys):
    assert main(["report"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == f"first_try: {finished.folder}/report.html"
    assert sorted(files(finished.folder)) == ["report.html", "report.json", "report.md"]
    assert main(["report", "first_try", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert answer["run"] == "first_try"
    assert answer["result"]["kind"] == "run"
    assert answer["result"]["markdown"] == f"{finished.folder}/report.md"


def test_the_same_rows_give_the_same_bytes(finished):
    write_run_report(finished.folder)
    before = files(finished.folder)
    write_run_report(finished.folder)
    assert files(finished.folder) == before


def test_a_stage_has_its_report_in_its_own_folder_and_out_moves_it(finished, tmp_path):
    assert main(["report", "first_try/sft"]) == 0
    assert (finished.stage_folder("sft") / "report.html").exists()
    assert not (finished.folder / "report.html").exists()
    assert main(["report", "first_try", "--out", str(tmp_path / "new" / "place")]) == 0
    assert sorted(files(tmp_path / "new" / "place")) == ["report.html", "report.json", "report.md"]


def test_a_file_of_measurements_has_its_report_beside_it(home, tmp_path, capsys):
    path = tmp_path / "ab.json"
    path.write_text(json.dumps({"ratio": 1.0, "low": 0.9, "high": 1.1, "verdict": "same"}))
    assert main(["report", str(path)]) == 0
    assert "<h1>ab</h1>" in (tmp_path / "ab-report.html").read_text()
    assert json.loads((tmp_path / "ab-report.json").read_text())["comparisons"][0]["verdict"] == "same"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["no-such-run"], "unknown run 'no-such-run'"),
        (["missing.json"], "missing.json does not exist"),
        (["first_try", "--out", "FILE"], "is a file"),
    ],
)
def test_what_cannot_be_reported_is_said_and_nothing_written(finished, tmp_path, capsys, words, said):
    (tmp_path / "FILE").write_text("")
    words = [str(tmp_path / word) if word == "FILE" else word for word in words]
    assert main(["report", *words]) == 2
    assert said in capsys.readouterr().err
    assert files(finished.folder) == {}


def test_a_report_imports_nothing_heavy(finished):
    code = f"""
import sys
from intone.cli import main
assert main(["report"]) == 0
print([name for name in {HEAVY!r} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
