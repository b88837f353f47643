"""Settings: every one has a help and a flag of its own, and those that contradict each other are refused."""

import dataclasses

import pytest

from intone import settings as module
from intone.errors import UserError
from intone.fields import Checked, flag_of, help_of
from intone.resolving import named_fields
from intone.settings import RunSettings, TrainSettings

CLASSES = [value for value in vars(module).values() if isinstance(value, type) and issubclass(value, Checked)]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_setting_has_a_help_that_fits_a_line(cls):
    assert {name for name, text in help_of(cls).items() if not 8 <= len(text) <= 100} == set()


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_settings_class_is_frozen_and_its_defaults_pass_its_own_checks(cls):
    assert cls.__dataclass_params__.frozen
    required = {name: entry for name, entry in named_fields(cls).items() if entry.default is dataclasses.MISSING}
    # the first word of a choice, or one text
    first = {name: getattr(entry.type, "__args__", ("x",))[0] for name, entry in required.items()}
    if cls.__name__ == "TuneSettings":
        first["stage"] = "base"  # needed where --facts is not asked for
    cls(**{name: ("x",) if name == "data" else value for name, value in first.items()})


@pytest.mark.parametrize(
    ("make", "message", "fix"),
    [
        (
            lambda: RunSettings(batch_tokens=3000),
            "batch_tokens 3,000 is not a power of two",
            "use --batch-tokens 2048 or 4096",
        ),
        (
            lambda: TrainSettings(stage="base", sft=("talk.jsonl",)),
            "--sft is for train mid; train base has one kind of data",
            "give it to --data of intone train mid or sft",
        ),
        (
            lambda: TrainSettings(stage="sft"),
            "train sft needs a run to start from",
            "add --from RUN; `intone runs` lists them",
        ),
        (
            lambda: TrainSettings(stage="sft", from_run="d4-1", samples=4),
            "--samples is for train rl, not for train sft",
            "leave it out",
        ),
        (
            lambda: TrainSettings(stage="rl"),
            "train rl needs a run to start from",
            "add --from RUN; `intone runs` lists them",
        ),
        (
            lambda: TrainSettings(stage="rl", from_run="d4-1", skills=("story",), data=("sums.jsonl",)),
            "--skills are the starter's, and --data names other questions",
            "keep one of --skills and --data",
        ),
        (
            lambda: TrainSettings(stage="rl", from_run="d4-1", skills=("story", "story")),
            "a skill is named twice",
            "name each once",
        ),
        (
            lambda: TrainSettings(stage="rl", from_run="d4-1", skills=("storys",)),
            "skills ('storys',) is not a list, each one of identity, smalltalk, arithmetic, spelling, counting, "
            "sorting, reversing, dates, units, facts, story",
            None,
        ),
        (
            lambda: TrainSettings(stage="rl", from_run="d4-1", samples=1),
            "samples is 1, it must be at least 2",
            "use 2 or more",
        ),
        (
            lambda: TrainSettings(stage="rl", from_run="d4-1", batch_tokens=2048),
            "--batch-tokens is not for train rl",
            "use --prompts and --samples: a step has as many tokens as their answers",
        ),
        (
            lambda: TrainSettings(stage="rl", from_run="d4-1", compile="on"),
            "train rl is not compiled",
            "leave it out: every step has another number of rows, and would be compiled anew",
        ),
        (
            lambda: TrainSettings(stage="rl", from_run="d4-1", devices=2),
            "train rl runs in one process",
            "use --devices 1, or leave it out",
        ),
        (
            lambda: TrainSettings(stage="base", steps=1000, minutes=2),
            "both steps 1,000 and minutes 2 are given",
            "keep one of --steps and --minutes",
        ),
    ],
)
def test_settings_that_contradict_each_other_say_what_to_do(make, message, fix):
    with pytest.raises(UserError) as caught:
        make()
    assert (caught.value.message, caught.value.fix) == (message, fix)


def test_no_two_flags_of_a_verb_collide():
    for cls in CLASSES:
        flags = [flag_of(entry) for entry in dataclasses.fields(cls)]
        assert len(set(flags)) == len(flags)
