"""Whether two trainings are the same: their parameters, windows, functions and losses."""

import contextlib
import dataclasses
import math
import re
from pathlib import Path

import pytest
from tests.bench.nanochat_pair import CHOICES, long_job, pair  # noqa: F401  fixtures

from intone.bench import train_losses
from intone.bench.train_losses import in_fp32, match, our_loss, their_loss
from intone.bench.train_nanochat import Way
from intone.bench.train_ours import export_rows, make_bench_home
from intone.config import TrainJob, model_config
from intone.errors import UserError
from intone.hardware import Facts

FACTS = Facts(fingerprint="ab" * 8, cores_physical=1, libc="glibc 2.36", device="cpu", torch_version="2.13.0")


def test_losses_must_agree_with_nanochats_and_our_own_fp32():
    assert train_losses.check_losses(4.02, 4.0, 4.01) == [
        "loss at step 50: 4.0200, nanochat in fp32 4.0000: +0.50%",
        "loss at step 50: 4.0200, our own fp32 4.0100: +0.25%",
    ]
    assert len(train_losses.check_losses(4.02, 4.0, None)) == 1
    for ours, theirs, fp32, words in (
        (4.05, 4.0, None, r"\+1.25% away from nanochat in fp32"),
        (3.95, 4.0, None, "-1.25% away from nanochat in fp32"),  # better is another training too
        (4.1, None, 4.0, r"\+2.50% away from our own fp32"),
        (None, 4.0, 4.0, "our loss is not finite within 50 steps"),
    ):
        with pytest.raises(UserError, match=words):
            train_losses.check_losses(ours, theirs, fp32)


def shape_facts(job):
    """What the driver says of a model with our parameters and windows."""
    kinds = train_losses.num_parameters(job.model)
    theirs = {"wte": "embedding", "value_embeds": "value_embeddings", "lm_head": "head",
              "transformer_matrices": "matrices", "scalars": "scalars", "total": "total"}  # fmt: skip
    windows = [job.model.window(i) - (job.model.window(i) < job.context) for i in range(job.model.depth)]
    return {"parameters": {name: kinds[kind] for name, kind in theirs.items()}, "windows": windows}


def test_another_number_of_parameters_or_another_window_is_another_model(tiny_job):
    model = model_config("modern", depth=6, vocab_size=300, context=512)
    job: TrainJob = dataclasses.replace(tiny_job, model=model, context=512)
    facts = shape_facts(job)
    assert facts["windows"] == [128, 128, 128, 512, 128, 512]
    train_losses.check_shape(job, facts)
    facts["parameters"]["transformer_matrices"] = int(1.02 * facts["parameters"]["transformer_matrices"])
    with pytest.raises(UserError, match="matrices: .* parameters against nanochat's .*: not the same model"):
        train_losses.check_shape(job, facts)
    facts = shape_facts(job)
    facts["windows"][1] = 512
    with pytest.raises(UserError, match="windows .* not the same model"):
        train_losses.check_shape(job, facts)


@pytest.mark.long
def test_from_one_start_both_sides_learn_alike_on_the_same_rows(pair, long_job, monkeypatch, capsys):  # noqa: F811
    """The fake has our model and optimizer: what differs is everything between them and the losses."""
    settings, checkout = pair
    rows = export_rows(long_job, 60 * long_job.rows_per_step, settings.val_tokens)
    batch = {"batch_tokens": settings.batch_tokens}
    same = match(checkout, long_job, rows, FACTS, **batch)
    assert same.job.steps == same.nanochat["steps"]
    theirs = their_loss(checkout, same.job, rows, Way(5, 1), FACTS, dtype="fp32", **batch)
    assert re.search(r"weights after 50 steps: (\S+) nats in our code, \1 in its own", capsys.readouterr().err)
    ours = our_loss(same.job, in_fp32(CHOICES))
    assert ours == pytest.approx(theirs, rel=1e-3)
    assert ours < 0.8 * math.log(265)

    # all of it is kept
    monkeypatch.setattr(train_losses, "NanochatChild", None)
    monkeypatch.setattr(train_losses, "WorkerChild", None)
    assert match(checkout, long_job, rows, FACTS, **batch) == same
    assert their_loss(checkout, same.job, rows, Way(1, 1), FACTS, dtype="fp32", **batch) == theirs
    assert our_loss(same.job, in_fp32(CHOICES)) == ours


def test_one_set_of_weights_with_other_nats_is_another_function(tiny_job, tmp_path, monkeypatch, home):
    class Child:
        def ask(self, what, **question):
            if what == "evaluate":
                return {"nats": 1000.0, "bytes": 90, "step": 50}
            Path(question["path"]).write_bytes(b"")
            return {}

    make_bench_home()
    for last_nats, last_bytes, is_same in ((600.01, 50, True), (601.0, 50, False), (600.0, 51, False)):
        scored = {"nats": [400.0, last_nats], "bytes": [40, last_bytes]}
        monkeypatch.setattr(train_losses, "score", lambda *_, scored=scored, **__: scored)
        with contextlib.nullcontext() if is_same else pytest.raises(UserError, match="different functions"):
            train_losses.check_function(Child(), tiny_job, tmp_path)


def test_a_loss_is_measured_once_and_may_be_not_finite(home):
    answers = [None, 3.0]
    for fresh, loss in ((False, None), (False, None), (True, 3.0), (False, 3.0)):
        assert train_losses.kept_loss("nanochat-x", lambda: answers.pop(0), fresh=fresh) == loss
