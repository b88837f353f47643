"""docs/case-study.md: every row names something that exists, and shows what was measured or that nothing was."""

from dataclasses import replace

import pytest

from intone.bench import casestudy_page
from intone.bench.casestudy_page import SECTIONS, Claim, command_exists, ours, page_text
from intone.bench.rows import ROOT
from intone.bench.targets import TARGETS, meaning
from intone.config import model_config
from intone.model.cost import num_parameters
from intone.records import ResultRow

ROW = ResultRow(
    "cpu.casestudy.sft", 3.5, "x", 3.3, 3.7, 6, "start", {"cpu_name": "Planted CPU"}, "intone bench casestudy", "abc",
    "2026-01-02T00:00:00+00:00",
)  # fmt: skip
CLAIMS = [claim for claims in SECTIONS.values() for claim in claims]


def test_every_row_id_is_a_target_or_one_of_the_case_studys_own():
    targets = {target.id for target in TARGETS}
    for claim in CLAIMS:
        for name in claim.ids:
            assert name in targets or (".casestudy." in name and meaning(name)), name


def test_every_target_of_the_case_study_is_on_the_page():
    shown = {name for claim in CLAIMS for name in claim.ids}
    assert {target.id for target in TARGETS if ".casestudy." in target.id} <= shown


def test_a_row_without_a_number_says_in_words_what_ours_does_and_every_number_says_why_it_differs():
    for claim in CLAIMS:
        assert bool(claim.ids) != bool(claim.says), claim.theirs
        assert claim.why or claim.says, claim.theirs


def test_values_come_from_rows_and_what_is_missing_says_so():
    claim = Claim("theirs", "intone run", ("cpu.casestudy.sft", "cpu.casestudy.base"))
    words = {"cpu.casestudy.sft": ROW, "cpu.casestudy.base": replace(ROW, id="cpu.casestudy.base", value=3.4)}
    assert ours(claim, {}, lambda row: f"{row.value}x") == "not measured yet"
    assert ours(claim, {ROW.id: ROW}, lambda row: f"{row.value}x") == "3.5x; not measured yet"
    assert ours(claim, words, lambda row: f"{row.value}x") == "3.5x; 3.4x"


def test_a_verb_that_does_not_exist_is_not_claimed(monkeypatch):
    claim = Claim("theirs", "intone optimise TARGET", says="finds bottlenecks")
    monkeypatch.setattr(casestudy_page, "VERBS", {"run": None})
    assert ours(claim, {}, str) == "not built yet"
    monkeypatch.setattr(casestudy_page, "VERBS", {"optimise": None})
    assert ours(claim, {}, str) == "finds bottlenecks"


def test_commands_with_numbers_can_be_typed():
    for claim in CLAIMS:
        if claim.ids:
            assert command_exists(claim.command), claim.command


@pytest.mark.parametrize("section", SECTIONS)
def test_the_page_has_each_section_and_its_rows_have_five_cells(section):
    text = page_text({}, str, str)
    part = text.partition(f"## {section}\n")[2].partition("\n## ")[0]
    lines = [line for line in part.splitlines() if line.startswith("|")]
    assert len(lines) == len(SECTIONS[section]) + 2
    assert {line.count(" | ") for line in lines} == {4}


def test_the_published_model_has_the_parameters_that_were_published():
    config = model_config("classic", depth=12, vocab_size=65_536, context=2048, head_width=128, num_kv_heads=3)
    assert (config.width, config.num_heads) == (768, 6)
    counts = num_parameters(config)
    assert counts["total"] == 178_520_064


def test_the_readme_names_the_page():
    assert "docs/case-study.md" in (ROOT / "README.md").read_text()
