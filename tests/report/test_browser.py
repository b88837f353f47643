"""Reports in a real browser: nothing is asked for, nothing sticks out, no words lie over others, in every guise."""

import json

import pytest
from tests.report.test_comparison import FASTER, UNSURE
from tests.serve.browser import Browser

from intone.report.comparison import read_measured
from intone.report.html import to_html
from intone.report.record import read_record
from intone.report.run_page import run_document

# pairs of words in charts that can be seen and overlap by more than a pixel each way
OVERLAPS = """(() => {
  const found = [];
  for (const chart of document.querySelectorAll('svg.chart')) {
    const words = [...chart.querySelectorAll('text')].map((e) => [e.textContent, e.getBoundingClientRect()]);
    const seen = words.filter(([text, box]) => text.trim() && box.width > 0);
    seen.forEach(([a, p], i) => seen.slice(i + 1).forEach(([b, q]) => {
      const wide = Math.min(p.right, q.right) - Math.max(p.left, q.left);
      const high = Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top);
      if (wide > 1 && high > 3) found.push(a + ' / ' + b);
    }));
  }
  return found;
})()"""
# name: (width of the window, a telephone, what the system prefers, medium)
GUISES = {
    "light": (1100, False, "light", ""), "dark": (1100, False, "dark", ""), "print": (720, False, "light", "print"),
    "phone": (390, True, "light", ""),
}  # fmt: skip


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("browser"))
    yield browser
    browser.close()


@pytest.fixture
def pages(finished, tmp_path):
    """The page of a run and that of comparisons, of which one has a long name."""
    entries = [FASTER | {"name": "packing"}, UNSURE | {"name": "generation: everything as this machine does it"}]
    measured = tmp_path / "measured.json"
    measured.write_text(json.dumps(entries))
    found = {"run": run_document(read_record("first_try")), "comparison": read_measured(measured)}
    for name, document in found.items():
        (tmp_path / f"{name}.html").write_text(to_html(document))
    return {name: (tmp_path / f"{name}.html").as_uri() for name in found}


@pytest.mark.parametrize("guise", GUISES)
def test_a_page_is_whole_and_readable(browser, pages, guise):
    width, is_phone, scheme, media = GUISES[guise]
    for name, address in pages.items():
        page = browser.open(address, width=width)
        page.size(width, 800, is_phone=is_phone)
        page.call(
            "Emulation.setEmulatedMedia", media=media, features=[{"name": "prefers-color-scheme", "value": scheme}]
        )
        assert page.complaints() == []
        assert [url for url in page.requests() if url != address] == [], "a report asks nobody for anything"
        assert page.run("document.documentElement.scrollWidth") <= width, f"{name} sticks out to the right"
        assert page.run(OVERLAPS) == [], name
        charts = page.run("[...document.querySelectorAll('svg.chart')].filter((e) => e.clientWidth > 0).length")
        assert charts >= 1
        red = int(page.run("getComputedStyle(document.body).backgroundColor").split("(")[1].split(",")[0])
        assert (red < 60) if guise == "dark" else (red > 240)
        page.close()
