"""BENCH.md and the measured lines of README.md are what the command makes, and say what the rows say."""

from dataclasses import replace

import pytest

from intone.bench import results
from intone.bench.results import BEGIN, END, bench_text, files, main, read_all, with_measured
from intone.bench.rows import ROOT
from intone.bench.targets import AREAS, TARGETS, Target, meaning
from intone.errors import UserError
from intone.records import ResultRow, append_result

MACHINE = {"cpu_name": "Planted CPU", "cores_physical": 2, "torch_version": "2.13.0"}
ROW = ResultRow(
    "cpu.infer.b1.vs_nanochat", 3.0, "x", 2.5, 3.4, 9, "nanochat 92d63d4", MACHINE, "python -m bench a|b", "abc123",
    "2026-01-02T00:00:00+00:00",
)  # fmt: skip


def test_the_committed_files_are_what_the_command_makes():
    old = [path.name for path, text in files(ROOT).items() if path.read_text(encoding="utf-8") != text]
    assert old == [], f"run {results.COMMAND}"


def test_every_target_is_named_once_with_an_area_a_meaning_and_bounds_in_order():
    names = [target.id for target in TARGETS]
    assert len(set(names)) == len(names) >= 56
    for target in TARGETS:
        assert results.area_of(target.id) in AREAS
        assert target.what and meaning(target.id) == target.what
        assert (target.aim >= target.must) if target.op == ">=" else (target.aim <= target.must)


@pytest.mark.parametrize(
    ("op", "low", "value", "high", "state"),
    [
        (">=", None, 6.0, None, "aim"), (">=", 5.9, 6.5, 7.0, "must"), (">=", 1.9, 6.0, 9.0, "short"),
        ("<=", None, 2.0, None, "aim"), ("<=", 1.0, 1.5, 2.1, "must"), ("<=", 1.0, 5.0, 6.1, "short"),
    ],
)  # fmt: skip
def test_a_value_is_judged_by_the_end_that_hurts(op, low, value, high, state):
    must, aim = (2.0, 6.0) if op == ">=" else (6.0, 2.0)
    assert Target("a.b.c", op, must, aim, "x", "").reached(replace(ROW, value=value, low=low, high=high)) == state


@pytest.fixture
def root(tmp_path):
    """A checkout with a README and no rows."""
    (tmp_path / "README.md").write_text(f"before\n{BEGIN}\n{END}\nafter\n")
    return tmp_path


def measured(root, *rows, name="some.jsonl"):
    for row in rows:
        append_result(root / "bench" / "results" / name, row)


def test_without_rows_nothing_is_measured_and_readme_says_nothing(root):
    assert main(["--root", str(root)]) == 0
    text = (root / "BENCH.md").read_text()
    assert f"0 short of it, {len(TARGETS)} not measured yet." in text
    assert text.count("not measured yet |") == len(TARGETS)
    assert "## Machines" not in text
    assert (root / "README.md").read_text() == f"before\n{BEGIN}\n{END}\nafter\n"


def test_a_row_shows_its_value_its_state_and_where_it_comes_from(root):
    measured(root, ROW)
    text = bench_text(read_all(root / "bench" / "results"))
    line = next(line for line in text.splitlines() if line.startswith("| `cpu.infer.b1.vs_nanochat`"))
    assert line.endswith("| 3x [2.5x, 3.4x] | >= 2x | >= 6x | must reached |")
    assert (
        "- `cpu.infer.b1.vs_nanochat`: m1, 2026-01-02, code abc123, n 9, against nanochat 92d63d4; "
        "again with ``python -m bench a|b``" in text
    )
    assert "- m1: Planted CPU, 2 cores, torch 2.13.0" in text


def test_the_newest_row_of_an_id_wins_in_whatever_file_and_the_older_ones_are_counted(root):
    measured(root, replace(ROW, value=2.6, date="2026-03-01T00:00:00+00:00"), name="a.jsonl")
    measured(root, ROW, replace(ROW, value=2.7, date="2025-03-01T00:00:00+00:00"), name="b.jsonl")
    text = bench_text(read_all(root / "bench" / "results"))
    assert "| 2.6x [2.5x, 3.4x] |" in text
    assert ", 2 older rows; again" in text


def test_of_two_rows_of_the_same_second_the_later_line_wins(root):
    measured(root, ROW, replace(ROW, value=2.9))
    assert read_all(root / "bench" / "results").newest[ROW.id].value == 2.9


def test_a_value_without_a_target_has_its_place_and_one_of_an_unknown_area_too(root):
    facts = replace(ROW, id="h200.facts.copy_bytes_per_s", value=4.3e12, low=None, high=None, unit="bytes/s")
    measured(root, facts, replace(facts, id="cpu.brandnew.thing", unit="s", value=0.01234))
    text = bench_text(read_all(root / "bench" / "results"))
    facts_line = "| `h200.facts.copy_bytes_per_s` | copying inside the device's memory, bytes read and written |"
    assert facts_line in text
    new = "## brandnew\n\n| value | what | measured |\n| :-- | :-- | --: |\n| `cpu.brandnew.thing` |  | 0.0123 s |"
    assert new in text


def test_shares_are_percent(root):
    share = replace(ROW, id="cpu.data.padded_share", value=0.00173, low=None, high=None, unit="share of positions")
    measured(root, share)
    assert "| 0.173% | <= 1% | <= 0.1% | must reached |" in bench_text(read_all(root / "bench" / "results"))


def test_readme_shows_headlines_that_were_measured_between_its_marks(root):
    measured(root, ROW, replace(ROW, id="cpu.infer.b16_prompts.vs_nanochat", value=20.0, low=18.0, high=21.0))
    assert main(["--root", str(root)]) == 0
    readme = (root / "README.md").read_text()
    assert readme.startswith(f"before\n{BEGIN}\n\n| measured | | on |\n") and readme.endswith(f"\n{END}\nafter\n")
    assert "| 20x [18x, 21x] | Planted CPU, 2 cores, torch 2.13.0 |" in readme
    assert "3x" not in readme  # no headline
    assert set(results.HEADLINES) <= {target.id for target in TARGETS}


def test_check_tells_what_is_old_and_writes_nothing(root, capsys):
    measured(root, ROW)
    assert main(["--check", "--root", str(root)]) == 1
    lines = [f"{name} is not current: run {results.COMMAND}\n" for name in ("BENCH.md", "case-study.md")]
    assert capsys.readouterr().out == "".join(lines)
    assert not (root / "BENCH.md").exists()
    assert main(["--root", str(root)]) == 0
    assert main(["--check", "--root", str(root)]) == 0


def test_a_row_that_is_none_stops_everything_and_is_named(root, capsys):
    measured(root, ROW)
    path = root / "bench" / "results" / "some.jsonl"
    path.write_text(path.read_text().replace('"value": 3.0', '"value": "3"'))
    assert main(["--root", str(root)]) == 2
    assert "'value' is '3', it must be a number" in capsys.readouterr().err
    assert not (root / "BENCH.md").exists()


@pytest.mark.parametrize("readme", ["no marks", f"{END}\n{BEGIN}", f"{BEGIN}{BEGIN}{END}"])
def test_a_readme_without_its_marks_is_refused(readme):
    with pytest.raises(UserError, match="no place for measured values"):
        with_measured(readme, "x")


def test_making_it_twice_changes_nothing(root):
    measured(root, ROW, replace(ROW, id="cpu.run.minutes", unit="min"))
    assert main(["--root", str(root)]) == 0
    before = {path.name: path.read_bytes() for path in root.glob("*.md")}
    assert main(["--root", str(root)]) == 0
    assert {path.name: path.read_bytes() for path in root.glob("*.md")} == before
