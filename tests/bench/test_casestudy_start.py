"""The case study's starting point: what its faults do, and that nothing else changes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.tiny_jobs import CONFIG, SEGMENT, write_job

from intone.bench import casestudy_start
from intone.bench.casestudy_start import NONE, Faults, StartChild, padded_batches, planted, start_choices, start_engine
from intone.data.chat import Message
from intone.data.loader import Batch, Rows
from intone.data.shards import TokenSet, write_token_set
from intone.data.tokenizer import Tokenizer
from intone.engine.engine import Engine
from intone.engine.naive import generate_naive
from intone.engine.requests import Request
from intone.engine.text import Specials
from intone.errors import UserError
from intone.model.gpt import GPT
from intone.model.optim import Optimizer
from intone.paths import write_json
from intone.records import read_choices
from intone.train import step as step_module
from intone.train.schedule import scale_at
from intone.train.step import TrainStep


@pytest.fixture(scope="module")
def talk_job(tmp_path_factory, tiny_job):
    """tiny_job on conversations of 5 to 20 tokens."""
    folder = tmp_path_factory.mktemp("talk")
    tokenizer = Tokenizer.load(Path(tiny_job.tokenizer))
    talks = [[Message("user", "x" * (1 + n % 5)), Message("assistant", "ab" * (1 + n % 7))] for n in range(120)]
    write_token_set(folder / "set", talks, tokenizer, kind="conversations")
    return replace(tiny_job, stage="sft", data=(str(folder / "set"),), val=None, keep=0, steps=1000)


@pytest.fixture
def batch(talk_job):
    return Rows([TokenSet.open(Path(talk_job.data[0]))], talk_job.context, 3).rows(0, 7)


def learned(batch):
    """Every (token before, token to learn) of a batch, sorted."""
    at = batch.targets >= 0
    return sorted(zip(batch.ids[at].tolist(), batch.targets[at].tolist(), strict=True))


def test_padded_rows_hold_one_conversation_each_and_teach_the_same(batch):
    parts = padded_batches(batch, 4, padded=False)
    assert sum(map(learned, parts), []) and sorted(sum(map(learned, parts), [])) == learned(batch)
    num_talks = sum(len(set(row[targets >= 0])) for row, targets in zip(batch.documents, batch.targets, strict=True))
    assert sum(len(part) for part in parts) == num_talks > len(batch)
    assert [len(part) for part in parts[:-1]] == [4] * (len(parts) - 1)
    for part in parts:
        assert part.documents is None
        # the longest conversation fills its row: its last learned token stands in one of the last two places
        assert (part.targets[:, -2:] >= 0).any() and part.ids.shape[1] < batch.ids.shape[1]


def test_compiled_code_gets_one_shape(batch):
    shapes = {part.ids.shape for part in padded_batches(batch, 4, padded=True)}
    assert shapes == {(4, batch.ids.shape[1])}


def test_rows_of_a_whole_document_stay_as_they_are():
    ids = np.arange(12, dtype=np.int32).reshape(2, 6)
    full = Batch(ids, ids + 1, np.zeros_like(ids))
    (part,) = padded_batches(full, 4, padded=False)
    assert sorted(map(tuple, part.ids.tolist())) == sorted(map(tuple, ids.tolist()))


def one_step(job, batch, monkeypatch):
    """(loss, number of learned tokens, gradients) of a step in this process, without its update."""
    monkeypatch.setattr(Optimizer, "step", lambda *_: None)
    torch.manual_seed(0)
    model = GPT(job.model)
    model.init_weights(seed=1)
    with torch.no_grad():  # output projections start at zero, which would hide everything below them
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    runner = TrainStep(
        model, Optimizer(model, job.optim), device=torch.device("cpu"), dtype="fp32", device_batch=3, compiled=False
    )
    result = runner.run(batch, scale_at(job.schedule, 5, job.steps))
    return result.sync_loss(), result.num_supervised, torch.cat([p.grad.flatten() for p in model.parameters()])


def test_a_step_with_padded_rows_learns_the_same(talk_job, batch, monkeypatch):
    loss, supervised, gradients = one_step(talk_job, batch, monkeypatch)
    before = step_module.micro_batches
    with planted(Faults.named("padded_rows")):
        padded_loss, padded_supervised, padded_gradients = one_step(talk_job, batch, monkeypatch)
    assert step_module.micro_batches is before, "the fault stays inside its with block"
    assert padded_supervised == supervised
    assert padded_loss == pytest.approx(loss, rel=1e-5)
    # the same gradients, summed in another order in fp32
    assert (padded_gradients - gradients).norm() < 1e-5 * gradients.norm()


def test_the_plan_of_the_start_changes_batch_and_code_only(tmp_path, tiny_job):
    tuned = replace(SEGMENT, device_batch=5, compiled=True, attention="products", threads=1)
    choices = read_choices(write_job(tmp_path, tiny_job, tuned))
    (start,) = start_choices(choices).segments
    assert (start.device_batch, start.compiled, start.kernels, start.attention) == (4, False, "torch", "sdpa")
    assert (start.dtype, start.threads) == (tuned.dtype, tuned.threads)
    assert start_choices(choices, NONE).segments == choices.segments
    (mended,) = start_choices(choices, Faults.named("eager")).segments
    assert (mended.device_batch, mended.compiled) == (5, False)


def test_an_unknown_fault_is_refused_with_the_nearest_name():
    with pytest.raises(UserError, match="padded_row'") as found:
        Faults.named("padded_row")
    assert "padded_rows" in str(found.value.fix)


@pytest.fixture(scope="module")
def model():
    model = GPT(CONFIG)
    model.init_weights(seed=0)
    with torch.no_grad():
        model.head.weight.normal_(generator=torch.Generator().manual_seed(3))
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def tokenizer(tiny_job):
    return Tokenizer.load(Path(tiny_job.tokenizer))


def test_the_naive_start_writes_the_engines_tokens(model, tokenizer):
    request = Request([5, 6, 7], max_tokens=9, temperature=1.0, seed=4, n=3, tools=False)
    naive = start_engine(model, tokenizer, Faults.named("no_cache"))
    with Engine(model, tokenizer) as engine:
        expected = engine.generate([request])[0]
    assert [sample.ids for sample in naive.generate([request])[0]] == [sample.ids for sample in expected]


def test_a_text_that_must_not_end_is_the_engines_also_where_the_model_would_end_it(model, tokenizer):
    ends = sorted(Specials.of(tokenizer).ends)
    model.head.weight[ends] *= 20  # some end token is the likeliest or the unlikeliest everywhere
    request = Request([5, 6, 7], max_tokens=12, min_tokens=12, temperature=0.0, tools=False)
    try:
        assert set(generate_naive(model, [5, 6, 7], max_tokens=12).ids) & set(ends), "else nothing is tried here"
        with Engine(model, tokenizer) as engine:
            expected = engine.generate([request])[0][0].ids
        assert start_engine(model, tokenizer, Faults.named("no_cache")).generate([request])[0][0].ids == expected
    finally:
        model.head.weight[ends] /= 20


@pytest.mark.parametrize("names", [("copied_first_token",), ("copied_first_token", "no_cache")])
def test_copied_first_tokens_are_all_alike_and_only_they(model, tokenizer, names):
    request = Request([5, 6, 7], max_tokens=6, min_tokens=6, temperature=2.0, seed=1, n=12, tools=False)
    with start_engine(model, tokenizer, Faults.named(*names)) as engine:
        samples = engine.generate([request])[0]
    assert len({sample.ids[0] for sample in samples}) == 1
    assert len({sample.ids[1] for sample in samples}) > 1
    with start_engine(model, tokenizer, Faults.named(*names[1:])) as engine:
        assert len({sample.ids[0] for sample in engine.generate([request])[0]}) > 1


def test_the_start_refuses_what_it_cannot_do(model, tokenizer):
    with start_engine(model, tokenizer) as engine, pytest.raises(UserError, match="temperature and top_k"):
        engine.generate([Request([1], max_tokens=2, top_p=0.5)])


def test_a_live_worker_trains_with_padded_rows(tmp_path, talk_job):
    folder = write_job(tmp_path / "job", talk_job)
    casestudy_start.write_faults(folder, Faults.named("padded_rows"))
    with StartChild(folder) as child:
        child.wait_ready()
        answer = child.block(steps=2)
    assert answer["tokens"] == 2 * talk_job.rows_per_step * talk_job.context
    assert 0 < answer["supervised"] < answer["tokens"]
    assert all(np.isfinite(answer["losses"]))


def test_a_generate_job_runs_at_the_start_and_says_so_where_its_faults_are_unknown(tmp_path, tiny_job):
    folder = tmp_path / "job"
    write_json(folder / "config.json", {"format": 1, "job": "generate", "from": "nowhere", "prompts": [[1]]})
    write_json(folder / casestudy_start.FAULTS_FILE, {"small_batches": True})
    outcome = casestudy_start.run_start(folder)
    assert outcome.outcome == "error" and "exit code" in outcome.message
    assert "small_batches" in (folder / "start.log").read_text()
