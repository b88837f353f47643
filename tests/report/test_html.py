"""The page as HTML: one file that asks nobody for anything, in which foreign text is only text."""

import re
from html.parser import HTMLParser

import pytest

from intone.report.document import Commands, Document, Figure, KeyFigures, Prose, Sample, Samples, Section, Table
from intone.report.html import prose, to_html
from intone.report.record import read_record
from intone.report.run_page import run_document

VOID = {"meta", "link", "br", "img", "input", "hr"}
EVIL = '<script>alert("x")</script> & `code` | *stars*'


class Strict(HTMLParser):
    """Collects elements and text; raises where tags do not match."""

    def __init__(self, page):
        super().__init__()
        self.open, self.seen, self.words = [], [], []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def document(*blocks, lead=()):
    return Document("run", EVIL, EVIL, [Section("Title", "here", blocks)], {}, lead, EVIL)


@pytest.fixture
def evil_page():
    figure = Figure(EVIL, "<svg></svg>", EVIL, Table([EVIL, "b"], [[EVIL, EVIL]], caption=EVIL))
    return to_html(
        document(
            Prose(EVIL), figure, Table([EVIL], [[EVIL]], caption=EVIL, stacked=True), Commands([(EVIL, EVIL)]),
            Samples(EVIL, [Sample(EVIL, EVIL, EVIL, EVIL), Sample("asked", "")], folded=True),
            lead=[KeyFigures([(EVIL, EVIL, EVIL)])],
        )
    )  # fmt: skip


def test_foreign_text_is_text_wherever_it_stands(evil_page):
    page = Strict(evil_page)
    assert [tag for tag, _ in page.seen if tag == "script"] == []
    assert "".join(page.words).count('<script>alert("x")</script>') >= 15
    assert "(nothing)" in page.words


def test_a_real_page_loads_nothing_and_runs_nothing(finished):
    html = to_html(run_document(read_record("first_try")))
    page = Strict(html)
    for tag, attributes in page.seen:
        assert tag not in ("script", "iframe", "img", "object")
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "xlink:href"):
            assert attributes.get(name, "#").startswith(("#", "data:,"))
    style = html[html.index("<style>") : html.index("</style>")]
    assert "@import" not in style and re.findall(r"url\(([^)]*)\)", style) == ["#hatch"]
    assert html.count("http") == html.count("http://www.w3.org/2000/svg")


def test_a_real_page_can_be_heard_jumped_through_and_shown_in_the_dark(finished):
    html = to_html(run_document(read_record("first_try")))
    page = Strict(html)
    charts = [attributes for tag, attributes in page.seen if tag == "svg" and attributes.get("class") == "chart"]
    assert len(charts) == 10  # five figures in two sizes
    assert all(attributes["role"] == "img" and attributes["aria-label"] for attributes in charts)
    anchors = {attributes["href"][1:] for tag, attributes in page.seen if tag == "a"}
    assert anchors == {attributes["id"] for tag, attributes in page.seen if tag == "section"}
    assert page.seen[0] == ("html", {"lang": "en"})
    assert "prefers-color-scheme: dark" in html and "@media print" in html


def test_every_colour_that_a_chart_names_is_defined_for_light_dark_and_paper(finished):
    html = to_html(run_document(read_record("first_try")))
    style, body = html[: html.index("</style>")], html[html.index("</style>") :]
    used = set(re.findall(r'class="[^"]*\b([cs]\d)\b', body))
    assert used >= {"c1", "s1", "c3", "s3"}
    for name in used:
        assert f".{name} {{" in style
        assert style.count(f"--c{name[1]}:") == 3


def test_code_in_prose_is_marked_and_the_rest_escaped():
    assert prose("a `b < c` & `d`") == "a <code>b &lt; c</code> &amp; <code>d</code>"
