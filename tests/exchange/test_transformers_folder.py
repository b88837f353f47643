"""transformers' NanoChatForCausalLM in and out: the same function, and an error for what would be another one."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.exchange.reference import CASES, encoding, read_fixture, sample_ids
from torch.testing import assert_close

from intone.config import model_config
from intone.data.tokenizer import tokenizer_from_ranks
from intone.errors import Damaged, UserError
from intone.exchange.transformers_folder import read_transformers, to_settings, to_weights, why_not
from intone.model.gpt import GPT

CASE = "transformers"


@pytest.fixture
def folder(tmp_path):
    """The reference model as save_pretrained writes it: config.json and one safetensors file."""
    fixture = read_fixture(CASE)
    (tmp_path / "config.json").write_text(json.dumps(fixture.meta))
    save_file(fixture.weights(CASES[CASE].seed), tmp_path / "model.safetensors", metadata={"format": "pt"})
    return tmp_path


def read(folder, **changes):
    settings = {**json.loads((folder / "config.json").read_text()), **changes}
    return read_transformers(folder, settings, lambda rows: rows)


def logits_of(model):
    gpt = GPT(model.config)
    gpt.load_state_dict(model.weights)
    with torch.no_grad():
        return gpt.logits(torch.tensor([sample_ids(171, 270, CASES[CASE].seed)]))[0]


def test_logits_are_those_of_transformers(folder):
    model, fixture = read(folder), read_fixture(CASE)
    # rotary angles in float32 there and in float64 here; 5e-6 seen, at a spread of 3
    assert_close(logits_of(model)[fixture.positions], fixture.logits, atol=2e-5, rtol=0)
    assert (model.preset, model.stage, model.step, model.trained_in) == ("classic", "base", 0, "fp32")
    assert (model.config.norm_eps, model.config.num_kv_heads, model.config.padded_vocab) == (1e-6, 2, 270)


def test_weights_in_several_files_are_the_same_weights(folder):
    whole = load_file(folder / "model.safetensors")
    names = sorted(whole)
    parts = {"a.safetensors": names[:7], "b.safetensors": names[7:]}
    for part, held in parts.items():
        save_file({name: whole[name] for name in held}, folder / part)
    (folder / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {name: part for part, held in parts.items() for name in held}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert torch.equal(read(folder).weights["blocks.2.mlp.down.weight"], whole["model.layers.2.mlp.fc2.weight"])
    (folder / "b.safetensors").unlink()
    with pytest.raises(UserError, match=r"names 'b\.safetensors', which is not in"):
        read(folder)
    index["weight_map"]["lm_head.weight"] = f"../{folder.name}/a.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"names '\.\./"):
        read(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_parameters": None, "rope_theta": 10_000.0},
        {"rope_parameters": None},
        {"rope_parameters": None, "rope_scaling": {"type": "default", "rope_theta": 10_000}},
        {"final_logit_softcapping": 15, "torch_dtype": "bfloat16"},
        {"head_dim": 16, "qkv_bias": False, "quantization_config": None},
    ],
    ids=str,
)
def test_other_spellings_of_the_same_settings_are_the_same_function(folder, changes):
    assert torch.equal(logits_of(read(folder, **changes)), logits_of(read(folder)))


def test_the_softcap_of_the_first_versions_is_read(folder):
    settings = json.loads((folder / "config.json").read_text())
    del settings["final_logit_softcapping"]
    (folder / "config.json").write_text(json.dumps({**settings, "logits_soft_cap": 20.0}))
    assert read(folder).config.softcap == 20.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "gelu"}, "hidden_act is not 'relu2' but 'gelu'"),
        ({"attention_bias": True}, "attention_bias is not False but 'True'"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings is not False"),
        ({"sliding_window": 128}, "has the key 'sliding_window', of which intone does not know whether it changes"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "rope_parameters are not plain rotary positions"),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "are not plain rotary positions but"),
        ({"rope_parameters": {"rope_theta": "1e4"}}, "rope_theta is not a number above 0 but"),
        ({"rope_parameters": 7}, "rope_parameters are not an object but '7'"),
        ({"final_logit_softcapping": None}, "final_logit_softcapping is not a number above 0"),
        ({"rms_norm_eps": 0}, "rms_norm_eps is not a number above 0 but '0'"),
        ({"intermediate_size": 200}, "hidden_size 64 does not divide intermediate_size '200'"),
        ({"num_attention_heads": 3}, "hidden_size 64 is no multiple of num_attention_heads '3'"),
        ({"num_hidden_layers": 2}, "holds 'model.layers.2"),
        ({"num_hidden_layers": 4}, "lacks model.layers.3"),
        ({"num_hidden_layers": 10**9}, "holds 20 tensors, too few for the 1,000,000,000 blocks"),
        ({"num_key_value_heads": 4}, r"k_proj.weight in .* has shape \(32, 64\)"),
        ({"vocab_size": "270"}, "vocab_size is not a whole number from 1 but '270'"),
    ],
)
def test_settings_that_mean_another_function_are_refused_by_name(folder, changes, message):
    with pytest.raises(UserError, match=message):
        read(folder, **changes)


def test_weights_that_are_not_there_are_missed(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"has neither model\.safetensors nor") as caught:
        read(folder)
    assert caught.value.fix.startswith("pytorch_model.bin is a pickle: save the model again")
    (folder / "model.safetensors").write_bytes((folder / "pytorch_model.bin").read_bytes()[:-5])
    with pytest.raises(Damaged, match="is cut off or damaged"):
        read(folder)


# --- out ------------------------------------------------------------------------------------------------------------


CLASSIC = model_config("classic", depth=2, vocab_size=270, context=64, head_width=32)


def test_only_what_transformers_can_compute_is_called_so():
    assert why_not(CLASSIC) is None
    assert why_not(dataclasses.replace(CLASSIC, rope_base=5e5, softcap=30.0, norm_eps=1e-5, num_kv_heads=1)) is None
    assert why_not(dataclasses.replace(CLASSIC, window_pattern="SSSL")) is None  # 128 tokens: the whole context
    for change, reason in (
        ({"qk_scale": 1.2}, "qk_scale is 1.2"),
        ({"smear": True}, "smear is True"),
        ({"residual_scalars": True}, "residual_scalars is True"),
        ({"window_pattern": "SL", "short_window": 16}, "some blocks see 17 tokens only"),
        ({"head_width": 64}, "4 heads of 64 are not the width 128"),
    ):
        assert why_not(dataclasses.replace(CLASSIC, **change)) == reason


def test_our_settings_and_weights_under_their_names_read_back_as_the_same(tmp_path):
    tokenizer = tokenizer_from_ranks(encoding()._mergeable_ranks, encoding()._pat_str)
    model = GPT(CLASSIC)
    model.init_weights(3)
    settings = json.loads(json.dumps(to_settings(CLASSIC, tokenizer)))
    (tmp_path / "config.json").write_text(json.dumps(settings))
    save_file(to_weights(model.state_dict(), 270), tmp_path / "model.safetensors")
    again = read_transformers(tmp_path, settings, lambda rows: rows)
    assert dataclasses.replace(again.config, vocab_multiple=64) == CLASSIC
    for name, value in model.state_dict().items():
        assert torch.equal(again.weights[name], value[:270] if name in ("embedding.weight", "head.weight") else value)
