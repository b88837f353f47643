"""Charts: well-formed, described, inside their canvas, and with places that say the numbers they stand for."""

import re
import xml.etree.ElementTree as ElementTree

import pytest

from intone.report import charts
from intone.report.charts import Axis, Bar, Line, Ratio, Share, Span, Tip, both, tips_over

SVG = "{http://www.w3.org/2000/svg}"
POINTS = [(float(step), 4.0 / step) for step in range(1, 1_201)]


def parsed(svg):
    return ElementTree.fromstring(svg)


def words(root):
    return [entry.text for entry in root.iter(f"{SVG}text")]


def lines(width, **changes):
    settings = dict(x=Axis("step", 0.0), y=Axis("loss", 0.0), width=width, description="loss falls")
    drawn = [Line(POINTS, 1, "faint"), Line(POINTS[::7], 1), Line(POINTS[::400], 2, "dots", "val")]
    return parsed(charts.line_chart(drawn, **{**settings, **changes}))


@pytest.mark.parametrize("width", [charts.WIDE, charts.NARROW])
def test_every_chart_stays_inside_its_canvas(width):
    bars = [Bar("one", 50, 40, 61, "50% [40, 61]"), Bar("mean", 55, None, None, "55%", is_total=True)]
    ratios = [Ratio("compile", 1.7, 1.6, 1.8, "1.7x [1.6, 1.8] faster", (0.97, 1.03))]
    shares = [Share("steps", 70.0, 1, "70 s"), Share("not explained", 30.0, None, "30 s")]
    drawn = [
        lines(width, spans=[Span(0, 600, "base", 1), Span(600, 1200, "mid", 2)]),
        parsed(charts.bar_chart(bars, axis=Axis("right, %", 0.0, 100.0), width=width, description="skills")),
        parsed(charts.ratio_chart(ratios, axis=Axis("factor"), width=width, description="factors")),
        parsed(charts.share_chart(shares, width=width, description="time")),
    ]
    for root in drawn:
        _, _, wide, high = map(float, root.attrib["viewBox"].split())
        assert wide == width
        assert root.attrib["role"] == "img" and root.attrib["aria-label"]
        for entry in root.iter():
            for x in re.findall(r"[ML](-?[\d.]+) ", entry.attrib.get("d", "")):
                assert -1 <= float(x) <= wide + 1
            if "x" in entry.attrib:
                right = float(entry.attrib["x"]) + float(entry.attrib.get("width", 0))
                assert float(entry.attrib["x"]) >= -1 and right <= wide + 1
            for key in ("y", "cy"):
                assert -1 <= float(entry.attrib.get(key, 0)) <= high + 1


def test_a_line_falls_where_its_values_fall():
    root = lines(760)
    first, *_, last = re.findall(r"([\d.]+) ([\d.]+)", root.find(f"{SVG}path[@class='line bold s1']").attrib["d"])
    assert float(first[0]) < float(last[0])
    assert float(first[1]) < float(last[1])  # y grows downward
    assert [label for label in words(root) if label in ("loss", "step")] == ["loss", "step"]


def test_a_logarithmic_axis_shows_powers_of_ten():
    labels = words(lines(760, y=Axis("loss", is_log=True)))
    assert {"0.01", "0.1", "1"} <= set(labels)


def test_spans_are_named_where_there_is_room_and_strips_tell_the_numbers():
    root = lines(344, spans=[Span(0, 30, "a long name", 1), Span(30, 1200, "sft", 3)], tips=[Tip(0, 9, "step 1: 4.0")])
    assert "sft" in words(root) and "a long name" not in words(root)
    assert root.find(f"{SVG}rect[@class='strip']/{SVG}title").text == "step 1: 4.0"


def test_dots_tell_their_values_and_named_lines_are_in_the_legend():
    root = lines(760)
    assert [t.text for t in root.iter(f"{SVG}title")] == ["val 4", "val 0.009975", "val 0.004994"]
    assert "val" in words(root)


def test_a_line_without_points_is_left_out():
    drawn = [Line(POINTS, 1), Line([], 2)]
    root = parsed(charts.line_chart(drawn, x=Axis("x"), y=Axis("y"), width=344, description="d"))
    assert len(root.findall(f"{SVG}path")) == 1


def test_a_bar_is_as_long_as_its_value_and_its_whisker_spans_the_interval():
    bars = [Bar("half", 50, 25, 75, "50"), Bar("all", 100, None, None, "100")]
    root = parsed(charts.bar_chart(bars, axis=Axis("%", 0.0, 100.0), width=760, description="d"))
    half, whole = (float(r.attrib["width"]) for r in root.iter(f"{SVG}rect") if r.attrib["class"].startswith("bar"))
    assert half == pytest.approx(whole / 2, abs=0.1)
    [whisker] = [e.attrib["d"] for e in root.iter(f"{SVG}path") if e.attrib["class"] == "whisker"]
    begin, end = (float(x) for x in re.findall(r"M([\d.]+) [\d.]+v", whisker))
    assert end - begin == pytest.approx(whole / 2, abs=0.2)


def test_shares_fill_the_whole_width_and_unexplained_ones_are_hatched():
    shares = [Share("steps", 75.0, 1, "75 s"), Share("not explained", 25.0, None, "25 s")]
    root = parsed(charts.share_chart(shares, width=760, description="d"))
    parts = [group.find(f"{SVG}rect").attrib for group in root.iter(f"{SVG}g")]
    sizes = {part["class"]: float(part["width"]) for part in parts}
    assert sizes == {"part c1": 569, "part hatch": 189}
    assert {"75 s", "25 s"} <= set(words(root))


@pytest.mark.parametrize(("factor", "marks"), [(1.02, {"1.00x"}), (30.0, {"1x", "10x"})])
def test_factors_lie_around_one_whatever_their_size(factor, marks):
    ratios = [Ratio("a", factor, factor * 0.99, factor * 1.01, "shown", (0.98, 1.02))]
    root = parsed(charts.ratio_chart(ratios, axis=Axis("factor"), width=760, description="d"))
    assert marks <= set(words(root))
    one = next(e for e in root.iter(f"{SVG}line") if e.attrib["class"] == "axis")
    dot = root.find(f".//{SVG}circle")
    assert float(dot.attrib["cx"]) > float(one.attrib["x1"])


def test_both_sizes_are_drawn():
    assert both(lambda width: f"<{width}>") == '<div class="wide"><760></div><div class="narrow"><344></div>'


def test_strips_cut_the_axis_without_gaps():
    xs = [1.0, 2.0, 3.0, 4.0, 5.0]
    tips = tips_over(xs, lambda i, j: f"{i}-{j}", num=2)
    assert tips == [Tip(1.0, 2.5, "0-1"), Tip(2.5, 5.0, "2-4")]
    assert len(tips_over(xs, lambda i, j: "", num=48)) == 5
    assert tips_over([], lambda i, j: "") == []
