"""Planning of a reinforcement stage: it starts from a run, asks what was named, and refuses what it cannot do."""

import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from intone import planning, planning_rl
from intone.config import RolloutConfig
from intone.data.starter import SKILLS
from intone.errors import UserError
from intone.ground import Ground
from intone.pipeline.horizon import steps_for
from intone.resolving import Layer, resolve
from intone.settings import TrainSettings
from tests.test_planning import FACTS, STEP_S, finished_base


@pytest.fixture
def plan(home, tmp_path, monkeypatch):
    """plan(**settings) -> the plan of a stage from run `first`, on a machine where a training step takes 0.1 s."""
    finished_base(tmp_path, context=512)
    asked = {}

    def settle_ground(settled, settings, origins, config, folder, tokenizer, **rest):
        asked.update(rest, compile=origins["compile"].value, devices=origins["devices"].value)
        return Ground(
            config, folder, tokenizer, "cpu", "fp32", 1, "torch", "sdpa", False, 3, rest["rows_per_step"], STEP_S,
            STEP_S, {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    for module in (planning, planning_rl):
        monkeypatch.setattr(module, "load_facts", lambda: FACTS)
    monkeypatch.setattr(planning_rl, "settle_ground", settle_ground)
    monkeypatch.setattr(planning_rl, "ensure_val", lambda *a, **rest: SimpleNamespace(folder=tmp_path))

    def planned(**given):
        values = {"stage": "rl", "from_run": "first", "num_items": 9, **given}
        settings, origins = resolve(TrainSettings, [Layer("flag", "test", values)])
        made = planning_rl.plan_rl(settings, origins, tmp_path / "run", started_s=time.monotonic())
        return made, *made.stages["rl"], asked

    return planned


def test_a_stage_starts_from_the_run_and_asks_as_it_was_told(plan, home):
    _, job, choices, asked = plan(
        steps=30, skills=("story", "dates"), prompts=6, samples=5, max_tokens=77, temperature=0.9, top_k=40, rate=0.1
    )
    assert job.rollouts == RolloutConfig(6, 5, 77, 0.9, 40, ("story", "dates"), num_items=9)
    assert (job.stage, job.steps, job.rows_per_step, job.context, job.keep_optimizer) == ("rl", 30, 30, 512, False)
    assert job.init_from == str(home / "runs" / "first" / "base")
    rates = job.schedule
    assert (rates.lr_scale, rates.warmdown_share, rates.final_share, rates.decay_from) == (0.1, 1.0, 0.0, 0.0)
    assert (asked["compile"], asked["devices"], asked["expected_steps"], asked["rows_per_step"]) == ("off", 1, 30, 4)
    assert (choices.settings["devices"].value, choices.segments[0].compiled) == (1, False)


def test_without_further_words_all_skills_are_asked_for_as_long_as_the_minutes_last(plan, tmp_path):
    made, job, _, _ = plan(minutes=5.0)
    assert (job.rollouts.skills, job.rollouts.max_tokens) == (SKILLS, planning_rl.STARTER_TOKENS)
    step_s = (1 + planning_rl.WRITING) * STEP_S * 64 / 4  # two answers a row; trials had 4 rows of 512
    assert made.forecast["stages"] == {"rl": job.steps} and made.forecast["step_s"] == pytest.approx(step_s)
    # 300 s less the start of a worker and two times 99 questions, by the 128 answers of a step
    assert job.steps == pytest.approx((300 - 5.5) / step_s - 2 / 3 * 99 / 128, rel=0.03)
    (tmp_path / "config.json").write_text(json.dumps(job.as_json()))
    assert steps_for(tmp_path, 4) > 10**9  # its answers are new every time: no number of steps is too many


def test_questions_come_from_files_where_they_are_named(plan, tmp_path):
    sums = tmp_path / "sums.jsonl"
    sums.write_text("".join(json.dumps({"question": f"{n}+1", "answer": n + 1}) + "\n" for n in range(50)))
    _, job, _, _ = plan(data=(str(sums),), steps=3)
    assert (job.rollouts.files, job.rollouts.skills) == ((str(sums),), ())
    assert job.rollouts.max_tokens == planning_rl.FILE_TOKENS
    with pytest.raises(UserError, match="there are no held-out questions"):
        Path(sums).write_text(json.dumps({"question": "1+1", "answer": 2}) + "\n")
        plan(data=(str(sums),), steps=3)


@pytest.mark.parametrize(("name", "value"), [("depth", 6), ("context", 64), ("vocab_size", 512), ("preset", "classic")])
def test_a_flag_about_the_model_is_refused(plan, name, value):
    flag = "--" + name.replace("_", "-")
    with pytest.raises(UserError, match=f"{flag} cannot be given to train rl: its model is that of first"):
        plan(steps=3, **{name: value})


def test_answers_as_long_as_the_context_are_refused(plan):
    with pytest.raises(UserError, match="answers of 512 tokens do not fit behind a question") as refused:
        plan(steps=3, max_tokens=512)
    assert refused.value.fix == "use --max-tokens 256 or auto"


def test_what_was_left_to_the_machine_is_a_value_with_its_reason(plan):
    _, _, choices, _ = plan(steps=3)
    found = {name: (entry.value, entry.origin) for name, entry in choices.settings.items()}
    assert (found["max_tokens"], found["num_slots"]) == ((160, "default"), (64, "default"))
    assert (found["context"], found["vocab_size"][1]) == ((512, "from"), "from")
    assert choices.segments[0].num_slots is None, "the engine knows its rule"
    _, _, choices, _ = plan(steps=3, num_slots=5)
    assert (choices.settings["num_slots"].value, choices.segments[0].num_slots) == (5, 5)
