"""The forecast of `intone run --show`: plausible, and it follows what is asked."""

import pytest

from intone import recipe
from intone.ground import Settled
from intone.hardware import load_facts
from intone.pipeline import forecast as module
from intone.pipeline.forecast import forecast
from intone.planning import settle_size
from intone.resolving import Layer, resolve
from intone.settings import RunSettings

RATES = {"device": "cpu", "fp32_flops_per_s": 1e11, "bf16_flops_per_s": 3e11}


@pytest.fixture(autouse=True)
def known_machine(home, monkeypatch):
    monkeypatch.setattr(module, "load_facts", lambda: load_facts(measure=lambda _: RATES))


def test_what_is_asked_is_not_guessed():
    text, values = forecast(RunSettings(depth=3, context=96, vocab_size=777, minutes=4), {})
    assert (values["depth"], values["context"], values["vocab_size"], values["minutes"]) == (3, 96, 777, 4)
    assert text.splitlines()[0].startswith("about 4 minutes, ")
    assert text.splitlines()[1] == "depth 3 (asked for), context 96, 777 vocabulary entries"


def test_what_is_open_gets_a_value_and_a_reason():
    text, values = forecast(RunSettings(), {})
    assert values["minutes"] == recipe.default_minutes()
    assert values["depth"] >= 1
    assert "tokens fit in the time" in text


def test_the_depth_is_the_one_that_planning_settles_on():
    facts = load_facts(measure=lambda _: RATES)
    for minutes in (1.0, 8.0, 90.0):
        settings, origins = resolve(RunSettings, [Layer("flag", "--minutes", {"minutes": minutes})])
        planned, _, _ = settle_size(Settled(facts, {}), origins, facts, minutes, is_starter=True)
        assert forecast(settings, origins)[1]["depth"] == planned


def test_a_deeper_model_needs_more_memory_and_disk():
    small, large = (forecast(RunSettings(depth=depth), {})[1] for depth in (3, 9))
    assert small["memory_bytes"] < large["memory_bytes"]
    assert small["disk_bytes"] < large["disk_bytes"]
    assert 2**28 < small["memory_bytes"] < 2**32


def test_more_kept_saves_need_more_disk_and_larger_micro_batches_more_memory():
    default = forecast(RunSettings(depth=3), {})[1]
    assert forecast(RunSettings(depth=3, keep=5), {})[1]["disk_bytes"] > default["disk_bytes"]
    assert forecast(RunSettings(depth=3, device_batch=99), {})[1]["memory_bytes"] > default["memory_bytes"]


def test_what_must_be_fetched_is_told_and_counted_as_disk():
    text, values = forecast(RunSettings(depth=3), {})
    assert values["fetch_bytes"] == 0 and "to fetch" not in text
    text, more = forecast(RunSettings(depth=3, data=("starter:0.5,tinystories:0.5",)), {})
    assert more["fetch_bytes"] == 259_000_000
    assert more["disk_bytes"] - values["disk_bytes"] > 2 * more["fetch_bytes"]
    assert text.splitlines()[0].endswith(" of disk, 0.241 GiB to fetch where they are not here yet")
