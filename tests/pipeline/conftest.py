"""`intone run` and `intone train` on a machine where nothing takes time."""

import pytest

from intone.pipeline import stages, verb
from tests.pipeline.machine import Machine


@pytest.fixture
def machine(home, tiny_job, monkeypatch):
    stand_in = Machine(tiny_job)
    for module, name in ((verb, "plan_run"), (verb, "plan_stage"), (stages, "supervise")):
        monkeypatch.setattr(module, name, getattr(stand_in, name))
    return stand_in
