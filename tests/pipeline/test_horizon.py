"""A run kept within its minutes: on a simulated machine whose steps take what the test says."""

from dataclasses import asdict, replace

import pytest

from intone import planning, recipe
from intone.config import TrainJob
from intone.data.loader import Rows
from intone.data.shards import TokenSet
from intone.ground import QUESTIONS, Beside
from intone.jobs import last_step
from intone.paths import read_json, write_json
from intone.peak import CostWatch
from intone.pipeline import horizon, stages, verb
from intone.pipeline.horizon import Pace, recent_pace, spread
from intone.prepare import MANY_EPOCHS
from intone.records import EvalRow, EventRow, Outcome, StepRow, log_row, read_choices, read_log
from intone.runs import find_run
from intone.settings import RunSettings
from intone.train.schedule import place_of, scale_at
from tests.pipeline.machine import Machine, run, train
from tests.test_planning import ASKED, data, settings_of  # noqa: F401 (a fixture)
from tests.test_planning import machine as trials  # noqa: F401 (a fixture)
from tests.tiny_jobs import write_job

MINUTES, SETTLED_S, QUICK_S, SLOW_S = 10.0, 30.0, 0.8, 4.0
BESIDE = Beside(start_s=4.5, stage_steps=2.0, last_s=4.5, last_steps=QUESTIONS * 2.0)
ASKED_EVERY_S = 2.0  # of the simulated clock; a real supervisor asks twice a second


class Clockwork(Machine):
    """Plans for steps of counted_s, trains with steps of what pace(seconds since the start) says, on its own clock.

    stage_steps: steps that the evaluation of each stage takes as long as, whatever the plan set aside.
    """

    def __init__(self, job, counted_s, pace):
        super().__init__(job)
        self.counted_s, self.pace, self.clock_s = counted_s, pace, SETTLED_S
        self.restarts, self.renewed = [], []
        self.beside, self.stage_steps = BESIDE, dict.fromkeys(recipe.STARTER_SHARES, BESIDE.stage_steps)
        self.question_steps = BESIDE.last_steps

    def plan_run(self, settings, origins, folder, *, started_s):
        plan = super().plan_run(settings, origins, folder, started_s=started_s)
        left_s = 60 * MINUTES - SETTLED_S - self.beside.seconds(3, self.counted_s)
        parts = recipe.stage_plans(max(30, int(left_s / self.counted_s)), is_starter=True, lr_scale=1.0)
        made = {
            part.stage: (replace(plan.stages[part.stage][0], steps=part.steps, schedule=part.schedule), choices)
            for part, (_, choices) in zip(parts, plan.stages.values(), strict=True)
        }
        forecast = {
            "format": 1, "steps": sum(part.steps for part in parts), "step_s": self.counted_s, "minutes": MINUTES,
            "fetch_s": 0.0, "stages": {part.stage: part.steps for part in parts}, "beside": asdict(self.beside),
        }  # fmt: skip
        return replace(plan, stages=made, forecast=forecast)

    def plan_stage(self, settings, origins, folder, *, started_s):
        """A stage of the steps that were asked for."""
        plan = super().plan_stage(settings, origins, folder, started_s=started_s)
        job, choices = plan.stages[settings.stage]
        forecast = {name: value for name, value in plan.forecast.items() if name not in ("stages", "beside")}
        return replace(plan, stages={settings.stage: (replace(job, steps=settings.steps), choices)}, forecast=forecast)

    def supervise(self, folder, env, limits=None, review=None):
        if folder.name == "eval":
            self.clock_s += BESIDE.last_s + self.question_steps * self.pace(self.clock_s)
            return super().supervise(folder, env)
        step, planned, asked_s = 0, read_json(folder / "config.json")["steps"], self.clock_s
        while step < planned:
            step, step_s = step + 1, self.pace(self.clock_s)
            self.clock_s += step_s
            log_row(folder / "log.jsonl", StepRow(step, 160 * step, 2.0, 1.0, step_s, 0.0, 160 / step_s, 7))
            if review is not None and self.clock_s - asked_s > ASKED_EVERY_S:
                asked_s = self.clock_s
                if review.wants_end():
                    self.restarts.append((folder.name, step))
                    self.clock_s += BESIDE.start_s
                    assert review.plan_anew(step)
                    planned = read_json(folder / "config.json")["steps"]
                    log_row(folder / "log.jsonl", EventRow(step, "resumed", "from the save"))
        evaluation_s = self.stage_steps[folder.name] * self.pace(self.clock_s)
        self.clock_s += BESIDE.start_s + evaluation_s
        log_row(folder / "log.jsonl", EvalRow(step, evaluation_s, {"bpb": 1.0}))
        write_json(folder / "outcome.json", {"format": 1, "outcome": "done"})
        return Outcome("done", step)


@pytest.fixture
def clockwork(home, tiny_job, monkeypatch):
    """clockwork(counted_s, pace) -> the machine, in place of planning, supervising and the clock of a run's cost."""

    def made(counted_s, pace):
        machine = Clockwork(tiny_job, counted_s, pace if callable(pace) else lambda _: pace)
        for module, name in ((verb, "plan_run"), (verb, "plan_stage"), (stages, "supervise")):
            monkeypatch.setattr(module, name, getattr(machine, name))
        monkeypatch.setattr(CostWatch, "seconds", property(lambda _: machine.clock_s))
        monkeypatch.setattr(verb, "write_page", lambda run: None)
        monkeypatch.setattr(horizon, "renew_data", lambda folder, _, steps: machine.renewed.append(folder.name))
        # the text of the tiny job is short; here 200 steps go over it once, and it never wears out
        monkeypatch.setattr(horizon, "steps_for", lambda folder, times: 200 if times == 1 else 10**6)
        return machine

    return made


def steps_of(name="d1-1") -> dict[str, int]:
    """Steps that were trained, by stage; they are those of config.json and of the plan."""
    found = find_run(name)
    trained = {stage: last_step(found.stage_folder(stage)) for stage in found.stages}
    for stage, steps in trained.items():
        folder = found.stage_folder(stage)
        configured = read_json(folder / "config.json")["steps"]
        assert configured == steps == read_choices(folder).num_steps(configured)
    return trained


def new_plans(name="d1-1") -> list[tuple[str, int, str]]:
    """(stage, step, words) of every new plan in the logs of a run."""
    found = find_run(name)
    rows = {stage: read_log(found.stage_folder(stage) / "log.jsonl", "event") for stage in found.stages}
    plans = [(stage, row) for stage, events in rows.items() for row in events if row["event"] == "new plan"]
    return [(stage, row["step"], row["message"]) for stage, row in plans]


def test_a_plan_from_a_busy_moment_grows_to_fill_the_minutes(clockwork, capsys):
    machine = clockwork(counted_s=SLOW_S, pace=QUICK_S)
    run()
    assert machine.clock_s == pytest.approx(60 * MINUTES, rel=0.03)
    steps = steps_of()
    total = sum(steps.values())
    assert total > 5 * sum(read_json(find_run("d1-1").folder / "forecast.json")["stages"].values())
    for stage, share in recipe.STARTER_SHARES.items():
        assert steps[stage] == pytest.approx(share * total, rel=0.1)
    assert machine.renewed == ["sft"]  # 100 steps of mid have enough with what they had
    (stage, step, words), *_ = new_plans()
    assert stage == "base" and words.startswith("base 19 -> ") and ", mid 19 -> " in words
    assert "a step takes 0.8 s, 4 s were counted on; " in words and words.endswith(" of 10 min are left")
    assert f"new plan: {words}\n" in capsys.readouterr().err
    choices = read_choices(find_run("d1-1").stage_folder("base"))
    assert choices.horizons(0)[0] == (0, 19) and choices.horizons(0)[1][0] == step
    assert f"base 19 -> {choices.horizons(0)[1][1]:,}, " in words
    settled = choices.settings["steps"]
    assert (settled.value, settled.origin) == (steps["base"], "measured")
    assert settled.measured["step_s"] == pytest.approx(QUICK_S)


def test_a_machine_that_becomes_busy_gets_fewer_steps_and_ends_little_later(clockwork):
    machine = clockwork(counted_s=QUICK_S, pace=lambda at_s: QUICK_S if at_s < 150 else 3 * QUICK_S)
    run()
    assert 0.98 <= machine.clock_s / (60 * MINUTES) <= 1.12  # what it costs not to believe a bad minute
    assert sum(steps_of().values()) < 450
    assert new_plans()


def test_rates_still_fall_to_the_end_without_a_jump_where_a_stage_was_planned_anew(clockwork):
    machine = clockwork(counted_s=QUICK_S, pace=lambda at_s: QUICK_S if at_s < 300 else 2.5 * QUICK_S)
    run()
    assert "sft" in [stage for stage, _ in machine.restarts]
    assert 0.98 <= machine.clock_s / (60 * MINUTES) <= 1.12
    folder = find_run("d1-1").stage_folder("sft")
    job, horizons = TrainJob.from_json(read_json(folder / "config.json")), read_choices(folder).horizons(0)
    scales = [
        scale_at(job.schedule, step, horizons[0][1], place=place_of(horizons, step)) for step in range(job.steps)
    ]
    rates = [scale.lr for scale in scales]
    assert rates[0] == 1.0 and rates[-1] < 0.05 and scales[-1].weight_decay < 0.01
    assert max(a - b for a, b in zip(rates, rates[1:], strict=False)) < 0.02


def test_within_the_tolerance_nothing_is_planned_anew(clockwork):
    machine = clockwork(counted_s=QUICK_S, pace=1.01 * QUICK_S)
    run()
    assert (machine.restarts, new_plans()) == ([], [])
    assert steps_of() == read_json(find_run("d1-1").folder / "forecast.json")["stages"]


def test_a_little_off_is_put_right_between_stages_without_a_restart(clockwork):
    machine = clockwork(counted_s=QUICK_S, pace=1.1 * QUICK_S)
    run()
    assert machine.restarts == [] and machine.clock_s == pytest.approx(60 * MINUTES, rel=0.02)
    assert [(stage, step) for stage, step, _ in new_plans()] == [("mid", 0)]


def test_what_evaluations_do_not_take_goes_to_the_stages_still_to_come(clockwork):
    machine = clockwork(counted_s=QUICK_S, pace=QUICK_S)
    # as in a default run, which ended a minute early
    machine.beside = replace(BESIDE, stage_steps=15.0, last_steps=130.0)
    machine.stage_steps, machine.question_steps = {"base": 17.0, "mid": 11.0, "sft": 14.0}, 33.0
    run()
    assert machine.restarts == [] and 0.98 <= machine.clock_s / (60 * MINUTES) <= 1.001
    planned, steps = read_json(find_run("d1-1").folder / "forecast.json")["stages"], steps_of()
    assert steps["base"] == planned["base"] and steps["mid"] > 1.1 * planned["mid"]
    assert steps["sft"] - planned["sft"] > 4 * (steps["mid"] - planned["mid"])
    assert [stage for stage, *_ in new_plans()] == ["mid", "sft"]
    assert "; evaluations and starts take about 1 min 19 s; " in new_plans()[0][2]


def test_evaluations_that_take_longer_than_planned_still_end_in_the_minutes(clockwork):
    machine = clockwork(counted_s=QUICK_S, pace=QUICK_S)
    machine.stage_steps, machine.question_steps = dict.fromkeys(recipe.STARTER_SHARES, 12.0), 42.0
    run()
    assert machine.restarts == [] and 0.98 <= machine.clock_s / (60 * MINUTES) <= 1.001


def test_one_disturbed_evaluation_takes_no_steps_from_the_others(clockwork):
    machine = clockwork(counted_s=QUICK_S, pace=QUICK_S)
    machine.stage_steps["base"] = 60.0
    run()
    planned, steps = read_json(find_run("d1-1").folder / "forecast.json")["stages"], steps_of()
    assert sum(planned.values()) - sum(steps.values()) == pytest.approx(58, abs=2), "as long as it took, and no more"
    assert steps["mid"] > 0.88 * planned["mid"]
    assert 0.98 <= machine.clock_s / (60 * MINUTES) <= 1.001


def test_answers_alone_are_counted_on_as_lighter_on_our_kernels(clockwork, monkeypatch):
    machine = clockwork(counted_s=QUICK_S, pace=QUICK_S)
    planned = machine.plan_run

    def of_kernels(*given, **named):
        plan = planned(*given, **named)
        stages = {
            stage: (
                replace(job, learn_all=stage == "mid"),
                replace(choices, segments=(replace(choices.segments[0], kernels="native"),)),
            )
            for stage, (job, choices) in plan.stages.items()
        }
        return replace(plan, stages=stages)

    monkeypatch.setattr(verb, "plan_run", of_kernels)
    run()
    forecast, steps = read_json(find_run("d1-1").folder / "forecast.json")["stages"], steps_of()
    assert steps["sft"] == pytest.approx(forecast["sft"] / horizon.LIGHTER, rel=0.01)
    assert [stage for stage, *_ in new_plans()] == ["sft"]


def test_a_hiccup_does_not_make_a_plan_smaller(clockwork):
    machine = clockwork(counted_s=QUICK_S, pace=lambda at_s: 10 * QUICK_S if 33 < at_s < 43 else QUICK_S)
    run()
    assert machine.restarts == [] and machine.clock_s == pytest.approx(60 * MINUTES, rel=0.03)


def test_a_bad_minute_does_not_cost_what_comes_after_it(clockwork):
    """Seen: others took the machine for two minutes, the plan gave up most of its steps and ended when it was calm."""
    fast = clockwork(counted_s=QUICK_S, pace=QUICK_S)
    run(name="calm")
    paces = ((300, 1), (360, 4), (420, 8), (9999, 1))
    machine = clockwork(
        counted_s=QUICK_S, pace=lambda at_s: QUICK_S * next(slower for end_s, slower in paces if at_s < end_s)
    )
    run(name="disturbed")
    calm, disturbed = (sum(steps_of(name).values()) for name in ("calm", "disturbed"))
    lost = (60 * 3 / 4 + 60 * 7 / 8) / QUICK_S  # steps that others took away
    assert disturbed > calm - 1.5 * lost
    assert 0.9 <= machine.clock_s / fast.clock_s <= 1.12


def test_steps_that_were_asked_for_or_copied_are_never_changed(clockwork):
    machine = clockwork(counted_s=QUICK_S, pace=QUICK_S)
    run(name="first")
    machine.pace = lambda _: 5 * QUICK_S
    run(like="first", name="twin")
    assert (steps_of("twin"), new_plans("twin")) == (steps_of("first"), [])
    train(stage="base", steps=150, name="asked")
    assert (steps_of("asked"), new_plans("asked")) == ({"base": 150}, [])
    assert machine.restarts == []


def test_a_kill_between_the_two_files_of_a_new_plan_leaves_the_one_that_counts(clockwork, monkeypatch):
    clockwork(counted_s=SLOW_S, pace=QUICK_S)
    written = horizon.rewrite

    def killed(folder, **changes):
        raise KeyboardInterrupt

    monkeypatch.setattr(horizon, "rewrite", killed)
    with pytest.raises(KeyboardInterrupt):
        run()
    folder = find_run("d1-1").stage_folder("base")
    planned = read_choices(folder).num_steps(19)
    assert read_json(folder / "config.json")["steps"] == 19 < planned
    monkeypatch.setattr(horizon, "rewrite", written)
    monkeypatch.setattr(stages, "supervise", lambda folder, env, review: Outcome("stopped", 5))
    with pytest.raises(KeyboardInterrupt):
        run()
    assert read_json(folder / "config.json")["steps"] == planned


# --- parts ----------------------------------------------------------------------------------------------------------


def test_what_is_left_is_spread_so_that_stages_have_their_shares_in_the_end():
    shares = {"base": 15, "mid": 15, "sft": 70}
    assert spread(shares, {"base": 0, "mid": 0, "sft": 0}, list(shares), 1000) == {"base": 150, "mid": 150, "sft": 700}
    assert spread(shares, {"base": 50, "mid": 0, "sft": 0}, list(shares), 950) == {"base": 150, "mid": 150, "sft": 700}
    over = spread(shares, {"base": 300, "mid": 0, "sft": 0}, ["mid", "sft"], 850)
    assert over == {"mid": 150, "sft": 700}
    late = spread(shares, {"base": 600, "mid": 0, "sft": 0}, list(shares), 100)
    assert late["base"] in (602, 601) and sum(late.values()) == pytest.approx(700, abs=2)
    assert min(spread(shares, {"base": 9, "mid": 9, "sft": 0}, ["mid", "sft"], 1).values()) >= 1


def rows_of(*step_s, kind="step"):
    return [{"kind": kind, "step": number, "step_s": seconds} for number, seconds in enumerate(step_s, 1)]


def test_the_pace_is_that_of_the_process_that_trained_last_without_its_first_step():
    before, now = rows_of(*[9.0] * 30), rows_of(5.0, *[0.5] * 10)
    resumed = {"kind": "event", "step": 30, "event": "resumed", "message": "", "seconds": None}
    assert recent_pace([*before, resumed, *now]) == Pace(0.5, 0.5, 5.0)
    assert recent_pace([*before, resumed, *now[:8]]) is None
    save = {"kind": "event", "step": 3, "event": "save", "message": "", "seconds": 1.0}
    end = [save, {"kind": "eval", "step": 11, "seconds": 7.0, "values": {}}]
    assert recent_pace([resumed, *now[:5], save, *now[5:], *end]) == Pace(0.6, 0.5, 6.0)


def test_the_pace_is_that_of_the_last_minute_or_of_enough_steps():
    assert recent_pace(rows_of(*[1.0] * 100, *[2.0] * 40)).step_s == 2.0
    assert recent_pace(rows_of(*[1.0] * 100, *[30.0] * 9)).step_s == pytest.approx(30.0)


def test_an_evaluation_is_told_in_the_steps_before_it():
    evaluation = {"kind": "eval", "step": 11, "seconds": 7.0, "values": {}}
    assert horizon.evaluation_steps([*rows_of(*[0.5] * 11), evaluation]) == 14.0
    assert horizon.evaluation_steps([*rows_of(*[0.5] * 5), evaluation]) is None
    assert horizon.evaluation_steps(rows_of(*[0.5] * 11)) is None


def test_what_a_run_does_beside_its_steps_follows_the_least_disturbed_evaluation():
    planned = Beside(start_s=5.0, stage_steps=10.0, last_s=5.0, last_steps=35.0)
    assert planned.measured([]) == planned
    assert planned.measured([40.0]) == planned
    assert planned.measured([4.0]) == replace(planned, stage_steps=4.0, last_steps=QUESTIONS * 4.0)
    assert planned.measured([40.0, 20.0]) == replace(planned, stage_steps=20.0, last_steps=QUESTIONS * 20.0)
    assert replace(planned, last_s=0.0, last_steps=0.0).measured([4.0]).last_steps == 0.0


def test_no_stage_grows_beyond_what_its_text_is_good_for(tiny_job, tmp_path):
    folder = write_job(tmp_path, tiny_job)
    rows = 5 * horizon.steps_for(folder, MANY_EPOCHS)
    text = Rows([TokenSet.open(planning.Path(tiny_job.data[0]))], tiny_job.context, tiny_job.seed)
    assert text.epochs(rows) == pytest.approx(MANY_EPOCHS, rel=0.05)
    write_job(tmp_path, tiny_job, data=(str(tmp_path / "gone"),))
    assert horizon.steps_for(folder, MANY_EPOCHS) == 0


def test_the_data_of_a_stage_planned_anew_is_what_planning_takes_for_so_many_tokens(
    trials, data, home, tmp_path  # noqa: F811
):  # fmt: skip
    settings, origins = settings_of(RunSettings, {**ASKED, **data})
    plan = planning.plan_run(settings, origins, tmp_path / "run", started_s=planning.time.monotonic())
    jobs = {stage: job for stage, (job, _) in plan.stages.items()}
    tokens = {stage: job.steps * job.rows_per_step * job.context for stage, job in jobs.items()}
    for stage, job in jobs.items():
        mix = horizon.stage_mix(stage, settings, tokens, planning.Path(job.tokenizer))
        assert (mix.folders, mix.weights) == (job.data, job.weights)
