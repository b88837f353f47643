"""Records on disk: what is written is read back, what is unknown raises."""

import dataclasses
import json

import pytest

from intone.errors import Damaged, UserError
from intone.paths import append_line, read_json, write_json
from intone.records import (
    Choice,
    Choices,
    EvalRow,
    EventRow,
    Outcome,
    ResultRow,
    SampleRow,
    Segment,
    StepRow,
    append_result,
    choice,
    cut_log,
    log_row,
    read_choices,
    read_log,
    read_outcome,
    read_results,
    utc_now,
    write_choices,
    write_outcome,
)
from intone.resolving import Resolved

FIRST = Segment(0, device_batch=11, compiled=False, dtype="fp32", attention="sdpa", reason="compile is under way")
CHOICES = Choices(
    settings={
        "threads": Choice(
            2, "fastest of 1, 2", "measured", beat=({"value": 1, "why": "0.6x"},), measured={"step_s": 0.2}
        ),
        "depth": choice(Resolved(3, "flag", "--depth")),
    },
    segments=(FIRST, dataclasses.replace(FIRST, from_step=40, compiled=True, trials=("t1",))),
    fallbacks={"device_batch": (11, 8, 6, 4)},
    environment={"OMP_NUM_THREADS": "2"},
)


def step_row(step: int, loss: float | None = 2.5) -> StepRow:
    return StepRow(step, 4096 * step, loss, 1.0, 0.31, 0.001, 13_000.0, 2**30, loss is None)


def test_steps_planned_anew_count_from_their_step_on_and_for_all_later_segments(tmp_path):
    assert CHOICES.horizons(90) == [(0, 90), (40, 90)] and CHOICES.num_steps(90) == 90
    longer = CHOICES.with_steps(20, 120, 90, "faster").with_steps(60, 70, 120, "slower")
    assert longer.horizons(1) == [(0, 90), (20, 120), (40, 120), (60, 70)]
    assert [segment.compiled for segment in longer.segments] == [False, False, True, True]
    assert [segment.reason for segment in longer.segments[1::2]] == ["faster", "slower"]
    write_choices(tmp_path, longer)
    assert read_choices(tmp_path) == longer and longer.num_steps(1) == 70


def test_an_outcome_is_read_as_written_and_is_none_before_the_end(tmp_path):
    assert read_outcome(tmp_path) is None
    write_outcome(tmp_path, Outcome("out_of_memory", 17, "no room for 3 GiB", "use a smaller --depth"))
    assert read_outcome(tmp_path) == Outcome("out_of_memory", 17, "no room for 3 GiB", "use a smaller --depth")
    assert read_json(tmp_path / "outcome.json") == {
        "format": 1,
        "outcome": "out_of_memory",
        "step": 17,
        "message": "no room for 3 GiB",
        "fix": "use a smaller --depth",
    }


def test_an_outcome_that_is_none_of_the_known_words_raises():
    with pytest.raises(UserError, match="did you mean 'done'?"):
        Outcome("dome")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"format": 2, "outcome": "done"}, "has format 2, this version reads 1"),
        ({"outcome": "done"}, "has format None"),
        ({"format": 1, "outcome": "done", "stepp": 3}, "unknown key 'stepp'"),
        ({"format": 1, "step": 3}, "key 'outcome' is missing"),
        (["done"], "has format None"),
    ],
)
def test_a_file_of_another_format_or_with_other_keys_is_refused(tmp_path, content, message):
    write_json(tmp_path / "outcome.json", content)
    with pytest.raises(Damaged, match=message):
        read_outcome(tmp_path)


def test_choices_are_read_as_written(tmp_path):
    write_choices(tmp_path, CHOICES)
    assert read_choices(tmp_path) == CHOICES
    content = read_json(tmp_path / "choices.json")
    assert content["format"] == 1
    assert content["settings"]["depth"] == {
        "value": 3, "reason": "--depth", "origin": "flag", "beat": [], "measured": None,
    }  # fmt: skip
    assert content["segments"][1]["from_step"] == 40


def test_choices_with_an_unknown_key_anywhere_are_refused(tmp_path):
    write_choices(tmp_path, CHOICES)
    for place in ([], ["settings", "depth"], ["segments", 0]):
        content = read_json(tmp_path / "choices.json")
        inner = content
        for key in place:
            inner = inner[key]
        inner["device_bach"] = 3
        (tmp_path / "changed").mkdir(exist_ok=True)
        write_json(tmp_path / "changed" / "choices.json", content)
        with pytest.raises(Damaged, match="device_bach"):
            read_choices(tmp_path / "changed")


def test_choices_without_segments_are_refused(tmp_path):
    write_json(tmp_path / "choices.json", {"format": 1, "settings": {}})
    with pytest.raises(Damaged, match="the first must be 0"):
        read_choices(tmp_path)


def test_a_step_is_computed_by_the_last_segment_that_has_begun():
    assert [CHOICES.segment_at(step).compiled for step in (0, 39, 40, 1000)] == [False, False, True, True]
    smaller = CHOICES.with_segment(dataclasses.replace(FIRST, from_step=40, device_batch=8))
    assert smaller.segment_at(40).device_batch == 8
    assert smaller.segment_at(39).device_batch == 11


def test_segments_only_go_forward_and_begin_at_zero():
    with pytest.raises(Damaged, match="none may go back"):
        CHOICES.with_segment(dataclasses.replace(FIRST, from_step=39))
    with pytest.raises(Damaged, match="the first must be 0"):
        Choices({}, (dataclasses.replace(FIRST, from_step=1),))


def test_the_next_fall_back_is_the_entry_after_the_current_one():
    assert CHOICES.next_fallback("device_batch", 11) == 8
    assert CHOICES.next_fallback("device_batch", 4) is None
    assert CHOICES.next_fallback("device_batch", 7) is None
    assert CHOICES.next_fallback("context", 64) is None


def test_log_rows_carry_their_kind_and_can_be_read_by_kind(tmp_path):
    path = tmp_path / "log.jsonl"
    rows = [
        step_row(1),
        EvalRow(1, 0.5, {"bpb": 1.9}),
        SampleRow(1, "Once", "Once more"),
        EventRow(1, "save", "step 1"),
    ]
    for row in rows:
        log_row(path, row)
    assert [row["kind"] for row in read_log(path)] == ["step", "eval", "sample", "event"]
    as_logged = {name: value for name, value in dataclasses.asdict(step_row(1)).items() if name != "rollouts"}
    assert read_log(path, "step") == [{"kind": "step", **as_logged}], "only a reinforcement stage has rollouts"
    append_line(path, {"kind": "stap", "step": 2})
    with pytest.raises(Damaged, match="kind 'stap'"):
        read_log(path)


def test_after_a_resume_every_step_has_one_row(tmp_path):
    path = tmp_path / "log.jsonl"
    for step in range(1, 8):
        log_row(path, step_row(step))
    log_row(path, EvalRow(7, 0.5, {"bpb": 1.9}))
    with open(path, "ab") as file:
        file.write(b'{"kind": "step", "st')
    assert cut_log(path, 5) == 3
    for step in (6, 7):
        log_row(path, step_row(step, None))
    assert [row["step"] for row in read_log(path)] == [1, 2, 3, 4, 5, 6, 7]
    assert [row["loss"] for row in read_log(path)][-2:] == [None, None]


def test_cutting_a_log_that_needs_no_cut_does_not_touch_it(tmp_path):
    path = tmp_path / "log.jsonl"
    assert cut_log(path, 3) == 0
    assert not path.exists()
    log_row(path, step_row(1))
    before = path.stat()
    assert cut_log(path, 1) == 0
    assert path.stat().st_ino == before.st_ino


def test_a_loss_that_is_not_a_number_cannot_be_logged(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        log_row(tmp_path / "log.jsonl", step_row(1, float("nan")))


ROW = {
    "id": "cpu.cli.help_s", "value": 0.05, "unit": "s", "low": 0.04, "high": 0.06, "n": 7, "baseline": None,
    "machine": {"cores": 2}, "command": "python -m x", "code": "abc123", "date": "2026-01-31T12:00:00+00:00",
}  # fmt: skip


def test_a_measured_row_is_read_as_written(tmp_path):
    path = tmp_path / "results" / "cpu.jsonl"
    append_result(path, ResultRow(**ROW))
    append_result(path, ResultRow(**{**ROW, "low": None, "high": None, "date": utc_now()}))
    assert read_results(path)[0] == ResultRow(**ROW)
    assert [json.loads(line)["id"] for line in path.read_text().splitlines()] == ["cpu.cli.help_s"] * 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"value": "0.05"}, "value '0.05' is not a finite number"),
        ({"value": True}, "value True is not a finite number"),
        ({"high": float("inf")}, "high inf is not a finite number"),
        ({"low": 0.055}, "value 0.05 is outside its interval"),
        ({"command": ""}, "command is empty"),
        ({"n": 0}, "n is 0"),
        ({"date": "2026-01-31"}, "is not ISO 8601 in UTC"),
        ({"date": "2026-01-31T12:00:00+02:00"}, "is not ISO 8601 in UTC"),
        ({"date": "yesterday"}, "is not ISO 8601 in UTC"),
    ],
)
def test_a_row_that_could_not_be_counted_is_refused(change, message):
    with pytest.raises(UserError, match=message):
        ResultRow(**{**ROW, **change})
