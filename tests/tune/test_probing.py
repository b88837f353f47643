"""Probes by a real worker: what it says, memory that really runs out, and that nothing is left behind."""

from dataclasses import replace

import pytest
from tests.tiny_jobs import ENVIRONMENT, SEGMENT

from intone import jobs
from intone.tune.batch import search_batch
from intone.tune.found import ProbeFailed
from intone.tune.probing import WorkerProbe

MIB = 2**20


@pytest.fixture
def probe(tiny_job, tmp_path):
    """probe(data_bytes=...) -> a probe of a tiny job, closed at the end of the test."""
    made = []

    def make(data_bytes=None, **changes):
        limits = jobs.Limits(data_bytes=data_bytes)
        job = replace(tiny_job, **changes)
        made.append(WorkerProbe(job, SEGMENT, "cpu", ENVIRONMENT, tmp_path / "trials", limits))
        return made[-1]

    yield make
    for entry in made:
        entry.close()
    assert not list((tmp_path / "trials").glob("*"))


def test_a_probe_tells_seconds_and_a_memory_that_grows_with_the_rows(probe):
    worker = probe()
    small, large = worker(1, 2, 2), worker(40, 2, 1)
    assert 0 < small.pass_s < 60 and 0 < small.update_s < 60
    assert large.pass_s > small.pass_s
    assert large.growth_bytes > small.growth_bytes >= 0
    assert worker.num_starts == 1 and worker.free_bytes > 0 and worker.start_bytes > 50 * MIB


@pytest.mark.long
def test_memory_that_really_runs_out_in_a_search_is_a_row_and_the_search_goes_on(probe):
    worker = probe(data_bytes=420 * MIB)  # the search is told of no limit
    found = search_batch(worker, 4096, None, method="bisect", budget_s=60.0)
    assert found.num_out_of_memory >= 1
    assert worker.num_starts == 1 + found.num_out_of_memory
    assert found.rows < 4096


def test_a_worker_that_cannot_start_fails_with_its_own_words(probe):
    worker = probe(tokenizer_hash="00" * 32)
    with pytest.raises(ProbeFailed, match="tokenizer") as caught:
        worker(1, 1, 1)
    assert not caught.value.out_of_memory
