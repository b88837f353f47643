"""Planning: what is open becomes a value with a reason, and complete jobs for every stage come out."""

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from intone import ground, planning, prepare, recipe
from intone.config import model_config
from intone.data.chat import Message
from intone.data.shards import TokenSet
from intone.data.tokenizer import SPLIT_PATTERN, Tokenizer
from intone.errors import UserError
from intone.hardware import Facts
from intone.model.checkpoint import save_checkpoint
from intone.model.gpt import GPT
from intone.paths import write_json
from intone.prove.noise import Disturbance
from intone.records import Choice, Outcome, choice, write_outcome
from intone.resolving import Layer, Resolved, identity, resolve
from intone.runs import create_run
from intone.settings import RunSettings, TrainSettings
from intone.tune import compiling
from intone.tune.precision import NoTrial
from intone.tune.settle import fallbacks, gate_key
from intone.tune.trial import TrialResult
from intone.tune.trials import Trials

GIB = 2**30
AUTO = Resolved("auto", "default", "left to tuning")
FACTS = Facts(
    fingerprint="ab" * 8, torch_version="2.13.0+cpu", libc="glibc 2.36", cores_logical=2, cores_physical=2,
    busy_cores=0.0, device="cpu", memory_bytes=8 * GIB, memory_available_bytes=7 * GIB, fp32_flops_per_s=50e9,
    bf16_flops_per_s=40e9,
)  # fmt: skip
# everything that would otherwise be measured, and a model of the size of a test
ASKED = {
    "depth": 1, "context": 32, "vocab_size": 300, "dtype": "fp32", "threads": 1, "kernels": "torch", "compile": "off",
    "batch_tokens": 256, "device_batch": 3, "seed": 5, "minutes": 0.8, "save_every_s": 7.0, "keep": 1,
}  # fmt: skip
STEP_S = 0.1


def asked(value) -> Resolved:
    return Resolved(value, "flag", "asked for")


@pytest.fixture
def machine(home, monkeypatch):
    """A known machine on which every trial step takes a tenth of a second; returns the trials that were run."""
    trials = []

    def run(runner, dtype, *, compiled, num_steps, kernels="torch"):
        trials.append((dtype, compiled, kernels, num_steps))
        return TrialResult([2.0] * num_steps, STEP_S, STEP_S, None)

    monkeypatch.setattr(planning, "load_facts", lambda: FACTS)
    monkeypatch.setattr(ground.TrialRunner, "run", run)
    for name in ("attention", "head", "allocator", "products"):  # whose comparisons are their own tests'
        monkeypatch.setattr(f"intone.tune.{name}.COST_S", 1e9)
    return trials


@pytest.fixture
def data(tmp_path):
    """Flags for a small text and a few conversations."""
    ships = [f"Ship {n} sails past island {n * 7 % 31} to the north. " * 5 for n in range(90)]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": ship}) + "\n" for ship in ships))
    turns = [
        [{"role": "user", "content": f"Where is ship {n}?"}, {"role": "assistant", "content": f"At island {n % 31}."}]
        for n in range(120)
    ]
    (tmp_path / "talk.jsonl").write_text("".join(json.dumps({"messages": turn}) + "\n" for turn in turns))
    return {"data": (str(tmp_path / "text.jsonl"),), "sft": (str(tmp_path / "talk.jsonl"),)}


def settings_of(cls, values):
    return resolve(cls, [Layer("flag", "test", values)])


# --- single values --------------------------------------------------------------------------------------------------


def test_what_was_asked_for_stays_and_the_rest_is_the_recipes():
    settled = ground.Settled(FACTS, {})
    origins = {"depth": asked(3), "context": AUTO, "vocab_size": AUTO}
    depth, context, vocab = planning.settle_size(settled, origins, FACTS, 4.0, is_starter=False)
    assert (depth, context, vocab) == (
        3, recipe.auto_context(is_starter=False), recipe.auto_vocab_size(3, is_starter=False)
    )  # fmt: skip
    assert settled.choices["depth"].origin == "flag"
    assert settled.choices["vocab_size"].reason == "a larger one would dominate the cost at depth 3"


def test_more_minutes_and_a_faster_machine_never_give_a_smaller_model():
    def depth(rate, minutes):
        facts = planning.replace(FACTS, fp32_flops_per_s=rate, bf16_flops_per_s=None)
        origins = {name: AUTO for name in ("depth", "context", "vocab_size")}
        return planning.settle_size(ground.Settled(facts, {}), origins, facts, minutes, is_starter=False)[0]

    depths = [depth(rate, minutes) for rate in (None, 5e10, 5e12, 5e14) for minutes in (3, 300)]
    assert depths == sorted(depths)
    assert recipe.MIN_DEPTH == depths[0] < depths[-1] <= recipe.MAX_DEPTH


@pytest.mark.parametrize(("context", "total"), [(96, 1e6), (512, 1e6), (512, 1e9), (4096, 1e5), (300, 1e6)])
def test_an_automatic_step_holds_whole_rows(context, total):
    settled = planning.settle_batch_tokens(AUTO, context, total)
    assert settled.value % context == 0
    assert context <= settled.value <= max(context, recipe.auto_batch_tokens(total))
    assert settled.reason.startswith("about ") and settled.reason.endswith(" steps in the time")


@pytest.mark.parametrize(
    ("tokens", "context", "fix"),
    [
        (256, 512, "use --batch-tokens 512 or more"),
        (2048, 768, "use --batch-tokens auto, or a power of two for --context"),
        (64, 96, "use --batch-tokens auto, or a power of two for --context"),
    ],
)
def test_a_step_that_holds_no_whole_rows_is_refused_with_one_that_does(tokens, context, fix):
    with pytest.raises(UserError) as caught:
        planning.settle_batch_tokens(asked(tokens), context, 1e6)
    assert caught.value.message == f"batch_tokens {tokens:,} is not a multiple of the context {context}"
    assert caught.value.fix == fix
    assert planning.settle_batch_tokens(asked(4096), 512, 1e6).value == 4096


def test_a_micro_batch_larger_than_the_step_is_refused_before_anything_is_made():
    config = model_config("modern", depth=1, vocab_size=300, context=32)
    origins = {"batch_tokens": asked(256), "device_batch": asked(9)}
    with pytest.raises(UserError) as caught:
        planning.settle_steps(ground.Settled(FACTS, {}), origins, config, 1.0)
    assert str(caught.value) == "device_batch 9 is more than the 8 rows of a step\n  fix: use --device-batch 8 or auto"


def test_time_beside_the_steps_grows_with_compiling_and_slow_steps():
    config = model_config("modern", depth=1, vocab_size=300, context=32)
    eager = ground.Ground(config, None, None, "cpu", "fp32", 1, "torch", "sdpa", False, 3, 8, 0.1, 0.1, {})

    def seconds(plan):
        return ground.beside_steps(plan, asks_skills=True).seconds(3, plan.step_s)

    plain = seconds(eager)
    assert plain > 4 * ground.WORKER_S
    assert seconds(planning.replace(eager, compiled=True)) == pytest.approx(plain + 3 * ground.WARM_COMPILE_S)
    slow = seconds(planning.replace(eager, eager_step_s=0.2))
    assert slow - 4 * ground.WORKER_S == pytest.approx(2 * (plain - 4 * ground.WORKER_S))
    silent = ground.beside_steps(eager, asks_skills=False)
    assert (silent.last_s, silent.last_steps) == (0, 0)


def test_a_trial_that_does_not_run_says_what_to_make_smaller(machine, monkeypatch):
    def fail(*_, **__):
        raise NoTrial("memory ran out")

    monkeypatch.setattr(ground.TrialRunner, "run", fail)
    runner = ground.TrialRunner(None, "cpu", 1, 3, {}, None)
    with pytest.raises(UserError) as caught:
        ground.timed_step(runner, "fp32", compiled=False)
    assert caught.value.message == f"a trial of {ground.SPEED_STEPS} steps did not run: memory ran out"
    assert caught.value.fix.startswith("use a smaller --depth")


def test_a_step_time_that_was_measured_among_others_says_so():
    load = Disturbance("load", "other programs used 1.2 of 2 cores", 8.0)
    steal = Disturbance("steal", "the host took 5% of the processor time for others", 2.5)
    clock = Disturbance("clock", "the processor's speed moved by 90%", 13.0)
    words = ground.busy_words([steal, load, clock], "cpu")
    assert words == load.words
    assert ground.busy_words([clock], "cpu") is None and ground.busy_words([load], "cuda") is None
    busy = ground.step_choice(0.25, words)
    assert (busy.value, busy.origin) == (0.25, "measured")
    assert busy.reason.endswith("; meanwhile other programs used 1.2 of 2 cores: it may be too long")
    assert "meanwhile" not in ground.step_choice(0.25, None).reason


def test_few_steps_from_a_busy_moment_are_planned_for_a_faster_machine():
    config = model_config("modern", depth=1, vocab_size=300, context=32)
    quiet = ground.Ground(config, None, None, "cpu", "fp32", 1, "torch", "sdpa", False, 3, 8, 2.0, 2.0, {})
    busy = planning.replace(quiet, was_busy=True)
    beside = ground.Beside(start_s=4.0, stage_steps=1.0)

    def steps(left_s, plan):
        return planning.fitting_steps(left_s, plan, beside, num_stages=3)

    assert [steps(left_s, quiet) for left_s in (12, 58, 618)] == [0, 20, 300]
    # at half a second a step 13.5 s go beside them
    assert [steps(left_s, busy) for left_s in (12, 23.5, 58, 618)] == [0, 20, 89, 300]
    assert steps(118, busy) == planning.FEW_STEPS


def test_the_gates_trial_serves_as_the_speed_trial():
    runner = ground.TrialRunner(None, "cpu", 1, 3, {}, None)
    runner.known["bf16", False, "torch", ground.GATE_STEPS, None, 1] = TrialResult([2.0], 0.5, 0.25, None)
    assert ground.timed_step(runner, "bf16", compiled=False) == 0.25


def test_the_minutes_bound_what_was_guessed_before_anything_was_timed_but_not_what_was_asked_for():
    def run_s(always=False, **values):
        choices = {name: Choice(value, "test", "default") for name, value in values.items()}
        return ground.Settled(FACTS, choices, always=always).run_s(1000, 2.0)

    assert run_s(minutes=10.0) == run_s(minutes=10.0, steps="auto") == 600.0
    assert run_s(minutes=100.0) == 2000.0
    assert run_s(minutes=10.0, steps=1000) == 2000.0
    assert run_s(always=True, minutes=10.0) is None


@pytest.fixture
def spare(home, machine, tmp_path):
    """spare(steps, cores_physical=...) -> (whether a run of so many steps of 0.1 s begins eager, what was settled)."""
    config = model_config("modern", depth=1, vocab_size=300, context=32)

    def ask(steps, *, asked=AUTO, gate=None, **changes):
        facts = planning.replace(FACTS, **{"cores_physical": 8, "cxx": "g++", "python_header": "Python.h", **changes})
        trials, settled = Trials(facts), ground.Settled(facts, {})
        if gate is not None:
            key = gate_key(facts, config, "fp32", by_block=False)
            trials.record("gate", key, Choice(gate, "known", "measured"))
        runner = ground.TrialRunner(None, "cpu", 2, 3, {}, tmp_path)
        begins_eager = ground.compiles_beside(
            settled, asked, config, trials, runner, "fp32", expected_steps=steps, eager_s=STEP_S
        )
        return begins_eager, settled

    return ask


def test_with_cores_to_spare_a_run_begins_eager_and_the_plan_names_the_swap(spare, machine):
    begins_eager, settled = spare(2000)
    at = math.ceil(compiling.LATE * compiling.CPU_GUESS.compile_s / STEP_S)
    assert (begins_eager, settled.swap_step, machine) == (True, at, [])
    assert settled.choices["compile"].value == "on" and f"from step {at:,} on" in settled.choices["compile"].reason
    config = model_config("modern", depth=1, vocab_size=300, context=32)
    plan = ground.Ground(
        config, None, None, "cpu", "fp32", 2, "torch", "sdpa", False, 3, 8, 0.1, 0.1, {}, head_pieces=4, swap_step=at
    )
    first, later = planning.stage_choices(settled, plan).segments
    assert (first.from_step, first.compiled, first.attention, first.head_pieces) == (0, False, "sdpa", 4)
    assert (later.from_step, later.compiled, later.attention, later.head_pieces) == (at, True, "products", 1)
    assert later.device_batch == first.device_batch


@pytest.mark.parametrize(
    ("steps", "changes"),
    [
        (2000, {"cores_physical": 2}),  # compiling comes first there
        (2000, {"gate": False}),  # what is known needs no second look
        (2000, {"cxx": None}),
        (400, {}),  # it would be over before the swap has paid
        (2000, {"asked": Resolved("on", "flag", "asked for")}),
    ],
)
def test_elsewhere_nothing_is_compiled_beside_the_run(spare, steps, changes):
    begins_eager, settled = spare(steps, **changes)
    assert not begins_eager and settled.swap_step is None and "compile" not in settled.choices


# --- whole plans ----------------------------------------------------------------------------------------------------


def test_a_run_becomes_three_complete_jobs(machine, data, home, tmp_path):
    settings, origins = settings_of(RunSettings, {**ASKED, **data})
    plan = planning.plan_run(settings, origins, tmp_path / "run", started_s=planning.time.monotonic())
    assert machine == [("fp32", False, "torch", ground.SPEED_STEPS)]
    assert list(plan.stages) == ["base", "mid", "sft"]
    jobs = {stage: job for stage, (job, _) in plan.stages.items()}
    assert sum(job.steps for job in jobs.values()) == plan.forecast["steps"] >= 30
    assert plan.forecast["steps"] * STEP_S < 60 * 0.8
    assert plan.forecast["stages"] == {stage: job.steps for stage, job in jobs.items()}
    assert plan.forecast["beside"]["last_s"] == 0.0
    for job in jobs.values():
        assert (job.rows_per_step, job.context, job.seed, job.save_every_s, job.keep) == (8, 32, 5, 7.0, 1)
        assert job.model == model_config("modern", depth=1, vocab_size=300, context=32)
        assert job.peak_flops == 50e9
    assert [job.init_from for job in jobs.values()] == [None, str(tmp_path / "run/base"), str(tmp_path / "run/mid")]
    assert [job.keep_optimizer for job in jobs.values()] == [False, True, True]
    assert [job.learn_all for job in jobs.values()] == [False, True, False]
    assert jobs["mid"].data == jobs["base"].data + jobs["sft"].data
    assert jobs["base"].val == jobs["mid"].val != jobs["sft"].val
    for _, choices in plan.stages.values():
        [segment] = choices.segments
        assert (segment.device_batch, segment.dtype, segment.threads, segment.compiled) == (3, "fp32", 1, False)
        assert choices.fallbacks == {"device_batch": fallbacks(3)}
        assert choices.settings["depth"] == choice(origins["depth"])
        assert all(entry.reason for entry in choices.settings.values())
        still_open = [name for name, entry in choices.settings.items() if entry.value == "auto"]
        assert set(still_open) <= {"eval_every"}
    assert plan.evaluation is None  # the conversations are the person's own: no starter skills to ask


def test_a_rate_that_was_measured_beside_others_gives_no_share_of_it(monkeypatch):
    at_ground = SimpleNamespace(dtype="fp32", device="cpu", devices=1)
    for busy_cores, rate in ((None, 50e9), (0.1, 50e9), (1.1, None)):
        measured = replace(FACTS, fp32_flops_per_s=50e9, measured_busy_cores=busy_cores)
        monkeypatch.setattr(planning, "load_facts", lambda measured=measured: measured)
        assert planning.ground_rate(at_ground) == rate


def test_a_run_with_starter_conversations_is_asked_its_skills(machine, data, home, tmp_path, monkeypatch):
    def conversations(seed, num):
        turns = ((f"Where is ship {seed}-{n}?", f"At island {n % 31}.") for n in range(min(num, 400)))
        return ([Message("user", question), Message("assistant", answer)] for question, answer in turns)

    monkeypatch.setattr(prepare.starter, "conversations", conversations)
    settings, origins = settings_of(RunSettings, {**ASKED, "minutes": 3, "data": data["data"]})
    plan = planning.plan_run(settings, origins, tmp_path / "run", started_s=planning.time.monotonic())
    assert (plan.evaluation["job"], plan.evaluation["from"]) == ("evaluate", str(tmp_path / "run/sft"))
    assert plan.evaluation["tokenizer"] == plan.stages["sft"][0].tokenizer


def test_too_little_text_for_the_asked_minutes_is_refused(machine, data, home, tmp_path):
    settings, origins = settings_of(RunSettings, {**ASKED, **data, "minutes": 90})
    with pytest.raises(UserError, match=r"tokens of text would be seen [\d,]+ times in this run"):
        planning.plan_run(settings, origins, tmp_path / "run", started_s=planning.time.monotonic())


def test_too_few_conversations_are_refused_too(machine, data, home, tmp_path):
    (tmp_path / "talk.jsonl").write_text("".join((tmp_path / "talk.jsonl").read_text().splitlines(True)[:3]))
    settings, origins = settings_of(RunSettings, {**ASKED, **data, "minutes": 3})
    with pytest.raises(UserError, match=r"tokens of conversations would be seen [\d,]+ times in this run"):
        planning.plan_run(settings, origins, tmp_path / "run", started_s=planning.time.monotonic())


def test_a_stage_takes_the_steps_that_were_asked_for(machine, data, home, tmp_path):
    values = {**ASKED, "stage": "base", "data": data["data"], "steps": 17, "minutes": "auto"}
    settings, origins = settings_of(TrainSettings, values)
    plan = planning.plan_stage(settings, origins, tmp_path / "run", started_s=planning.time.monotonic())
    assert list(plan.stages) == ["base"]
    job, choices = plan.stages["base"]
    assert (job.steps, job.init_from, job.keep_optimizer) == (17, None, False)
    assert choices.settings["steps"].value == 17
    assert plan.evaluation is None
    assert "beside" not in plan.forecast  # what was asked for does not follow the clock


def test_a_stage_of_so_many_minutes_may_be_planned_anew_and_is_told_with_what(machine, data, home, tmp_path):
    settings, origins = settings_of(TrainSettings, {**ASKED, "stage": "base", "data": data["data"]})
    plan = planning.plan_stage(settings, origins, tmp_path / "run", started_s=planning.time.monotonic())
    assert plan.forecast["stages"] == {"base": plan.stages["base"][0].steps} == {"base": plan.forecast["steps"]}
    assert plan.forecast["beside"] == {
        "start_s": ground.WORKER_S, "stage_steps": ground.VAL_TOKENS / 3 / 256, "last_s": 0.0, "last_steps": 0.0
    }  # fmt: skip


def test_the_plan_tells_workers_whose_products_to_compute_with(machine, data, home, tmp_path, monkeypatch):
    monkeypatch.setattr(ground, "settle_products", lambda *_, **__: Choice("library", "test", "measured"))
    settings, origins = settings_of(TrainSettings, {**ASKED, "stage": "base", "data": data["data"]})
    plan = planning.plan_stage(settings, origins, tmp_path / "run", started_s=planning.time.monotonic())
    _, choices = plan.stages["base"]
    assert choices.environment["INTONE_PRODUCTS"] == choices.settings["products"].value == "library"


def test_whether_compiling_pays_is_asked_for_the_steps_that_were_asked_for(machine, data, home, tmp_path, monkeypatch):
    asked_steps = []

    def settle_compile(*_, steps, **__):
        asked_steps.append(steps)
        return Choice("off", "test", "default")

    monkeypatch.setattr(ground, "settle_compile", settle_compile)
    for more in ({"steps": 17, "minutes": "auto"}, {"minutes": 0.8}):
        settings, origins = settings_of(TrainSettings, {**ASKED, "stage": "base", "data": data["data"], **more})
        planning.plan_stage(settings, origins, tmp_path / "run", started_s=planning.time.monotonic())
    assert asked_steps[0] == 17
    assert asked_steps[1] > 1000


def finished_base(folder, *, context=64):
    """A run `first` with a stage base of an untrained model -> (its folder, the tokenizer)."""
    tokenizer = Tokenizer([bytes([value]) for value in range(256)], SPLIT_PATTERN)
    tokenizer.save(folder / "tokenizer")
    config = model_config("modern", depth=2, vocab_size=265, context=context)
    stage = create_run(identity(RunSettings()), verb="run", stages=("base",), name="first").stage_folder("base")
    save_checkpoint(
        stage, 4, model=config, weights=GPT(config).state_dict(), optimizer={"num_steps": torch.tensor(4)}, state={},
        tokenizer_hash=tokenizer.hash,
    )  # fmt: skip
    write_json(stage / "config.json", {"tokenizer": str(folder / "tokenizer")})
    write_outcome(stage, Outcome("done", 4))
    return stage, config, tokenizer


def test_middle_training_alone_mixes_text_and_conversations_as_in_a_run(machine, data, home, tmp_path):
    finished_base(tmp_path)
    values = {**ASKED, **data, "stage": "mid", "from_run": "first", "steps": 9, "minutes": "auto"}
    settings, origins = settings_of(TrainSettings, values)
    plan = planning.plan_stage(settings, origins, tmp_path / "run", started_s=planning.time.monotonic())
    job, _ = plan.stages["mid"]
    sets = [TokenSet.open(Path(folder)) for folder in job.data]
    assert [token_set.kind for token_set in sets] == ["documents", "conversations"]
    text, talk = (weight * token_set.num_tokens for weight, token_set in zip(job.weights, sets, strict=True))
    assert text == pytest.approx(talk)
    assert job.learn_all and TokenSet.open(Path(job.val)).kind == "documents"


def test_a_stage_from_a_run_takes_over_its_model_and_tokenizer(machine, data, home, tmp_path):
    stage, config, tokenizer = finished_base(tmp_path)
    values = {**ASKED, "stage": "sft", "from_run": "first", "data": data["sft"], "steps": 9, "minutes": "auto"}
    settings, origins = settings_of(TrainSettings, values)
    plan = planning.plan_stage(settings, origins, tmp_path / "run", started_s=planning.time.monotonic())
    job, _ = plan.stages["sft"]
    assert (job.model, job.tokenizer_hash, job.init_from) == (config, tokenizer.hash, str(stage))
    assert job.keep_optimizer and job.schedule.warmup_steps == 0
    (tmp_path / "tokenizer" / "tokenizer.json").unlink()
    Tokenizer([bytes([value]) for value in reversed(range(256))], SPLIT_PATTERN).save(tmp_path / "tokenizer")
    with pytest.raises(UserError, match="is no longer the tokenizer of first"):
        planning.plan_stage(settings, origins, tmp_path / "run", started_s=planning.time.monotonic())
