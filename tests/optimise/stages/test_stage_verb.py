"""`intone optimise STAGE` from the command line: what is refused, what goes on, and what the preset is good for."""

import json

import pytest
from tests.optimise.stages.rewarded import rewarded_job

import intone
from intone import cli
from intone.errors import UserError
from intone.optimise import verb
from intone.optimise.settings import OptimiseSettings
from intone.optimise.stages import verb as stage_verb
from intone.optimise.stages.target import Target
from intone.optimise.stages.verb import command_of, make_target, opened
from intone.paths import write_json
from intone.planning import Plan
from intone.records import read_choices, write_choices
from intone.resolving import Layer, resolve


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("optimise", "nothing was named"),
        ("optimise base -- python3 train.py", "both base and a program"),
        ("optimise --device-batch 8 -- python3 train.py", "--device-batch says nothing about a program"),
        ("optimise base --apply", "--apply says nothing about the stage base"),
        ("optimise sft", "optimise sft needs a run"),
        ("optimise pipeline", "optimise pipeline needs a run"),
        ("optimise pipeline --like a --against HEAD", "one stage at a time"),
        ("optimise bass", "base"),
        ("optimise rl", "add --like RUN of an intone train rl (--prepare is enough), or --from RUN"),
        ("optimise base --num-slots 4", "--num-slots is for train rl, not for train base"),
        ("optimise base --against", "needs"),
        ("optimise base --rows 3", "--rows says nothing about the stage base"),
        ("optimise infer --depth 4", "--depth says nothing about the stage infer"),
        ("optimise sft --like a --depth 4", "--depth says nothing beside --like"),
        ("optimise base --id x", "--id names the round that --undo takes back"),
        ("optimise base --analyse-only --minutes 3", "--minutes says nothing beside --analyse-only"),
        ("optimise base --against HEAD --new", "--new says nothing beside --against"),
        ("optimise base --undo", "STAGE says nothing beside --undo"),
        ("optimise --undo -- python3 train.py", "not a program"),
    ],
)
def test_what_makes_no_sense_is_refused_in_words(home, capsys, words, message):
    assert cli.main(words.split()) == 2
    assert message in capsys.readouterr().err


def settings_of(**given):
    return resolve(OptimiseSettings, [Layer("flag", "test", given)])


@pytest.fixture
def here(home, monkeypatch, facts):
    for module in (stage_verb, verb):
        monkeypatch.setattr(module, "load_facts", lambda: facts, raising=False)


def test_a_stage_is_looked_at_as_its_run_settled_it(here, start_folder, tmp_path):
    (tmp_path / "jobs").mkdir()
    like = str(start_folder / "train")
    target = make_target(*settings_of(stage="sft", like=like), tmp_path / "jobs")
    assert target.parts == ("train",) and target.job().stage == "sft"
    assert target.choices({}).segments[0].device_batch == 4


def test_a_run_of_another_stage_is_refused_with_what_makes_one(here, start_folder, tmp_path):
    like = str(start_folder / "train")
    with pytest.raises(UserError, match="is a stage sft, not rl") as refused:
        make_target(*settings_of(stage="rl", like=like), tmp_path / "jobs")
    assert "intone train rl --from RUN, with --prepare" in refused.value.fix


def test_a_stage_that_learns_from_its_answers_is_one_part(here, tiny_job, tmp_path):
    (tmp_path / "rl").mkdir()
    rewarded_job(tmp_path / "rl", tiny_job, num_slots=3)
    (tmp_path / "jobs").mkdir()
    target = make_target(*settings_of(stage="rl", like=str(tmp_path / "rl")), tmp_path / "jobs")
    assert target.parts == ("train",) and target.writes and target.block_command == {"restart": True}
    assert target.choices({}).segments[0].num_slots == 3


def test_a_run_whose_number_of_steps_changed_is_still_looked_at_in_few(here, start, start_folder, tmp_path):
    run = start.write("train", {}, tmp_path / "run")
    write_choices(run, read_choices(run).with_steps(40, 90, 1000, "90 fit into the minutes"))
    (tmp_path / "jobs").mkdir()
    target = make_target(*settings_of(stage="sft", like=str(run)), tmp_path / "jobs")
    folder = target.write("train", {}, tmp_path / "trial", steps=7)
    assert read_choices(folder).num_steps(7) == 7


def test_a_stage_is_planned_as_intone_train_would_plan_it(here, start, tmp_path, monkeypatch):
    asked = []

    def planned(settings, origins, folder, *, started_s):
        asked.append((settings, origins))
        return Plan({"base": (start.job(), start.choices({}))}, None, {})

    monkeypatch.setattr(stage_verb, "plan_stage", planned)
    about = dict(depth=2, device_batch=4, compile="off", minutes=3.0, quick=True)
    target = make_target(*settings_of(stage="base", **about), tmp_path / "jobs")
    ((settings, origins),) = asked
    assert (settings.stage, settings.depth, settings.device_batch, settings.compile) == ("base", 2, 4, "off")
    # the minutes are those of the round, and a few steps give text enough
    assert settings.minutes == "auto" and settings.steps == 50 and origins["depth"].origin == "flag"
    assert target.parts == ("train",)


def test_a_generation_is_made_of_a_runs_model(here, start_folder, tmp_path, tiny_job):
    stage = start_folder / "weights"
    write_json(stage / "config.json", {"tokenizer": tiny_job.tokenizer, "model": {"context": 1024}})
    about = dict(rows=3, prompt_tokens=5, new_tokens=6, threads=1, num_slots=2)
    asked = settings_of(stage="infer", from_run=str(stage), **about)
    target = make_target(*asked, tmp_path / "jobs")
    config = target.generation({})
    assert [len(prompt) for prompt in config["prompts"]] == [5, 5, 5]
    assert config["sampling"]["max_tokens"] == 6 and config["engine"] == {"num_slots": 2} and config["threads"] == 1
    assert target.parts == ("generate",)


def test_a_second_call_goes_on_with_an_unfinished_round_of_the_same_settings(here, start_folder):
    like = str(start_folder / "train")
    first = opened(*settings_of(stage="sft", like=like))
    assert opened(*settings_of(stage="sft", like=like, minutes=3.0)).folder == first.folder
    assert opened(*settings_of(stage="sft", like=like, quick=True)).folder != first.folder
    first.ledger.note("end")
    assert opened(*settings_of(stage="sft", like=like)).folder != first.folder
    assert isinstance(first.target, Target) and (first.folder / "jobs" / "train" / "choices.json").exists()


def test_the_command_of_a_report_repeats_what_was_asked():
    words = command_of(settings_of(stage="sft", like="d4-1", quick=True, rows=3)[0])
    assert words == ["sft", "--quick", "--like", "d4-1", "--rows", "3"]


def test_undo_removes_the_preset_and_says_so(here, start_folder, capsys):
    round_ = opened(*settings_of(stage="sft", like=str(start_folder / "train")))
    write_json(round_.folder / "preset.json", {"format": 1, "settings": {"device_batch": 8}, "beside": {}})
    assert cli.main(["optimise", "--undo"]) == 0
    assert not (round_.folder / "preset.json").exists() and "computed as before" in capsys.readouterr().out


# --- the preset -----------------------------------------------------------------------------------------------------


def test_what_was_kept_is_a_layer_below_the_flags(home, tmp_path, capsys):
    path = tmp_path / "preset.json"
    write_json(path, {"format": 1, "settings": {"device_batch": 16, "kernels": "native"}, "beside": {}})
    words = ["train", "base", "--settings", str(path), "--kernels", "torch", "--show"]
    assert cli.main(words) == 0
    shown = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    rows = {name: line for name, line in shown.items() if name in ("device_batch", "kernels")}
    assert "16" in rows["device_batch"] and str(path) in rows["device_batch"]
    assert "torch" in rows["kernels"] and "--kernels" in rows["kernels"]


def test_a_file_beside_like_is_refused_since_both_bring_settings(home, tmp_path, capsys):
    path = tmp_path / "preset.json"
    write_json(path, {"format": 1, "settings": {}, "beside": {}})
    assert cli.main(["train", "base", "--settings", str(path), "--like", "d4-1"]) == 2
    assert "--like brings its own settings" in capsys.readouterr().err


def test_python_takes_the_file_too(home, tmp_path):
    path = tmp_path / "preset.json"
    write_json(path, {"format": 1, "settings": {"device_bach": 16}, "beside": {}})
    with pytest.raises(UserError, match="device_bach"):
        intone.train("base", settings=str(path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"format": 1, "settings": {"device_bach": 8}}, "device_batch"),
        ({"format": 1, "settings": {"device_batch": 0}}, "at least 1"),
        ({"format": 1}, "holds no settings"),
        ({"format": 2, "settings": {}}, "format 2"),
    ],
)
def test_a_file_of_settings_that_cannot_be_is_refused(home, tmp_path, capsys, content, message):
    path = tmp_path / "preset.json"
    path.write_text(json.dumps(content))
    assert cli.main(["train", "base", "--settings", str(path), "--show"]) == 2
    assert message in capsys.readouterr().err
