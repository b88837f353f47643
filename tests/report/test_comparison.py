"""Reports of measurements: verdicts with their intervals, and result rows."""

import json

import pytest

from intone.errors import Damaged, UserError
from intone.records import ResultRow, append_result
from intone.report.comparison import comparisons, machine_words, read_measured
from intone.report.document import Commands, Figure, KeyFigures, Prose, Table

FASTER = {
    "ratio": 1.7, "low": 1.6, "high": 1.8, "num_pairs": 12, "noise_low": 0.97, "noise_high": 1.03,
    "verdict": "faster", "reason": "the low end clears the noise", "more_pairs": None,
}  # fmt: skip
UNSURE = FASTER | {"ratio": 1.01, "low": 0.99, "high": 1.04, "verdict": "not proven", "more_pairs": 30}
MACHINE = {"cpu_name": "Planted CPU", "cores_physical": 2, "memory_bytes": 2**33, "torch_version": "2.13.0"}


def blocks(document, kind):
    return [block for section in document.sections for block in section.blocks if isinstance(block, kind)]


def written(tmp_path, value, name="measured.json"):
    path = tmp_path / name
    path.write_text(json.dumps(value))
    return path


def test_one_comparison_is_a_sentence_a_figure_and_a_row(tmp_path):
    document = read_measured(written(tmp_path, FASTER))
    assert (document.kind, document.title) == ("comparison", "measured")
    assert document.subtitle == "B against A: faster, 1.7x [1.6, 1.8], 12 pairs."
    [table] = blocks(document, Table)
    assert table.rows == [
        ["B against A", "faster", "1.7x [1.6, 1.8]", "0.97 to 1.03", "12", "the low end clears the noise"]
    ]
    [figure] = blocks(document, Figure)
    assert "1.7x [1.6, 1.8] faster" in figure.svg and 'class="band"' in figure.svg
    assert document.data["comparisons"] == [{"name": "B against A", **FASTER}]


def test_the_last_line_of_a_verb_is_found_into_and_named(tmp_path):
    answer = {"format": 1, "verb": "bench", "result": {"comparisons": [{"name": "compile", **FASTER}, UNSURE]}}
    document = read_measured(written(tmp_path, answer))
    [table] = blocks(document, Table)
    assert [row[0] for row in table.rows] == ["compile", "2"]
    assert table.rows[1][-1] == "the low end clears the noise; about 30 more pairs would tell"
    [figures] = document.lead
    assert isinstance(figures, KeyFigures)
    assert [entry[:2] for entry in figures.entries] == [("1", "faster"), ("1", "not proven")]


def test_names_come_from_the_keys_that_lead_to_a_comparison():
    value = {"result": {"sft": {"label": "pack", **FASTER}, "base": FASTER, "rows": [FASTER]}}
    assert [name for name, _ in comparisons(value)] == ["pack", "base", "B against A"]


def test_both_sides_are_shown_where_they_are_there(tmp_path):
    sides = {
        "before": {"value": 100.0, "low": 90.0, "high": 110.0, "unit": "tokens/s"},
        "after": {"name": "packed", "value": 170.0, "unit": "tokens/s"},
        "command": "intone bench A -- B",
    }
    document = read_measured(written(tmp_path, FASTER | sides))
    _, figure = blocks(document, Figure)
    assert "100 [90, 110]" in figure.svg and ">tokens/s</text>" in figure.svg and ">packed</text>" in figure.svg
    assert blocks(document, Commands)[0].lines == [("intone bench A -- B", "")]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"verdict": "great"}, "'great' is no verdict"),
        ({"low": 1.75}, "ratio 1.7 with interval"),
        ({"low": 0}, "ratio 1.7 with interval"),
        ({"ratio": "1.7"}, "ratio 1.7 with interval"),
    ],
)
def test_a_comparison_that_cannot_be_is_refused(tmp_path, change, words):
    with pytest.raises(Damaged, match=words):
        read_measured(written(tmp_path, FASTER | change))


def test_a_change_that_was_refused_has_a_row_and_no_point(tmp_path):
    refused = {"name": "skips a layer", "ratio": None, "low": None, "high": None, "num_pairs": 0, "verdict": "rejected",
               "reason": "losses differ"}  # fmt: skip
    document = read_measured(written(tmp_path, [refused, {"name": "compile", **FASTER}]))
    [table], [figure] = blocks(document, Table), blocks(document, Figure)
    assert table.rows[0] == ["skips a layer", "rejected", "not measured", "unknown", "", "losses differ"]
    assert "skips a layer" not in figure.svg
    alone = read_measured(written(tmp_path, refused))
    assert blocks(alone, Figure) == []
    assert alone.subtitle == "skips a layer: rejected, not measured."


@pytest.mark.parametrize("content", ["{}", "[]", '{"id": 1}', "[1, 2]"])
def test_a_file_of_something_else_is_refused(tmp_path, content):
    path = tmp_path / "other.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"other\.json holds"):
        read_measured(path)


def test_result_rows_show_the_newest_of_each_name_and_what_it_rests_on(tmp_path):
    path = tmp_path / "basics.jsonl"
    for value, date in ((9.0, "2026-01-02"), (7.0, "2026-01-01")):
        append_result(path, ResultRow(
            "cpu.run.minutes", value, "min", value - 1, value + 1, 5, None, MACHINE, "intone run", "abc123",
            f"{date}T00:00:00+00:00",
        ))  # fmt: skip
    document = read_measured(path)
    assert (document.kind, document.subtitle) == ("results", "1 measured values, and 1 earlier ones of the same names.")
    [table] = blocks(document, Table)
    assert table.rows == [["cpu.run.minutes", "9 [8, 10] min", "5", "", "2026-01-02", "abc123"]]
    assert [block.words for block in blocks(document, Prose)] == ["Planted CPU, 2 cores, 8 GiB, torch 2.13.0"]
    assert blocks(document, Commands)[0].lines == [("intone run", "")]
    assert machine_words({}) == "unknown machine"


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"has_avx512_bf16": True, "has_amx_bf16": False}, "chip, bf16 products"),
        ({"has_avx512_bf16": False, "has_amx_bf16": True}, "chip, bf16 products"),
        ({"has_avx512_bf16": False, "has_amx_bf16": False}, "chip, no bf16 products"),
        ({"has_avx512_bf16": False, "gpu_name": "card"}, "card"),
    ],
)
def test_machines_of_one_name_are_told_apart_by_their_products(facts, words):
    assert machine_words({"cpu_name": "chip", **facts}) == words
