"""Tiny training jobs: a byte tokenizer, a little text, a model of two blocks."""

import dataclasses
import gc
import shutil

import numpy as np
import pytest
import torch

from intone.config import ModelConfig, OptimConfig, ScheduleConfig, TrainJob, model_config
from intone.data.chat import Message
from intone.data.loader import Batch
from intone.data.shards import write_token_set
from intone.data.tokenizer import SPLIT_PATTERN, Tokenizer
from intone.model.checkpoint import newest_checkpoint
from intone.paths import write_json
from intone.records import Choice, Choices, Segment, write_choices
from intone.train.loop import Trainer

CONTEXT = 32
MODEL = ModelConfig(
    **{
        **model_config("modern", depth=2, vocab_size=265, context=CONTEXT).as_json(),
        **{"width": 64, "num_heads": 2, "num_kv_heads": 2, "head_width": 32, "short_window": 9},
    }
)


@pytest.fixture(autouse=True)
def settings_of_this_process():
    """A trainer sets threads and determinism for its whole process; here they are put back."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    gc.freeze()  # a training begins with a collection, which looks through all of torch: 0.2 s, most of a tiny one
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session")
def text_files(tmp_path_factory):
    """A folder with a tokenizer, documents to train on and to validate with, and conversations."""
    folder = tmp_path_factory.mktemp("text")
    tokenizer = Tokenizer([bytes([value]) for value in range(256)], SPLIT_PATTERN)
    tokenizer.save(folder / "tokenizer")
    words = ["the", "cat", "saw", "a", "small", "red", "bird", "near", "our", "old", "garden", "wall", "and", "sang"]
    texts = [" ".join(words[(i * 5 + j * j) % 14] for j in range(3 + i % 11)) for i in range(90)]
    write_token_set(folder / "train", texts[:80], tokenizer, kind="documents")
    write_token_set(folder / "val", texts[80:], tokenizer, kind="documents")
    talks = [[Message("user", text[:6]), Message("assistant", text[6:16])] for text in texts[:40]]
    write_token_set(folder / "talks", talks, tokenizer, kind="conversations")
    return folder


@pytest.fixture
def make_job(tmp_path, text_files):
    """make_job(name, segments=..., **fields of the TrainJob) -> the job's folder, ready for a worker."""
    tokenizer = text_files / "tokenizer"

    def made(name="job", *, segments=None, device="cpu", **fields):
        job = TrainJob(
            stage="base", model=MODEL, tokenizer=str(tokenizer), tokenizer_hash=Tokenizer.load(tokenizer).hash,
            data=(str(text_files / "train"),), val=None, context=CONTEXT, steps=7, rows_per_step=5,
            optim=OptimConfig(), schedule=ScheduleConfig(warmup_steps=1), seed=3,
        )  # fmt: skip
        folder = tmp_path / name
        folder.mkdir()
        write_json(folder / "config.json", dataclasses.replace(job, **fields).as_json())
        settings = {"device": Choice(device, "test", "default")}
        write_choices(folder, Choices(settings, tuple(segments or [segment(0)])))
        return folder

    return made


def segment(from_step, *, device_batch=5, dtype="fp32", attention="sdpa"):
    return Segment(from_step, device_batch, False, dtype, attention, f"plan of step {from_step}", threads=1)


@pytest.fixture(scope="session")
def plan():
    return segment


def stop_never():
    return False


class StopAfter:
    """A stop signal that arrives during the given step: the trainer asks once after every step."""

    def __init__(self, steps):
        self.left = steps

    def __call__(self):
        self.left -= 1
        return self.left <= 0


@pytest.fixture(scope="session")
def train():
    """train(folder, stop_after=None) -> the outcome of one process's work on a job."""

    def trained(folder, stop_after=None):
        gc.freeze()  # again: a training ends with gc.unfreeze
        return Trainer(folder, StopAfter(stop_after) if stop_after else stop_never).run()

    return trained


@pytest.fixture(scope="session")
def final_state():
    """final_state(folder) -> weights, moments and state of the newest save, all as comparable as can be."""

    def state(folder):
        checkpoint, problems = newest_checkpoint(folder)
        assert not problems
        kept = {name: value for name, value in checkpoint.state.items() if name != "elapsed_s"}
        tensors = {**checkpoint.weights, **checkpoint.optimizer}
        return checkpoint.step, {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}, kept

    return state


@pytest.fixture
def copied(tmp_path):
    """copied(folder, name) -> a copy of a job folder."""

    def copy(folder, name):
        return shutil.copytree(folder, tmp_path / name)

    return copy


def random_batch(rows, *, context=CONTEXT, seed=0):
    """Rows of two documents each, in which every token is supervised."""
    rng = np.random.default_rng(seed)
    ids, targets = (rng.integers(0, 265, (rows, context), dtype=np.int32) for _ in range(2))
    documents = np.zeros((rows, context), np.int32)
    documents[:, context // 3 :] = 1
    return Batch(ids, targets, documents)


@pytest.fixture(scope="session")
def batch_of():
    return random_batch


@pytest.fixture(scope="session")
def tiny_config():
    return MODEL
