"""From launch to step 50: whose turn it is, and what is kept between launches."""

from pathlib import Path

import pytest
from tests.bench.nanochat_pair import long_job, pair  # noqa: F401  fixtures

from intone.bench import train_launch
from intone.bench.train_ours import bench_home, make_bench_home
from intone.records import read_log


def test_launches_take_turns_and_a_cold_cache_is_new_each_time(home):
    make_bench_home()
    log: list[tuple[str, Path]] = []
    ours, theirs = (lambda cache, name=name: log.append((name, cache)) for name in ("ours", "theirs"))
    seconds = train_launch.launches(ours, theirs, pairs=3, cache="cold")
    assert [name for name, _ in log] == ["ours", "theirs", "theirs", "ours", "ours", "theirs"]
    assert len({cache for _, cache in log}) == 6
    assert [len(part) for part in seconds] == [3, 3]
    log.clear()
    seconds = train_launch.launches(ours, theirs, pairs=2, cache="warm")
    assert [name for name, _ in log] == ["ours", "theirs", "ours", "theirs", "theirs", "ours"]
    assert len({cache for _, cache in log}) == 2
    assert [len(part) for part in seconds] == [2, 2]


@pytest.mark.long
def test_both_sides_train_to_step_fifty(pair, tmp_path, monkeypatch, capsys):  # noqa: F811
    settings, checkout = pair

    def once(ours, theirs, **_):
        ours(tmp_path / "ours")
        theirs(tmp_path / "theirs")
        return [10.0, 12.0], [20.0, 20.0]

    monkeypatch.setattr(train_launch, "launches", once)
    [row] = train_launch.launch_case(settings, checkout)
    assert (row.id, row.value, row.n) == ("cpu.train.first_50_steps.vs_nanochat", 0.55, settings.launches)
    assert "cold cache: 20.0 s" in row.baseline
    shown = capsys.readouterr()
    assert "to step 50" in shown.out
    assert len(read_log(bench_home() / "live" / "launch" / "log.jsonl", "step")) == 50
