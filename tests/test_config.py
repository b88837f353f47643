"""The shape of a model: presets, windows, and what is refused."""

import dataclasses

import pytest

from intone.config import ModelConfig, model_config
from intone.errors import UserError

SMALL = model_config("modern", depth=3, vocab_size=301, context=600)


def test_depth_sizes_everything():
    config = model_config("modern", depth=5, vocab_size=301, context=96)
    assert (config.width, config.num_heads, config.num_kv_heads, config.head_width) == (320, 5, 5, 64)
    assert model_config("modern", depth=5, vocab_size=301, context=96, head_width=128).width == 384


def test_the_vocabulary_is_padded_to_its_multiple():
    assert (SMALL.vocab_size, SMALL.padded_vocab) == (301, 320)


def test_windows_follow_the_pattern_and_the_last_block_sees_everything():
    assert [SMALL.window(block) for block in range(3)] == [257, 257, 600]
    tiny = dataclasses.replace(SMALL, context=100)
    assert [tiny.window(block) for block in range(3)] == [100, 100, 100]
    assert dataclasses.replace(SMALL, short_window=17).window(0) == 18


def test_every_second_block_counted_from_the_last_has_a_value_embedding():
    assert [SMALL.has_value_embedding(block) for block in range(3)] == [True, False, True]
    assert not model_config("classic", depth=3, vocab_size=301, context=64).has_value_embedding(2)


def test_a_config_survives_json_and_an_unknown_key_raises():
    assert ModelConfig.from_json(SMALL.as_json()) == SMALL
    with pytest.raises(UserError, match="did you mean 'softcap'?"):
        ModelConfig.from_json({**SMALL.as_json(), "softcup": 15})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 0}, "depth is 0, it must be at least 1"),
        ({"num_kv_heads": 2}, "num_kv_heads 2 does not divide num_heads 3"),
        ({"head_width": 63}, "head_width 63 is odd"),
        ({"window_pattern": "SXL"}, "window_pattern 'SXL' may hold only S and L"),
        ({"window_pattern": ""}, "window_pattern '' may hold only S and L"),
    ],
)
def test_an_impossible_shape_is_refused(change, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(SMALL, **change)
    with pytest.raises(UserError, match="unknown preset 'moden'"):
        model_config("moden", depth=1, vocab_size=301, context=64)
