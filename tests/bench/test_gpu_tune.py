"""The search for a micro-batch in the GPU suites: which rows come out, and that a bad choice is one."""

import dataclasses
import time

import pytest
from tests.bench.test_casestudy import FACTS
from tests.tune.test_settle_batch import Probe

from intone.bench import tune as bench_tune
from intone.bench.gpu_suites import casestudy
from intone.bench.gpu_suites import tune as suite
from intone.bench.gpu_suites.bench import Bench
from intone.records import read_results
from intone.tune.settle_batch import BatchQuestion


@pytest.fixture
def measured(tmp_path, home, monkeypatch):
    """measured() -> {id: row} of the suite on a machine made up here."""
    for module in (casestudy, suite):
        monkeypatch.setattr(module, "load_facts", lambda: FACTS)
    monkeypatch.setattr(BatchQuestion, "probe", lambda _, **how: Probe([], **how))
    (tmp_path / "scratch").mkdir()

    def run():
        bench = Bench(
            out=tmp_path, prefix="tiny", device="cpu", command="c", machine={}, machine_folder=tmp_path / "machine",
            code="abc", end_s=time.monotonic() + 60, scratch=tmp_path / "scratch",
        )  # fmt: skip
        suite.tune(bench)
        return {row.id: row for row in read_results(tmp_path / "rows.jsonl")}

    return run


def test_both_stages_have_rows_and_the_worse_stands_for_the_whole(measured):
    rows = measured()
    kinds = ("batch_quality", "batch_search_s", "search_oom", "memory_error")
    assert set(rows) == {
        *(f"tiny.tune.{kind}.{stage}" for kind in kinds for stage in ("base", "sft")),
        *(f"tiny.tune.{kind}" for kind in kinds if kind != "search_oom"),
    }
    quality = [rows[f"tiny.tune.batch_quality.{stage}"].value for stage in ("base", "sft")]
    assert rows["tiny.tune.batch_quality"].value == min(quality) >= 0.98
    assert rows["tiny.tune.search_oom.sft"].value == 0 and rows["tiny.tune.memory_error"].value == 0


def test_a_bad_choice_has_a_bad_row(measured, monkeypatch):
    search = bench_tune.search
    monkeypatch.setattr(bench_tune, "search", lambda *asked: dataclasses.replace(search(*asked), rows=1))
    assert measured()["tiny.tune.batch_quality"].value < 0.5
