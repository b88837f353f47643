"""A tiny comparison with a fake nanochat whose plan on our side is settled already; see fake_nanochat.py."""

import dataclasses
import sys

import pytest
from tests.bench.fake_nanochat import checkout_of, write_checkout
from tests.tiny_jobs import make_data

from intone.bench import train_launch, train_quality, train_speed, train_weights
from intone.bench.train_nanochat import Way
from intone.bench.train_ours import make_bench_home, write_job
from intone.bench.train_settings import BenchTrainSettings
from intone.data.shards import ensure_token_set
from intone.data.tokenizer import Tokenizer
from intone.records import Choice, Choices, Segment

SEGMENT = Segment(0, device_batch=5, compiled=False, dtype="fp32", attention="sdpa", reason="test", threads=1)
CHOICES = Choices({"device": Choice("cpu", "test", "default")}, (SEGMENT,), {}, {"OMP_NUM_THREADS": "1"})


@pytest.fixture(scope="session")
def long_job(tmp_path_factory):
    """A tiny job whose documents fill many rows: nanochat's model sees a row as one text, ours as it was packed."""
    folder = tmp_path_factory.mktemp("long")
    job = make_data(folder)
    documents = [" ".join(f"{n * k % 89} birds" for k in range(400)) for n in range(3, 30)]
    made = ensure_token_set(
        folder / "long", Tokenizer.load(folder / "tokenizer"), kind="documents", documents=lambda _: documents
    )
    return dataclasses.replace(job, data=(str(made[0].folder),))


@pytest.fixture
def pair(long_job, tmp_path, monkeypatch):
    """(settings, checkout) of a comparison whose plan on our side is settled already; nothing is compiled."""
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    # in this process: that a child answers as well is tested with the driver
    monkeypatch.setattr(train_weights, "ask_child", lambda _, question, **__: train_weights.answer(question))
    make_bench_home()
    checkout = checkout_of(write_checkout(tmp_path / "fake"), sys.executable)
    settings = BenchTrainSettings(
        nanochat=str(checkout.path), any_revision=True, context=long_job.context, vocab_size=265,
        batch_tokens=5 * long_job.context, their_dtypes=("fp32",), their_rows=(5,), val_tokens=8 * long_job.context,
        out=str(tmp_path / "rows.jsonl"),
    )  # fmt: skip

    def prepare(flags):
        steps = int(flags[flags.index("--steps") + 1]) if "--steps" in flags else long_job.steps
        return write_job(tmp_path / "plan", dataclasses.replace(long_job, steps=steps), CHOICES)

    for module in (train_speed, train_quality, train_launch):
        monkeypatch.setattr(module, "prepare", prepare)
        monkeypatch.setattr(module, "best_way", lambda *_, **__: Way(5, 1))
    return settings, checkout
