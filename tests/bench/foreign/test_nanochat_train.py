"""nanochat's driver: its recipe, its protocol, and what it says where something is wrong."""

import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tests.bench.fake_nanochat import checkout_of, write_checkout, write_rows

from intone.bench.foreign import nanochat_train
from intone.bench.foreign.nanochat_train import Recipe, Unusable, import_nanochat, recipe_for
from intone.bench.train_nanochat import NanochatChild, Way
from intone.bench.train_weights import score
from intone.config import ModelConfig, model_config
from intone.data.loader import Batch
from intone.evals.bpb import row_sums
from intone.exchange.nanochat import their_name
from intone.hardware import Facts
from intone.model.gpt import GPT
from intone.prove.live import LiveFailed

CONTEXT, VOCAB = 24, 131
MODEL = model_config("modern", depth=2, vocab_size=VOCAB, context=CONTEXT)
FACTS = Facts(fingerprint="ab" * 8, cores_physical=1, libc="glibc 2.36", device="cpu")
D12_SIZE = 110_100_912  # matrices and head of depth 12 with 32,768 entries


@pytest.fixture(scope="module")
def fake(tmp_path_factory):
    return write_checkout(tmp_path_factory.mktemp("fake"))


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return write_rows(tmp_path_factory.mktemp("rows") / "rows", num_rows=40, context=CONTEXT, vocab_size=VOCAB)


@pytest.fixture(autouse=True)
def nothing_is_compiled(monkeypatch):
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")


def child_of(checkout, rows, *, warm=2, batch_tokens=4 * CONTEXT, micro_rows=2, **more):
    place = checkout_of(checkout, sys.executable)
    way = Way(micro_rows, 1)
    return NanochatChild(place, MODEL, rows, way, FACTS, dtype="fp32", batch_tokens=batch_tokens, warm=warm, **more)


# --- the recipe -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("share", "batch_tokens"), [(1.0, 2**19), (0.38, 2**18), (6.6, 2**20)], ids=["depth 12", "depth 8", "depth 24"]
)
def test_nanochats_batch_grows_with_the_size_as_its_authors_list_it(share, batch_tokens):
    recipe = recipe_for(int(share * D12_SIZE), D12_SIZE, batch_tokens=0, steps=0)
    assert recipe.batch_tokens == batch_tokens
    assert recipe.steps == int(12 * int(share * D12_SIZE)) // batch_tokens
    assert recipe.rate_scale == pytest.approx(math.sqrt(batch_tokens / 2**19))
    assert recipe.weight_decay == pytest.approx(0.28 * recipe.rate_scale / share, rel=1e-6)


def test_a_batch_and_steps_that_are_asked_for_are_taken():
    recipe = recipe_for(D12_SIZE // 10, D12_SIZE, batch_tokens=16_384, steps=77)
    assert (recipe.batch_tokens, recipe.steps) == (16_384, 77)
    assert recipe.rate_scale == pytest.approx(2**-2.5)


def test_rates_rise_over_40_steps_stay_and_fall_to_a_twentieth():
    recipe = Recipe(16_384, 1000, 1.0, 0.4)
    assert recipe.rate(0) == 1 / 40
    assert [recipe.rate(step) for step in (39, 40, 350)] == [1.0, 1.0, 1.0]
    assert recipe.rate(675) == pytest.approx(0.525)
    assert recipe.rate(999) == pytest.approx(0.05 + 0.95 / 650)
    longer = Recipe(16_384, 2000, 1.0, 0.4)
    momenta = [longer.momentum(step) for step in (0, 200, 400, 699, 1350, 2000)]
    assert momenta == pytest.approx([0.85, 0.91, 0.97, 0.97, 0.935, 0.90])
    assert [recipe.decay(step) for step in (0, 500, 1000)] == pytest.approx([0.4, 0.2, 0.0])


# --- the protocol -----------------------------------------------------------------------------------------------------


def test_blocks_go_on_with_one_training_and_the_weights_score_alike_in_both_codes(fake, rows, tmp_path):
    with child_of(fake, rows) as child:
        ready = child.wait_ready()
        blocks = [child.block(steps=3), child.block(steps=4)]
        said = child.ask("evaluate", rows=3)
        child.ask("weights", path=str(tmp_path / "weights.npz"))
    assert (ready.first_s > 0, ready.warm_s > 0) == (True, True)
    facts = ready.facts
    assert (facts["dtype"], facts["micro_rows"], facts["threads"], facts["width"]) == ("float32", 2, 1, MODEL.width)
    assert facts["rate_scale"] == pytest.approx(math.sqrt(4 * CONTEXT / 2**19))
    assert [block["first_step"] for block in blocks] == [2, 5]
    assert [len(block["losses"]) for block in blocks] == [3, 4]
    assert [block["tokens"] for block in blocks] == [3 * 4 * CONTEXT, 4 * 4 * CONTEXT]
    targets = np.load(rows / "targets.npy")
    assert blocks[0]["supervised"] == (targets[8:20] >= 0).sum()
    assert blocks[0]["losses"][0] == pytest.approx(math.log(VOCAB), rel=0.02)
    assert all(block["seconds"] > 0 and block["peak_bytes"] > 1e6 for block in blocks)

    ours = score(rows, model=MODEL, weights=tmp_path / "weights.npz", num_rows=3)
    assert said["rows"] == len(ours["nats"]) == 3
    assert sum(ours["nats"]) == pytest.approx(said["nats"], rel=1e-5)
    assert sum(ours["bytes"]) == said["bytes"] < 3 * CONTEXT * 3

    # the evaluator itself, in this process, on all rows and seeing a row as one text as nanochat does
    with np.load(tmp_path / "weights.npz") as arrays:
        model = GPT(MODEL)
        names = [name for name, _ in model.named_parameters()]
        model.load_state_dict({name: torch.from_numpy(arrays[their_name(name)]) for name in names})
    ids, val_targets = (np.load(rows / f"val_{name}.npy") for name in ("ids", "targets"))
    batch = Batch(ids, val_targets, np.zeros_like(ids))
    sums = row_sums(model, [batch], np.load(rows / "token_bytes.npy"), device=torch.device("cpu"), dtype=torch.float32)
    assert sums[:3, 0].tolist() == pytest.approx(ours["nats"])


@pytest.fixture
def import_state(monkeypatch):
    """Takes back what importing a nanochat changes in this process."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "nanochat"]:
        del sys.modules[name]


def trainer_of(fake, rows, micro_rows=2, batch_tokens=4 * CONTEXT):
    """The driver's own half, in this process."""
    words = ["--nanochat", str(fake), "--rows", str(rows), "--depth", "2", "--head-width", "64"]
    numbers = {"context": CONTEXT, "vocab-size": VOCAB, "batch-tokens": batch_tokens, "micro-rows": micro_rows}
    words += [word for name, value in numbers.items() for word in (f"--{name}", str(value))]
    return nanochat_train.Trainer(nanochat_train.parse(words))


def test_the_loss_of_a_step_is_the_mean_over_its_tokens_however_it_is_split(fake, rows, import_state):
    (split, count), (whole, same_count) = (trainer_of(fake, rows, size).run_step() for size in (1, 4))
    assert split == pytest.approx(whole, rel=1e-6)
    assert count == same_count == (np.load(rows / "targets.npy")[:4] >= 0).sum()


def test_rates_of_scalars_and_gates_can_be_lowered_where_the_gates_are_found(fake, rows, import_state, monkeypatch):
    gate, other = torch.nn.Parameter(torch.zeros(1)), torch.nn.Parameter(torch.zeros(1))
    asked = {}

    def setup_optimizer(self, **rates):
        asked.update(rates)
        groups = [{"params": [parameter], "initial_lr": 0.2} for parameter in (gate, other)]
        return SimpleNamespace(param_groups=groups)

    def groups_at(factor):
        words = ["--nanochat", str(fake), "--rows", str(rows), "--depth", "2", "--context", str(CONTEXT)]
        words += ["--vocab-size", str(VOCAB), "--batch-tokens", str(4 * CONTEXT), "--micro-rows", "2"]
        trainer = nanochat_train.Trainer(nanochat_train.parse([*words, "--scalar-rates", str(factor)]))
        return [group["initial_lr"] for group in trainer.optimizer.param_groups], asked["scalar_lr"]

    with pytest.raises(Unusable, match="no group with backout_lambda"):
        groups_at(0.1)
    model = import_nanochat(fake)[0].GPT
    monkeypatch.setattr(model, "setup_optimizer", setup_optimizer)
    monkeypatch.setattr(model, "backout_lambda", gate, raising=False)
    as_shipped, scalar_lr = groups_at(1)
    assert as_shipped == [0.2, 0.2]
    lowered, low_scalar_lr = groups_at(0.1)
    assert lowered == pytest.approx([0.02, 0.2])
    assert low_scalar_lr == pytest.approx(0.1 * scalar_lr)


def test_rows_or_a_batch_that_cannot_be_are_refused_with_numbers(fake, rows, import_state):
    trainer = trainer_of(fake, rows)
    trainer.step = 10
    with pytest.raises(Unusable, match="step 11 needs row 42, there are 40"):
        trainer.run_step()
    trainer.repeat = True
    assert trainer.run_step()[1] == (np.load(rows / "targets.npy")[:4] >= 0).sum()  # rows 40 to 43 are rows 0 to 3
    with pytest.raises(Unusable, match="120 tokens per step are no multiple of 2 x 24"):
        trainer_of(fake, rows, batch_tokens=5 * CONTEXT)


def test_what_cannot_be_done_is_the_last_answer(fake, rows):
    with child_of(fake, rows, batch_tokens=5 * CONTEXT) as child, pytest.raises(LiveFailed) as caught:
        child.wait_ready()
    assert caught.value.outcome.outcome == "bad_input"
    assert "120 tokens per step are no multiple of 2 x 24" in caught.value.outcome.message


# --- a checkout that is not right -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gpt", "common", "words"),
    [
        ("import rustbpe_that_nobody_has", "COMPUTE_DTYPE = 1", "rustbpe_that_nobody_has"),
        ("class GPT:\n    init_weights = None\nGPTConfig = 1", "COMPUTE_DTYPE = 1", "has no GPT.setup_optimizer"),
        ("class GPTConfig: pass", "COMPUTE_DTYPE = 1", "has no GPT: it is another version"),
        (
            "class GPT:\n    init_weights = setup_optimizer = num_scaling_params = estimate_flops = 1\nGPTConfig = 1",
            "",
            "has no COMPUTE_DTYPE",
        ),
    ],
    ids=["package missing", "method missing", "class missing", "dtype missing"],
)
def test_another_version_or_a_missing_package_is_named(gpt, common, words, tmp_path, import_state):
    checkout = write_checkout(tmp_path, gpt=gpt, common=common)
    with pytest.raises(Unusable, match=words) as caught:
        import_nanochat(checkout)
    assert caught.value.fix


def test_a_folder_without_nanochat_is_named_with_where_to_get_it(tmp_path):
    with pytest.raises(Unusable, match="nanochat/gpt.py is missing") as caught:
        import_nanochat(tmp_path)
    assert "checkout 92d63d4" in caught.value.fix


def test_unreadable_rows_are_named(tmp_path):
    with pytest.raises(Unusable, match=f"the rows in {tmp_path} cannot be read"):
        nanochat_train.Rows(tmp_path)


def test_the_driver_needs_nothing_of_intone():
    """It runs in nanochat's Python, where intone is not installed."""
    path = Path(nanochat_train.__file__)
    code = f"import runpy, sys; runpy.run_path({str(path)!r}); print([n for n in sys.modules if 'intone' in n])"
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- the real one -----------------------------------------------------------------------------------------------------


def test_the_real_nanochat_computes_the_same_function_with_its_trained_weights(rows, tmp_path):
    checkout = os.environ.get("INTONE_TEST_NANOCHAT")
    if not checkout:
        pytest.skip("INTONE_TEST_NANOCHAT names no checkout of nanochat at 92d63d4")
    model = ModelConfig(**{**MODEL.as_json(), "depth": 3, "width": 192, "num_heads": 3, "num_kv_heads": 3})
    place = checkout_of(Path(checkout), sys.executable)
    with NanochatChild(place, model, rows, Way(4, 1), FACTS, dtype="fp32", batch_tokens=4 * CONTEXT) as child:
        child.wait_ready()
        child.block(steps=6)
        said = child.ask("evaluate", rows=5)
        child.ask("weights", path=str(tmp_path / "weights.npz"))
    ours = score(rows, model=model, weights=tmp_path / "weights.npz")
    assert sum(ours["nats"]) == pytest.approx(said["nats"], rel=1e-5)
    assert sum(ours["bytes"]) == said["bytes"]
