"""A nanochat checkpoint of every time gives the logits that nanochat's code of that time gives."""

import dataclasses
import json

import pytest
import torch
from tests.engine.conftest import Texts
from tests.exchange.reference import (
    CASES,
    NUM_GREEDY,
    PROMPT_LENGTH,
    nanochat_folder,
    read_fixture,
    sample_ids,
)
from torch.testing import assert_close

from intone.engine.engine import Engine
from intone.engine.requests import Request
from intone.errors import Damaged, UserError
from intone.exchange.nanochat import find_save, read_nanochat
from intone.exchange.vocabulary import read_tokenizer
from intone.model.gpt import GPT

TIMES = [name for name in CASES if name != "transformers"]
WITH_ENGINE = [name for name in TIMES if CASES[name].engine]
# logits have a spread of 3; float32 products in another order and rotary angles in another precision gave 6e-6
ATOL = 2e-5


@pytest.fixture(params=TIMES)
def read(request, tmp_path):
    """(case, the model read from its checkpoint, the reference's numbers)."""
    model = read_nanochat(find_save(nanochat_folder(tmp_path, request.param), None))
    return request.param, model, read_fixture(request.param)


def loaded(model):
    """The GPT with the weights that were read."""
    gpt = GPT(model.config)
    gpt.load_state_dict(model.weights)
    return gpt.requires_grad_(False)


def ids_of(case):
    return torch.tensor([sample_ids(171, 270, CASES[case].seed)])


# --- the function ---------------------------------------------------------------------------------------------------


def test_logits_are_those_of_nanochat(read):
    """171 tokens: odd, and beyond every short window (96 or 128 tokens before the token itself)."""
    case, model, fixture = read
    assert fixture.logits.std() > 2 and fixture.logits.shape == (20, 270)
    assert_close(loaded(model).logits(ids_of(case))[0, fixture.positions], fixture.logits, atol=ATOL, rtol=0)


def test_logits_with_a_cache_are_those_of_nanochat(read):
    """A prompt that ends inside the window, a chunk that crosses it, then one token after the other."""
    case, model, fixture = read
    gpt, ids = loaded(model), ids_of(case)
    texts = Texts(gpt, dtype=torch.float32)
    table = texts.open([])
    pieces, begin = [], 0
    with torch.inference_mode():
        for length in (61, 69, *[1] * 41):
            pieces.append(texts.feed({table: ids[0, begin : begin + length].tolist()})[table])
            begin += length
    assert_close(torch.cat(pieces)[fixture.positions], fixture.logits, atol=ATOL, rtol=0)


@pytest.mark.parametrize("case", WITH_ENGINE)
def test_a_text_goes_on_as_by_nanochats_engine(case, tmp_path):
    model = read_nanochat(find_save(nanochat_folder(tmp_path, case), None))
    tokenizer = read_tokenizer(tmp_path / "tokenizer" / "tokenizer.pkl")
    prompt = ids_of(case)[0, :PROMPT_LENGTH].tolist()
    with Engine(loaded(model), tokenizer) as engine:
        request = Request(prompt, max_tokens=NUM_GREEDY, temperature=0.0, tools=False)
        assert engine.generate([request])[0][0].ids == read_fixture(case).greedy


@pytest.mark.parametrize(
    ("case", "changes", "least"),
    [
        ("classic", {"rope_bf16": False}, 1e-3),
        ("classic", {"norm_eps": 1e-2}, 1e-3),
        ("january", {"short_window": 128}, 1e-3),
        ("march", {"qk_scale": 1.2}, 1e-3),
        ("march", {"short_window": 96}, 1e-3),
        ("modern", {"rope_base": 10_000.0}, 1e-2),
        ("modern", {"softcap": 20.0}, 1e-2),
        ("modern", {"short_window": 127}, 1e-3),
        ("modern", {"window_pattern": "L"}, 1e-3),
    ],
)
def test_the_fixtures_tell_the_functions_of_different_times_apart(case, changes, least, tmp_path):
    model = read_nanochat(find_save(nanochat_folder(tmp_path, case), None))
    other = loaded(dataclasses.replace(model, config=dataclasses.replace(model.config, **changes)))
    fixture = read_fixture(case)
    assert (other.logits(ids_of(case))[0, fixture.positions] - fixture.logits).abs().max() > least


def test_every_setting_that_stood_in_code_has_its_evidence(read):
    case, model, _ = read
    for name in ("rope_base", "rope_bf16", "qk_scale", "softcap", "norm_eps", "value_embeddings", "smear", "backout"):
        choice = model.reasons[name]
        assert choice.value == getattr(model.config, name)
        assert "nanochat's code of 202" in choice.reason and ": it has " in choice.reason
    assert (model.reasons["window_pattern"].origin == "from") == (case != "classic")
    assert model.preset == ("classic" if case == "classic" else "modern")


def test_the_table_of_a_gpu_says_that_it_trained_in_bf16(read, tmp_path):
    _, model, fixture = read
    assert (model.trained_in, model.step, model.stage) == ("bf16", 7, "sft")
    assert all(value.dtype == torch.float32 for value in model.weights.values())
    meta = {**fixture.meta, "loop_state": {}}
    weights = {name: value.float() for name, value in fixture.weights(0).items()}
    folder = nanochat_folder(tmp_path / "b", read[0], weights=weights, meta=meta)
    moved = folder.rename(tmp_path / "copy")
    model = read_nanochat(find_save(moved, None))
    assert (model.trained_in, model.stage) == ("fp32", "base")


# --- which file -----------------------------------------------------------------------------------------------------


def test_the_newest_whole_save_is_taken_unless_a_step_is_named(tmp_path):
    folder = nanochat_folder(tmp_path, "classic", step=7)
    nanochat_folder(tmp_path, "classic", step=150_000)
    nanochat_folder(tmp_path, "classic", step=2_000_000)
    (folder / "meta_2000000.json").unlink()  # killed between the two files
    (folder / "model_000200_backup.pt").touch()
    assert find_save(folder, None).step == 150_000
    assert find_save(folder, 7).model.name == "model_000007.pt"
    assert find_save(folder / "model_000007.pt", None).step == 7
    for path, step, message in (
        (folder, 8, "has no step 8"),
        (folder, 2_000_000, "model_2000000.pt in .* lacks its meta"),
        (folder / "model_000007.pt", 8, "is not of step 8"),
        (folder / "model_000200_backup.pt", None, "is not called model_STEP.pt"),
    ):
        with pytest.raises(UserError, match=message):
            find_save(path, step)
    with pytest.raises(UserError) as caught:
        find_save(folder, 8)
    assert caught.value.fix == "steps that are there: 7, 150,000"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"n_layer": None}, "n_layer is not a whole number from 1 but 'None'"),
        ({"n_head": 3}, "n_embd 64 is no multiple of n_head '3'"),
        ({"rotary_base": 5}, "unknown model setting 'rotary_base'"),
        ({"window_pattern": 4}, "window_pattern is not a text of S and L but '4'"),
        ({"window_pattern": "SXL"}, "may hold only S and L"),
        ({"n_kv_head": 3}, "num_kv_heads 3 does not divide num_heads 4"),
        ({"n_layer": 4}, "has 3 blocks, meta_000007.json says n_layer 4"),
        ({"n_layer": 10**9}, "has 3 blocks, meta_000007.json says n_layer 1000000000"),
        ({"n_embd": 128}, r"has shape \(320, 64\), by the model's settings it is \(320, 128\)"),
        ({"vocab_size": 500}, r"has shape \(320, 64\), by the model's settings it is \(512, 64\)"),
    ],
)
def test_settings_that_do_not_fit_are_refused_by_name(tmp_path, config, message):
    meta = read_fixture("modern").meta
    meta = {**meta, "model_config": {**meta["model_config"], **config}}
    folder = nanochat_folder(tmp_path, "modern", meta=meta)
    with pytest.raises(UserError, match=message):
        read_nanochat(find_save(folder, None))


@pytest.mark.parametrize("meta", [{}, {"model_config": 3}, {"model_config": {"n_layer": 3}}])
def test_settings_without_the_shape_are_refused(tmp_path, meta):
    with pytest.raises(UserError, match="has no model_config|lacks model_config.sequence_len"):
        read_nanochat(find_save(nanochat_folder(tmp_path, "modern", meta=meta), None))


def test_lower_case_windows_are_windows(tmp_path):
    meta = read_fixture("modern").meta
    meta = {**meta, "model_config": {**meta["model_config"], "window_pattern": "sssl"}}
    assert read_nanochat(find_save(nanochat_folder(tmp_path, "modern", meta=meta), None)).config.window(0) == 129


# --- weights --------------------------------------------------------------------------------------------------------


def without(weights, part):
    return {name: value for name, value in weights.items() if part not in name}


def with_changed(weights, name, change):
    return {**weights, name: change(weights[name])}


WTE, GATE, UP = "transformer.wte.weight", "transformer.h.2.attn.ve_gate.weight", "transformer.h.1.mlp.c_fc.weight"


@pytest.mark.parametrize(
    ("case", "change", "message"),
    [
        ("modern", lambda w: without(w, "h.1.mlp.c_fc"), "lacks transformer.h.1.mlp.c_fc.weight"),
        ("modern", lambda w: without(w, WTE), "lacks transformer.wte.weight"),
        ("modern", lambda w: without(w, "h.1."), "has 2 blocks"),
        ("modern", lambda w: without(w, "smear_lambda"), "lacks smear_lambda"),
        ("modern", lambda w: without(w, "backout"), "lacks backout_lambda"),
        ("modern", lambda w: without(w, "resid_lambdas"), "lacks resid_lambdas"),
        ("modern", lambda w: without(w, "value_embeds"), "lacks value_embeds.0.weight"),
        ("modern", lambda w: without(w, "h.0.attn.ve_gate"), "lacks transformer.h.0.attn.ve_gate.weight"),
        ("march", lambda w: without(w, "x0_lambdas"), "lacks x0_lambdas"),
        ("march", lambda w: without(w, "ve_gate"), "with gates of no channels: no known nanochat"),
        ("march", lambda w: {n: torch.ones(4, 8) if "ve_gate" in n else v for n, v in w.items()}, "gates of 8 chan"),
        ("modern", lambda w: {**w, "bigram_lambdas": torch.ones(3)}, "holds 'bigram_lambdas', which this arch"),
        ("classic", lambda w: {**w, "transformer.h.0.attn.c_q.bias": torch.ones(64)}, "holds 'transformer.h.0.attn.c_"),
        ("modern", lambda w: with_changed(w, UP, lambda v: v.T.contiguous()), r"shape \(64, 256\).* it is \(256, 64\)"),
        ("modern", lambda w: with_changed(w, UP, lambda v: v.to(torch.int8)), "is torch.int8, weights are"),
        ("modern", lambda w: with_changed(w, UP, lambda v: v / v[0, 0].sub(v[0, 0])), "numbers that are not finite"),
        ("modern", lambda w: with_changed(w, GATE, lambda v: v[0]), r"shape \(12,\).* it is \(2, 12\)"),
        ("march", lambda w: {n: torch.ones(4, 32) if "ve_gate" in n else v for n, v in w.items()}, "at 15 or at 20"),
    ],
)  # fmt: skip
def test_weights_that_are_not_those_of_a_known_model_are_refused_by_name(tmp_path, case, change, message):
    weights = change(read_fixture(case).weights(CASES[case].seed))
    with pytest.raises(UserError, match=message):
        read_nanochat(find_save(nanochat_folder(tmp_path, case, weights=weights), None))


def test_weights_of_a_compiled_model_and_of_any_mix_of_dtypes_are_read(tmp_path):
    plain = read_fixture("modern").weights(CASES["modern"].seed)
    mixed = {f"_orig_mod.{name}": value.bfloat16() if "mlp" in name else value for name, value in plain.items()}
    model = read_nanochat(find_save(nanochat_folder(tmp_path, "modern", weights=mixed), None))
    assert torch.equal(model.weights["blocks.1.mlp.up.weight"], plain[UP].bfloat16().float())
    assert torch.equal(model.weights["embedding.weight"], plain[WTE].float())


def test_a_checkpoint_that_is_cut_off_is_damaged(tmp_path):
    folder = nanochat_folder(tmp_path, "modern")
    path = folder / "model_000007.pt"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(Damaged, match="model_000007.pt is cut off or damaged"):
        read_nanochat(find_save(folder, None))
    (folder / "meta_000007.json").write_text(json.dumps(read_fixture("modern").meta)[:-9])
    with pytest.raises(UserError, match="meta_000007.json cannot be read as JSON"):
        read_nanochat(find_save(folder, None))
