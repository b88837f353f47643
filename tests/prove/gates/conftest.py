"""Tiny jobs and models that gates judge, and the worker's code in this process."""

import gc

import pytest
import torch

from intone.prove.gates.tiny import TinyJobs
from intone.records import Outcome
from intone.train.loop import Trainer


@pytest.fixture(autouse=True)
def settings_of_this_process():
    """A trainer sets threads and determinism for its whole process; here they are put back."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    """Job folders on one small text."""
    return TinyJobs(tmp_path_factory.mktemp("jobs"))


def train_here(folder) -> Outcome:
    gc.freeze()  # the trainer's collection would look through all of torch, which is most of a tiny training's time
    return Trainer(folder, lambda: False).run()


@pytest.fixture(scope="session")
def run_here():
    """Runs a training job in this process, where a test can break it."""
    return train_here
