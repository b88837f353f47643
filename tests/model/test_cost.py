"""What a model costs by arithmetic is what the real model has."""

import dataclasses

import pytest
import torch

from intone.config import OptimConfig, model_config
from intone.model.cost import num_parameters, train_flops_per_token, training_state_bytes, weight_bytes
from intone.model.gpt import GPT
from intone.model.optim import Optimizer

CONFIGS = {
    "modern": model_config("modern", depth=3, vocab_size=301, context=96),
    "classic": model_config("classic", depth=3, vocab_size=301, context=96),
    "grouped": model_config("modern", depth=4, vocab_size=301, context=96, num_kv_heads=2),
    "odd": dataclasses.replace(
        model_config("modern", depth=3, vocab_size=64, context=96), mlp_ratio=3, smear=False, value_embeddings=False
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_parameter_counts_are_those_of_the_real_model(name):
    config = CONFIGS[name]
    with torch.device("meta"):
        model = GPT(config)
    counts = num_parameters(config)
    kinds = dict.fromkeys(counts, 0)
    for parameter_name, parameter in model.named_parameters():
        part = parameter_name.split(".")[0]
        kind = {"blocks": "matrices"}.get(part, part if part in kinds else "scalars")
        kinds[kind] += parameter.numel()
    kinds["total"] = sum(kinds.values())
    assert counts == kinds


def test_nanochats_depth_12_has_its_published_size():
    config = model_config("modern", depth=12, vocab_size=32_768, context=2048, head_width=128)
    counts = num_parameters(config)
    assert counts["total"] == 286_261_730
    assert counts["embedding"] == counts["head"] == 25_165_824
    assert counts["value_embeddings"] == 6 * 25_165_824


@pytest.mark.parametrize("name", ["modern", "classic"])
def test_bytes_are_those_of_weights_gradients_and_moments(name):
    config = CONFIGS[name]
    model = GPT(config)
    weights = sum(parameter.nbytes for parameter in model.parameters())
    moments = [t for group in Optimizer(model, OptimConfig()).groups for t in group.state.values()]
    assert weight_bytes(config) == weights
    state = training_state_bytes(config)
    real = 2 * weights + sum(tensor.nbytes for tensor in moments)
    assert real * 0.99 < state <= real  # the factored second moment of the matrices is left out


def test_operations_are_six_per_parameter_and_attention_by_what_is_in_sight():
    config = dataclasses.replace(CONFIGS["classic"], depth=1)
    width, vocab = config.width, config.padded_vocab
    products = 12 * width**2 + vocab * width
    assert train_flops_per_token(config, 96) == 6 * products + 12 * width * 96
    assert train_flops_per_token(config, 48) == 6 * products + 12 * width * 48
    short = dataclasses.replace(CONFIGS["modern"], short_window=16)
    seen = 17 + 17 + 96
    parameters = num_parameters(short)
    products = parameters["matrices"] + parameters["head"] + 24
    assert train_flops_per_token(short, 96) == 6 * products + 12 * short.width * seen
