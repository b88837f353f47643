"""The suite `intone bench train`: which cases are measured, and where their rows go."""

import dataclasses
from pathlib import Path

import pytest
from tests.bench.nanochat_pair import long_job, pair  # noqa: F401  fixtures

from intone.bench import train, train_speed
from intone.bench.train_settings import BenchTrainSettings, command_line
from intone.errors import UserError
from intone.paths import read_lines


def test_cases_with_rows_of_this_code_are_left_out_unless_again(pair, monkeypatch, capsys):  # noqa: F811
    settings, _ = pair
    counted = []

    def case(settings, checkout):
        counted.append(1)
        row = train_speed.new_row(
            "cpu.train.first_50_steps.vs_nanochat", train_speed.Interval(0.5, 0.4, 0.6), "ratio of seconds", n=5,
            baseline=checkout.revision, command=command_line(settings, "first50"),
        )  # fmt: skip
        return [row]

    monkeypatch.setitem(train.CASES, "first50", case)
    settings = dataclasses.replace(settings, cases=("first50",))
    # a revision with + is of changed files: nobody knows whether its rows still hold
    asked = [("abc", False, 1), ("abc", False, 1), ("abc", True, 2), ("def", False, 3), ("de+", False, 4)]
    for code, again, total in [*asked, ("de+", False, 5)]:
        monkeypatch.setattr(train, "code_revision", lambda code=code: code)
        monkeypatch.setattr("intone.bench.rows.code_revision", lambda code=code: code)
        answer = train.bench_train(dataclasses.replace(settings, again=again), {})
        assert len(counted) == total
        assert answer.result["rows"][0]["code"] == code
    # another question of the same code
    train.bench_train(dataclasses.replace(settings, depth=5), {})
    assert len(counted) == 6
    assert len(read_lines(Path(settings.out))) == 6
    assert "first50: measured with this code already; --again measures it again" in capsys.readouterr().err


def test_rates_of_scalars_are_refused_where_they_would_be_ignored(pair):  # noqa: F811
    settings, _ = pair
    settings = dataclasses.replace(settings, cases=("d4", "tokens"), scalar_rates=0.05)
    with pytest.raises(UserError, match=r"--scalar-rates 0.05 is for d4 and d6, not for tokens"):
        train.bench_train(settings, {})


def test_a_row_names_the_command_that_makes_it_again_without_paths_of_this_machine():
    settings = BenchTrainSettings(
        nanochat="/my/nanochat", data=("/my/text",), val=("/my/val",), depth=5, fp32_check=False, quick=True,
        their_rows=(8,), out="/my/rows", again=True,
    )  # fmt: skip
    assert command_line(settings, "d6") == (
        "intone bench train --nanochat NANOCHAT --cases d6 --depth 5 --their-rows 8 --quick --no-fp32-check "
        "--data TRAIN --val VAL"
    )
    assert command_line(BenchTrainSettings(), "d4") == "intone bench train --nanochat NANOCHAT --cases d4"


def test_without_a_checkout_nothing_is_measured(home):
    with pytest.raises(UserError, match="there is no checkout of nanochat") as caught:
        train.bench_train(BenchTrainSettings(), {})
    assert "git clone" in caught.value.fix
    assert not home.exists()
