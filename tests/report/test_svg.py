"""SVG text: escaped, short, and thinned without losing a peak."""

import math

from intone.report.svg import element, path, text, thinned, tip


def test_attributes_and_words_are_escaped():
    assert element("a", class_='x"y', x=1.25) == '<a class="x&quot;y" x="1.2"/>'
    assert text("a < b & c", stroke_width=2, x=None) == '<text stroke-width="2">a &lt; b &amp; c</text>'
    assert tip("<script>") == "<title>&lt;script&gt;</title>"


def test_coordinates_have_one_decimal_at_most():
    assert path([(0.04, 1.0), (2.26, 3.999)]) == "M0 1L2.3 4"


def test_a_thinned_line_keeps_its_ends_and_every_peak():
    points = [(float(i), math.sin(i / 50)) for i in range(5_003)]
    points[2_501] = (2_501.0, 9.0)
    kept = thinned(points, 100)
    assert len(kept) <= 200
    assert (2_501.0, 9.0) in kept
    assert min(kept, key=lambda p: p[1])[1] == min(points, key=lambda p: p[1])[1]
    assert kept == sorted(kept)
    assert kept[0][0] < 51 and kept[-1][0] > 4_950


def test_few_points_and_points_in_one_column_stay():
    points = [(0.0, 1.0), (1.0, 2.0)]
    assert thinned(points, 1) == points
    assert thinned([(3.0, float(i)) for i in range(9)], 2) == [(3.0, 0.0), (3.0, 8.0)]
