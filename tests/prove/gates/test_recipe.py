"""The recipe: whatever changes what is trained on what is named, whatever changes only how is not."""

import dataclasses
import shutil

import pytest

from intone.config import ScheduleConfig
from intone.data.shards import write_token_set
from intone.errors import UserError
from intone.prove.gates import faults, recipe
from intone.prove.gates.result import NotJudged
from intone.prove.gates.tiny import SEGMENT


@pytest.fixture
def judged(jobs, run_here):
    """judged(declared=(), segments=..., **changes) -> the result for a changed job against the baseline."""

    def judge(*, declared=(), **changes):
        sides = jobs.side(run_here), jobs.side(run_here, **changes)
        return recipe.gate(*(side.folder for side in sides), declared=declared).run()

    return judge


def test_micro_batch_kernels_dtype_and_what_is_printed_or_saved_are_free(judged):
    segments = [dataclasses.replace(SEGMENT, device_batch=1, dtype="bf16", attention="products", compiled=True)]
    result = judged(segments=segments, keep=9, samples=("the",), save_every_s=1.0, eval_every=3, deterministic=True)
    assert result.passed and result.evidence["differences"] == {}
    assert result.reason.endswith(" fields are equal, 18 rows among them")


@pytest.mark.parametrize(
    ("changes", "first"),
    [
        ({"rows_per_step": 93 * 6 // 4}, "tokens_per_step is 192 in the baseline and 4,448 in the candidate"),
        ({"rows_per_step": 3, "context": 64}, "rows_per_step is 6"),  # tokens per step stay
        ({"steps": 13}, "steps is 12 in the baseline and 13"),
        ({"seed": 8}, "seed is 7"),
        ({"learn_all": True}, "learn_all is False in the baseline and True"),
        ({"schedule": ScheduleConfig(warmup_steps=3)}, "schedule.warmup_steps is 2"),
        ({"eval_tokens": 99}, "validation_tokens is 65,536"),
        ({"keep_optimizer": True}, "keep_optimizer is False"),
    ],
)
def test_a_changed_recipe_is_rejected_by_its_first_field(judged, changes, first):
    result = judged(**changes)
    assert result.passed is False and result.reason.startswith(first)
    assert "declare the change" in result.fix


def test_other_learning_rates_and_shapes_are_named(judged, jobs):
    slow = judged(optim=dataclasses.replace(jobs.job.optim, head_lr=0.004))
    assert slow.reason == "optimizer.head_lr is 0.008 in the baseline and 0.004 in the candidate"
    capped = judged(model=dataclasses.replace(jobs.job.model, softcap=30.0))
    assert capped.reason == "model.softcap is 15.0 in the baseline and 30.0 in the candidate"  # as many parameters


def test_a_declared_change_may_be_and_brings_what_follows_from_it(judged):
    result = judged(rows_per_step=12, declared=["rows_per_step"])
    assert result.passed and "tokens_per_step" in result.reason and "rows" in result.evidence["declared"]
    also_seed = judged(rows_per_step=12, seed=8, declared=["rows_per_step"])
    assert also_seed.passed is False and also_seed.reason.startswith("seed is 7")
    schedule = judged(schedule=ScheduleConfig(warmup_steps=0, final_share=0.3), declared=["schedule"])
    assert schedule.passed and schedule.evidence["declared"] == ["schedule.warmup_steps", "schedule.final_share"]


def test_declaring_a_field_that_stays_does_not_excuse_other_rows(jobs, run_here):
    side = jobs.side(run_here)
    right = recipe.read_recipe(side.folder)
    with faults.double_rows():
        wrong = recipe.read_recipe(side.folder)
    assert recipe.judge(right, wrong, declared=["seed"]).passed is False


def test_the_same_text_elsewhere_is_the_same_data_and_another_text_is_not(jobs, judged, tmp_path):
    copy = shutil.copytree(jobs.folder / "text", tmp_path / "copy")
    assert judged(data=(str(copy),)).passed
    write_token_set(tmp_path / "other", ["one bird sat on a roof. " * 40] * 9, jobs.tokenizer, kind="documents")
    assert judged(data=(str(tmp_path / "other"),)).reason.startswith("data is [")
    assert judged(val=str(tmp_path / "other")).reason.startswith("validation is None in the baseline")


def test_rows_are_compared_as_they_are_cut_and_masked(jobs, run_here):
    side = jobs.side(run_here)
    batch = recipe.first_rows(jobs.job)
    assert len(batch) == 18
    right = recipe.read_recipe(side.folder)
    for name, where in (("targets", (0, 3)), ("documents", (17, 31)), ("ids", (4, 0))):
        wrong = recipe.first_rows(jobs.job)
        getattr(wrong, name)[where] += 1
        result = recipe.judge(right, recipe.read_recipe(side.folder, rows_of=lambda job, wrong=wrong: wrong))
        assert result.passed is False and result.reason.startswith("rows is")


def test_the_weights_a_job_starts_from_are_part_of_it(jobs, run_here, judged):
    first, second = (jobs.side(run_here, seed=seed, steps=1) for seed in (1, 2))
    with pytest.raises(NotJudged, match="has no save to start from"):
        recipe.read_recipe(jobs.side(run_here, init_from=str(first.folder)).folder)
    for side in (first, second):
        run_here(side.folder)
    a, b = (recipe.read_recipe(jobs.side(run_here, init_from=str(side.folder)).folder) for side in (first, second))
    assert recipe.judge(a, b).reason.startswith("first_weights is")
    assert recipe.judge(a, a).passed


def test_a_folder_without_a_job_is_an_error_with_its_path(tmp_path):
    with pytest.raises(UserError, match=r"config.json does not exist"):
        recipe.read_recipe(tmp_path)
