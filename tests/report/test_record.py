"""Reading a run folder: everything that is there, and a sentence for everything that is damaged."""

import pytest

from intone.errors import UserError
from intone.report.record import parameters_by_kind, read_record
from intone.runs import create_run


def test_a_run_is_read_whole(finished):
    record = read_record("latest")
    assert [(s.stage, s.state, len(s.steps), s.tokens) for s in record.stages] == [
        ("base", "done", 40, 12_800), ("sft", "done", 20, 6_400),
    ]  # fmt: skip
    base = record.stages[0]
    assert base.parameters == {"total": 1000, "matrices": 600, "tables": 300, "head": 90, "scalars": 10}
    assert base.choices.settings["dtype"].value == "bf16"
    assert (base.bpb["value"], base.samples[0]["prompt"], base.config["seed"]) == (1.5, "Hello <b>", 7)
    assert record.evaluation["starter"]["mean"] == 0.7
    assert record.problems == [] and not record.is_part


def test_one_stage_can_be_asked_for_by_name_and_by_path(finished):
    for reference in ("first_try/sft", str(finished.stage_folder("sft"))):
        record = read_record(reference)
        assert record.is_part and [stage.stage for stage in record.stages] == ["sft"]
    with pytest.raises(UserError, match="run first_try has no stage 'mid'") as error:
        read_record("first_try/mid")
    assert error.value.fix == "it has: base, sft"


def test_a_run_that_has_only_a_name_is_a_record_too(home):
    create_run({}, verb="run", stages=("base",), name="empty")
    record = read_record("empty")
    assert record.started == [] and record.problems == []
    assert record.stages[0].state == "planned"


@pytest.mark.parametrize(
    ("damaged", "content", "lost"),
    [
        ("base/log.jsonl", b'{"kind": "step"\n{"kind": "eval"}\n', "steps"),
        ("base/samples.jsonl", b"no json\nat all\n", "samples"),
        ("base/choices.json", b'{"format": 9}', "choices"),
        ("base/config.json", b"[1]", "config"),
        ("base/checkpoints/step_000040/model.safetensors", b"\xff" * 64, "parameters"),
    ],
)
def test_a_damaged_file_is_named_and_the_rest_is_there(finished, damaged, content, lost):
    path = finished.folder / damaged
    path.write_bytes(content)
    record = read_record("first_try")
    assert not getattr(record.stages[0], lost)
    assert getattr(record.stages[1], lost)
    [problem] = record.problems
    assert problem.startswith(f"{path.name} of {path.parent.name} could not be read: ")


def test_a_short_file_has_no_parameters(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"123")
    with pytest.raises(ValueError, match="has no header"):
        parameters_by_kind(path)
