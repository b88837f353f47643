"""Speed against nanochat: only the same training gives a row."""

import re

import pytest
from tests.bench.nanochat_pair import long_job, pair  # noqa: F401  fixtures

from intone.bench import train_speed
from intone.bench.train_losses import Match
from intone.bench.train_nanochat import Way
from intone.errors import UserError
from intone.model.cost import num_parameters
from intone.prove.measure import Measured, SideResult
from intone.prove.verdict import Comparison


def measured_once(sides, **_):
    """One block of every side instead of rounds in fresh processes, which measure.py's own tests are about."""
    results, rates = [], []
    for side in sides:
        with side.start() as child:
            ready = child.wait_ready()
            answer = child.block(steps=2)
        rates.append(answer["tokens"] / answer["seconds"])
        rate = rates[-1]
        results.append(SideResult(side.name, "tokens", rate, rate, rate, ready.first_s, None, 1, ready.facts))
    found = [Comparison(rate / rates[0], 0.9 * rate / rates[0], 1.2 * rate / rates[0], 5, 0.99, 1.01, "slower", "")
             for rate in rates[1:]]  # fmt: skip
    return Measured(tuple(results), tuple(found), (), 1, False, 1.0, "")


@pytest.mark.long
def test_the_same_training_gives_a_row_of_the_speeds(pair, long_job, monkeypatch, capsys):  # noqa: F811
    settings, checkout = pair
    counts = num_parameters(long_job.model)
    theirs = {
        "wte": "embedding", "value_embeds": "value_embeddings", "lm_head": "head", "transformer_matrices": "matrices",
        "scalars": "scalars", "total": "total",
    }  # fmt: skip
    facts = {"parameters": {name: counts[kind] for name, kind in theirs.items()}}
    losses = {"fp32": 4.0}
    monkeypatch.setattr(train_speed, "match", lambda *_, **__: Match(long_job, facts))
    monkeypatch.setattr(train_speed, "their_loss", lambda *_, dtype, **__: losses[dtype])
    monkeypatch.setattr(train_speed, "our_loss", lambda *_, **__: 4.01)
    monkeypatch.setattr(train_speed, "measure_rounds", measured_once)
    [row] = train_speed.speed_case(settings, checkout, "d4", 1)
    assert (row.id, row.n, row.unit) == ("cpu.train.d4.vs_nanochat", 5, "ratio of tokens/s")
    assert row.low == pytest.approx(row.value / 1.2)
    assert row.high == pytest.approx(row.value / 0.9)
    assert row.baseline.startswith("nanochat fake, fp32, 5 rows, 1 threads: ")
    shown = capsys.readouterr().out
    assert "loss at step 50: 4.0100, nanochat in fp32 4.0000: +0.25%" in shown
    assert re.search(rf"total +{counts['total']:,} +{counts['total']:,}  0.00%", shown)

    losses["fp32"] = 3.9
    with pytest.raises(UserError, match="away from nanochat in fp32: more than 1% is another training"):
        train_speed.speed_case(settings, checkout, "d4", 1)


def test_a_comparison_without_an_interval_gives_no_row(pair):  # noqa: F811
    settings, checkout = pair
    measured = Measured((), (), (), 1, False, 1.0, "others used a core")
    other = train_speed.Other("fp32", Way(5, 1), 4.0)
    found = Comparison(2.0, None, None, 5, 0.99, 1.01, "not proven", "the machine was unsteady: it was hot")
    with pytest.raises(UserError, match="fp32 could not be compared: the machine was unsteady") as refused:
        train_speed.speed_row(settings, "d4", other, found, checkout, measured)
    assert refused.value.fix == "measure when nothing else runs on this machine"
