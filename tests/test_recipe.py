"""The recipe: sizes, batches and schedules follow the budget without jumps and without losing a step."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from intone import recipe
from intone.config import model_config
from intone.model.cost import num_parameters
from intone.train.schedule import scale_at

STEPS = st.integers(10, 20_000)


@given(steps=STEPS, is_starter=st.booleans())
def test_the_stages_share_out_all_steps(steps, is_starter):
    plans = recipe.stage_plans(steps, is_starter=is_starter, lr_scale=1.0)
    assert [plan.stage for plan in plans] == ["base", "mid", "sft"]
    assert sum(plan.steps for plan in plans) == steps
    assert all(plan.steps >= 1 for plan in plans)
    shares = recipe.STARTER_SHARES if is_starter else recipe.TEXT_SHARES
    assert all(abs(plan.steps - shares[plan.stage] * steps) < 1.01 for plan in plans)


@given(steps=STEPS, is_starter=st.booleans())
def test_the_decay_falls_in_one_line_over_all_stages(steps, is_starter):
    plans = recipe.stage_plans(steps, is_starter=is_starter, lr_scale=1.0)
    assert plans[0].schedule.decay_from == 1.0 and plans[-1].schedule.decay_to == 0.0
    for before, after in itertools.pairwise(plans):
        assert before.schedule.decay_to == after.schedule.decay_from
    slopes = [(plan.schedule.decay_from - plan.schedule.decay_to) / plan.steps for plan in plans]
    assert slopes == pytest.approx([1 / steps] * 3)


@given(steps=STEPS, lr_scale=st.floats(0.1, 2))
def test_the_rate_of_a_starter_run_rises_once_stays_and_falls_once(steps, lr_scale):
    rates = [
        scale_at(plan.schedule, step, plan.steps).lr
        for plan in recipe.stage_plans(steps, is_starter=True, lr_scale=lr_scale)
        for step in sorted({0, min(1, plan.steps - 1), plan.steps // 3, plan.steps // 2, plan.steps - 1})
    ]
    assert max(rates) <= lr_scale and min(rates) > 0
    top = rates.index(max(rates))
    assert rates[top:] == sorted(rates[top:], reverse=True) and rates[: top + 1] == sorted(rates[: top + 1])


@given(tokens=st.floats(1, 1e13))
def test_a_batch_is_a_power_of_two_that_leaves_enough_steps(tokens):
    size = recipe.auto_batch_tokens(tokens)
    assert size & (size - 1) == 0 and 2048 <= size <= 524_288
    assert size == 2048 or tokens / size >= 1000
    assert recipe.auto_batch_tokens(tokens * 2) in (size, 2 * size)


@given(rate=st.floats(1e9, 1e15), minutes=st.floats(0.05, 2e3), is_starter=st.booleans(), factor=st.floats(1, 50))
def test_a_faster_machine_or_more_time_never_gets_a_shallower_model(rate, minutes, is_starter, factor):
    depth, _ = recipe.auto_depth(rate, minutes, is_starter=is_starter)
    assert recipe.auto_depth(rate * factor, minutes, is_starter=is_starter)[0] >= depth
    assert recipe.auto_depth(rate, minutes * factor, is_starter=is_starter)[0] >= depth
    highest = recipe.MAX_STARTER_DEPTH if is_starter else recipe.MAX_DEPTH
    assert recipe.MIN_DEPTH <= depth <= highest


def test_the_depth_comes_with_its_reason():
    assert recipe.auto_depth(None, 7, is_starter=True) == (recipe.MIN_DEPTH, "the rate of this machine is unknown")
    assert "per parameter" in recipe.auto_depth(1e14, 7, is_starter=False)[1]
    assert recipe.auto_depth(1e30, 7, is_starter=False)[0] == recipe.MAX_DEPTH


@pytest.mark.parametrize("is_starter", [True, False])
@pytest.mark.parametrize("depth", [4, 9, 24])
def test_scaling_parameters_are_matrices_and_head_of_the_real_model(depth, is_starter):
    vocab = recipe.auto_vocab_size(depth, is_starter=is_starter)
    counts = num_parameters(model_config("classic", depth=depth, vocab_size=vocab, context=512))
    assert recipe.scaling_parameters(depth, is_starter=is_starter) == counts["matrices"] + counts["head"]


def test_vocabularies_grow_with_the_model_and_survive_padding():
    sizes = [recipe.auto_vocab_size(depth, is_starter=False) for depth in range(4, 25)]
    assert sizes == sorted(sizes)
    assert all(size % 64 == 0 for size in [*sizes, recipe.auto_vocab_size(4, is_starter=True)])


def test_a_schedule_survives_json():
    for plan in recipe.stage_plans(999, is_starter=False, lr_scale=0.7):
        text = json.dumps(plan.schedule.__dict__)
        assert type(plan.schedule).from_json(json.loads(text)) == plan.schedule
