"""Where each value of a setting came from, which names exist, and when two runs are the same run."""

import json

import pytest

from intone.errors import UserError
from intone.resolving import (
    Layer,
    Resolved,
    as_json,
    identity,
    inherited,
    named_fields,
    preset_rows,
    resolve,
    show_table,
)
from intone.settings import RunSettings, TrainSettings


def test_a_later_layer_wins_and_leaves_its_origin_and_reason():
    settings, origins = resolve(
        RunSettings,
        [
            Layer("preset", "architecture classic", {"context": 128, "depth": 3, "seed": 7}),
            Layer("from", "run d3-1", {"depth": 5, "seed": 8}),
            Layer("flag", "--seed", {"seed": 9}),
        ],
    )
    assert (settings.context, settings.depth, settings.seed) == (128, 5, 9)
    assert origins["context"] == Resolved(128, "preset", "architecture classic")
    assert origins["depth"] == Resolved(5, "from", "run d3-1")
    assert origins["seed"] == Resolved(9, "flag", "--seed")
    assert origins["keep"] == Resolved(2, "default", "default")
    assert origins["minutes"].origin == "default"
    assert list(origins) == list(named_fields(RunSettings))


def test_an_unknown_setting_raises_with_the_nearest_name():
    with pytest.raises(UserError) as caught:
        resolve(RunSettings, [Layer("from", "run.json", {"dept": 4})])
    assert str(caught.value) == "unknown setting 'dept'\n  fix: did you mean 'depth'?"


def test_a_value_of_the_wrong_kind_raises_wherever_it_comes_from():
    with pytest.raises(UserError, match="depth '4' is not a whole number or auto"):
        resolve(RunSettings, [Layer("from", "run.json", {"depth": "4"})])
    with pytest.raises(UserError, match="depth '4' is not a whole number or auto"):
        RunSettings(depth="4")


def test_a_required_setting_that_no_layer_gives_is_named():
    with pytest.raises(UserError, match="stage is missing\n  fix: give one of base, mid, sft"):
        resolve(TrainSettings, [])


def test_settings_survive_json():
    settings = RunSettings(data=("a.txt", "b.txt"), depth=3, eval_every=None, minutes=0.5)
    values = json.loads(json.dumps(as_json(settings)))
    assert resolve(RunSettings, [Layer("from", "run.json", values)])[0] == settings


def test_two_runs_that_differ_only_in_name_or_output_are_the_same_run():
    assert identity(RunSettings(name="a", new=True, json=True)) == identity(RunSettings())
    assert identity(RunSettings(seed=1)) != identity(RunSettings(seed=2))


def test_the_same_file_named_from_two_folders_is_the_same_data(tmp_path, monkeypatch):
    (tmp_path / "text.txt").write_text("x")
    monkeypatch.chdir(tmp_path)
    assert identity(RunSettings(data=("text.txt",))) == identity(RunSettings(data=(str(tmp_path / "text.txt"),)))
    (tmp_path / "starter").mkdir()
    assert identity(RunSettings())["data"] == ["starter"]


def test_from_hands_on_the_model_and_not_the_data_or_the_machine():
    values = as_json(RunSettings(depth=5, context=96, data=("x",), device_batch=3, minutes=2))
    handed = inherited(TrainSettings, values)
    assert handed["depth"] == 5
    assert handed["context"] == 96
    assert set(handed) == {"depth", "context", "vocab_size", "preset", "seed"}


def test_the_presets_differ_in_their_architecture_alone():
    modern, classic = preset_rows("modern"), preset_rows("classic")
    assert set(modern) == set(classic)
    assert (modern["smear"].value, classic["smear"].value) == (True, False)
    assert "depth" not in modern
    assert modern["smear"].origin == "preset"


def test_the_table_of_settings_has_name_value_origin_and_reason():
    rows = {"depth": Resolved(5, "flag", "--depth"), "val": Resolved((), "default", "default")}
    assert show_table(rows, {}) == (
        "setting  value  origin   reason\ndepth    5      flag     --depth\nval      none   default"
    )


def test_the_table_of_settings_says_what_an_auto_will_likely_be():
    rows = {"depth": Resolved("auto", "default", "later"), "minutes": Resolved(5.0, "flag", "--minutes")}
    assert show_table(rows, {"depth": 4, "minutes": 5.0}).splitlines()[1:] == [
        "depth    auto: 4  default  later", "minutes  5.0      flag     --minutes"
    ]  # fmt: skip
    assert "auto  " in show_table(rows, {"depth": {"value": 4}})
