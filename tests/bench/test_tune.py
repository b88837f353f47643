"""`intone bench tune` on a machine made up here: its rows say how good the choice is, and they can be bad."""

import json

import pytest
from tests.tune.test_settle_batch import Probe

from intone import cli
from intone.bench import tune as bench
from intone.hardware import Facts
from intone.tune.settle_batch import BatchQuestion

GIB = 2**30
FACTS = Facts(fingerprint="cd" * 8, device="cpu", cores_logical=2, cores_physical=1, memory_bytes=8 * GIB)


@pytest.fixture
def run(home, monkeypatch, tmp_path):
    """run(**machine) -> {id: row} of the suite on two cases."""
    monkeypatch.setattr(bench, "load_facts", lambda: FACTS)
    monkeypatch.setattr("intone.bench.rows.load_facts", lambda: FACTS)
    monkeypatch.setattr(bench, "VOCAB", 300)

    def measure(**machine):
        log = []
        monkeypatch.setattr(BatchQuestion, "probe", lambda _, **how: Probe(log, **machine, **how))
        out = tmp_path / "rows.jsonl"
        out.unlink(missing_ok=True)
        words = ["bench", "tune", "--depths", "1", "2", "--contexts", "256", "--out", str(out), "--json"]
        assert cli.main(words) == 0
        return {row["id"]: row for row in map(json.loads, out.read_text().splitlines())}

    return measure


@pytest.mark.long
def test_the_rows_say_how_good_the_choice_is_and_what_it_cost(run):
    rows = run()
    assert set(rows) >= {
        "cpu.tune.batch_quality", "cpu.tune.batch_search_s", "cpu.tune.batch_hit_s", "cpu.tune.memory_error",
        "cpu.tune.search_oom", "cpu.tune.bisect.vs_line", "cpu.tune.batch_quality.d1.t256",
    }  # fmt: skip
    assert rows["cpu.tune.batch_quality"]["value"] >= 0.98 and rows["cpu.tune.batch_quality"]["n"] == 8
    assert rows["cpu.tune.memory_error"]["value"] == 0 and rows["cpu.tune.search_oom"]["value"] == 0


@pytest.mark.long
def test_a_bad_choice_has_a_bad_row(run, monkeypatch):
    import dataclasses

    search = bench.search
    monkeypatch.setattr(bench, "search", lambda *a: dataclasses.replace(search(*a), rows=1, predicted_bytes=GIB // 4))
    rows = run()
    assert rows["cpu.tune.batch_quality"]["value"] < 0.3
    assert rows["cpu.tune.memory_error"]["value"] == pytest.approx(1.0)


def test_a_case_is_expected_to_take_what_its_arithmetic_says():
    small = bench.Case(2, 256, {}, 0.0, None, {}, seconds=bench.FIXED_S + 20.0)
    assert bench.expected_s(small, 2, 256) == small.seconds
    larger, fewer_sizes = bench.expected_s(small, 6, 256), bench.expected_s(small, 6, 1024)
    assert larger > 3 * small.seconds and small.seconds < fewer_sizes < larger
