"""The page as Markdown: the same content, and foreign text that cannot become markup."""

from intone.report.document import Document, Figure, Prose, Sample, Samples, Section, Table
from intone.report.markdown import plain, to_markdown
from intone.report.record import read_record
from intone.report.run_page import run_document


def test_a_document_becomes_headings_tables_and_lists():
    blocks = [
        Prose("All of `it`."),
        Table(["name", "n"], [["a|b", "1"]], caption="Caption."),
        Figure("Curve", "<svg/>", "Falls.", Table(["x"], [["2"]])),
        Samples("Says", [Sample("hi\nyou", "*ho*", "skill", "right"), Sample("q", "")]),
    ]
    text = to_markdown(Document("run", "my_run", "Sub.", [Section("One", "one", blocks)], {}, footer="End."))
    assert text == (
        "# my\\_run\n\nSub.\n\n## One\n\nAll of `it`.\n\nCaption.\n\n| name | n |\n| :-- | --: |\n| a\\|b | 1 |\n\n"
        "### Curve\n\nFalls.\n\n| x |\n| :-- |\n| 2 |\n\n"
        "### Says\n\n- skill: hi you → \\*ho\\* (right: right)\n- q → (nothing)\n\nEnd.\n"
    )


def test_no_letter_of_foreign_text_means_anything():
    assert plain("[a](b) `c` <d> #e ~f & g\n| h") == "\\[a\\](b) \\`c\\` \\<d\\> \\#e \\~f \\& g \\| h"


def test_a_run_has_its_commands_and_numbers_but_no_picture(finished):
    text = to_markdown(run_document(read_record("first_try")))
    assert "```\nintone chat --from first_try\n" in text
    assert "| dtype | bf16 | measured | 1.6x as fast | fp32: slower by 1.6x |" in text
    assert "- held-out skills right: **70.0%** (95% interval 64.0 to 75.0)" in text
    assert "<svg" not in text
    widths = [line.count("|") - line.count("\\|") for line in text.splitlines() if line.startswith("|")]
    assert min(widths) >= 2
