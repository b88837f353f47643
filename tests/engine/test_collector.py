"""What was loaded is not looked through again by the garbage collector; what comes later still is collected."""

import gc
import weakref

import pytest

from intone.engine import job
from intone.engine.collector import spare_loaded
from intone.engine.requests import Request


class Thing:
    def __init__(self):
        self.itself = self  # only a collection frees it


@pytest.fixture
def unfrozen():
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("unfrozen")
def test_collections_leave_out_what_was_loaded_and_free_what_came_later():
    loaded, later = Thing(), None
    spare_loaded()
    later = Thing()
    looked_at = {id(entry) for entry in gc.get_objects()}
    assert id(later) in looked_at and id(loaded) not in looked_at
    seen = weakref.ref(later)
    del later
    gc.collect()
    assert seen() is None


@pytest.mark.usefixtures("unfrozen")
def test_a_job_that_generates_spares_its_model(random_model, byte_tokenizer, monkeypatch):
    model = random_model(vocab_size=265, depth=1)
    monkeypatch.setattr(job, "open_model", lambda config: (model, byte_tokenizer, [Request([1], max_tokens=1)], {}))
    engine, _ = job.open_engine({})
    with engine:
        assert all(entry is not model for entry in gc.get_objects())
