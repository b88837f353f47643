"""Bits per byte against nanochat: who trains when, what is kept, and the difference with its interval."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from tests.bench.nanochat_pair import long_job, pair  # noqa: F401  fixtures

from intone.bench import train, train_quality
from intone.bench.train_ours import bench_home
from intone.bench.train_quality import Run, difference, their_batches
from intone.errors import UserError
from intone.records import read_results


@pytest.mark.long
def test_equal_tokens_are_trained_scored_and_kept_until_the_row_is_written(pair, monkeypatch, capsys):  # noqa: F811
    settings, _ = pair
    context = settings.context
    monkeypatch.setattr(train_quality.recipe, "auto_batch_tokens", lambda _: 5 * context)
    settings = dataclasses.replace(settings, cases=("tokens",), tokens=60 * context, their_batch_tokens=(10 * context,))
    written = train_quality.quality_row
    monkeypatch.setattr(train_quality, "quality_row", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):  # cut at the very end
        train.bench_train(settings, {})
    monkeypatch.setattr(train_quality, "quality_row", written)
    capsys.readouterr()
    answer = train.bench_train(settings, {})
    shown = capsys.readouterr()
    assert shown.err.count("kept from the measurement before") == 2
    [row] = read_results(Path(settings.out))
    assert answer.result["rows"] == [dataclasses.asdict(row)]
    assert (row.id, row.n, row.unit) == ("cpu.train.bpb_equal_tokens.minus_nanochat", 1, "bits per byte")
    assert row.low <= row.value <= row.high
    assert f"{row.id}  " in answer.text
    sides = [line.split("  ")[0] for line in shown.out.splitlines() if line.startswith(("intone", "nanochat"))]
    assert sides == ["intone 1", "nanochat 1, 320 tokens per step"]
    assert not list(bench_home().glob("cases/tokens-*"))


def run_with(nats, side="ours"):
    return Run(side, "plan", 64, 10, 60.0, list(nats), [10, 20, 30, 40])


def test_the_difference_is_over_all_bytes_and_holds_every_pair():
    a, b = run_with([7.0, 14.0, 21.0, 28.0]), run_with([8.0, 16.0, 24.0, 32.0])  # 0.7 and 0.8 nats per byte
    found = difference([(a, b)])
    assert found.value == pytest.approx(-0.1 / 0.6931472)
    assert found.low == pytest.approx(found.value)  # every row says the same
    worse = run_with([9.0, 18.0, 27.0, 36.0])
    both = difference([(a, b), (worse, b)])
    assert both.value == pytest.approx(0.0, abs=1e-9)
    assert (both.low, both.high) == pytest.approx((found.value, -found.value))
    other_rows = dataclasses.replace(b, num_bytes=[10, 20, 30, 41])
    with pytest.raises(UserError, match="scored on different validation rows"):
        difference([(a, other_rows)])


def test_ten_minutes_alternate_and_nanochats_best_batch_counts(pair, monkeypatch, capsys):  # noqa: F811
    settings, checkout = pair
    dtypes: dict[str, Any] = {"their_dtypes": ("fp32", "bf16")}
    settings = dataclasses.replace(settings, minutes=2.0, run_pairs=3, their_batch_tokens=(64, 320), **dtypes)
    speeds = {"intone": 0.5, "nanochat 64": 0.1, "nanochat 320": 2.0}
    monkeypatch.setattr(train_quality, "measure_speeds", lambda *_: speeds)
    log = []

    def ours(_contest, number, steps):
        log.append(("intone", number, steps))
        return run_with([7.0, 14.0, 21.0, 28.0])

    def theirs(_contest, number, pace):
        log.append((pace.batch_tokens, number, pace.steps))
        nats = [8.0, 16.0, 24.0, 32.0] if pace.batch_tokens == 64 else [9.0, 18.0, 27.0, 36.0]
        late = dataclasses.replace(run_with(nats, f"nanochat {pace.batch_tokens}"), training_s=150.0)
        return dataclasses.replace(late, batch_tokens=pace.batch_tokens)

    monkeypatch.setattr(train_quality.Contest, "ours", ours)
    monkeypatch.setattr(train_quality.Contest, "theirs", theirs)
    [row] = train_quality.timed_case(settings, checkout)
    assert log == [
        ("intone", 1, 240), (64, 1, 1200), (320, 1, 60),
        (64, 2, 1200), ("intone", 2, 240),
        ("intone", 3, 240), (64, 3, 1200),
    ]  # fmt: skip
    assert (row.id, row.n) == ("cpu.train.bpb_10min.minus_nanochat_bf16", 3)
    assert row.value == pytest.approx(-0.1 / 0.6931472)
    assert row.baseline == "nanochat fake, plan, 64 tokens per step: 1.1542"
    shown = capsys.readouterr()
    assert "nanochat 64: its steps took 2 min 30 s instead of 2 minutes" in shown.err
    assert "no, another batch is better" in shown.out
    [row] = train_quality.timed_case(dataclasses.replace(settings, their_dtypes=("fp32",)), checkout)
    assert row.id == "cpu.train.bpb_10min.minus_nanochat"


def test_nanochat_may_choose_between_its_own_script_and_our_batch(pair, long_job):  # noqa: F811
    settings, _ = pair
    assert their_batches(settings, long_job) == [160, 16_384]
    assert their_batches(dataclasses.replace(settings, their_batch_tokens=(320, 64)), long_job) == [64, 320]
    with pytest.raises(UserError, match="100 tokens per step are no multiple of the context 32"):
        their_batches(dataclasses.replace(settings, their_batch_tokens=(100,)), long_job)
