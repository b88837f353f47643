"""The shape of a model and the recipe of a job: presets, windows, JSON, and what is refused."""

import dataclasses
import json

import pytest

from intone.config import ModelConfig, OptimConfig, ScheduleConfig, TrainJob, model_config
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


JOB = TrainJob(
    stage="mid", model=SMALL, tokenizer="/t", tokenizer_hash="ab", data=("/a", "/b"), val="/v", context=96, steps=7,
    rows_per_step=5, optim=OptimConfig(matrix_lr=0.03), schedule=ScheduleConfig(warmup_steps=3), seed=11,
    weights=(0.5, 1.0), learn_all=True, init_from="/base", keep_optimizer=True, eval_every=20, samples=("Hi", "Ho"),
    peak_flops=1e11,
)  # fmt: skip


@pytest.mark.parametrize("job", [JOB, dataclasses.replace(JOB, weights=None, val=None, samples=(), eval_every=None)])
def test_a_job_survives_json(job):
    value = json.loads(json.dumps(job.as_json()))
    assert (value["format"], value["job"]) == (1, "train")
    read = TrainJob.from_json(value)
    assert read == job
    assert isinstance(read.data, tuple) and isinstance(read.model, ModelConfig)


def test_what_a_job_does_not_say_has_its_default():
    value = JOB.as_json()
    for name in ("weights", "samples", "keep", "save_every_s", "init_from", "deterministic"):
        del value[name]
    read = TrainJob.from_json(value)
    assert (read.weights, read.samples, read.keep, read.save_every_s) == (None, (), 2, 60.0)
    assert (read.init_from, read.deterministic) == (None, False)


@pytest.mark.parametrize(
    ("path", "key", "message", "fix"),
    [
        ((), "step", "unknown job setting 'step'", "did you mean 'steps'?"),
        (("model",), "dept", "unknown model setting 'dept'", "did you mean 'depth'?"),
        (("optim",), "matrix_rate", "unknown optimizer setting 'matrix_rate'", "did you mean 'matrix_lr'?"),
        (("schedule",), "warmup", "unknown schedule setting 'warmup'", "did you mean 'warmup_steps'?"),
    ],
)
def test_an_unknown_key_at_any_level_of_a_job_raises(path, key, message, fix):
    value = JOB.as_json()
    place = value
    for name in path:
        place = place[name]
    place[key] = 1
    with pytest.raises(UserError, match=message) as caught:
        TrainJob.from_json(value)
    assert caught.value.fix == fix


@pytest.mark.parametrize("key", ["schedule", "model", "seed", "data"])
def test_a_job_that_lacks_something_says_what(key):
    value = JOB.as_json()
    del value[key]
    with pytest.raises(UserError, match=f"job setting '{key}' is missing"):
        TrainJob.from_json(value)


def test_a_model_that_is_no_object_or_lacks_a_field_is_refused():
    value = SMALL.as_json()
    del value["depth"]
    with pytest.raises(UserError, match="model setting 'depth' is missing"):
        ModelConfig.from_json(value)
    with pytest.raises(UserError, match="model settings are 3, they must be an object"):
        TrainJob.from_json({**JOB.as_json(), "model": 3})
