"""The records of a batch search: lines that know how far off they are, and an answer that survives a file."""

import json

import pytest

from intone.tune.found import Found, Size, fit


def test_a_line_knows_how_far_off_its_points_are():
    line = fit([(1, 3.0), (4, 9.5), (11, 23.0)])
    assert line.at(1) == pytest.approx(3.0) and line.at(11) == pytest.approx(23.0)
    assert line.off == pytest.approx(0.5)
    assert fit([(1, 3.0), (11, 23.0)]).off is None


def test_an_answer_comes_back_from_a_file_as_it_was():
    curve = (Size(3, 16, 1.5, 2**20, "measured"), Size(48, 1, None, None, "out of memory"))
    found = Found(3, "line", "the fastest step", curve, 0.1, 1.5, 2**30, None, 2**20, 5, 1, 9.5, "nothing", 2**28)
    assert Found.from_json(json.loads(json.dumps(found.as_json()))) == found
