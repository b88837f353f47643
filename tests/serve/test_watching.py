import json
import os

import pytest
from tests.report.conftest import finished as finished

from intone.errors import UserError
from intone.paths import FolderLock, write_json
from intone.records import EvalRow, EventRow, Outcome, StepRow, log_row, write_outcome
from intone.runs import with_state
from intone.serve import watching
from intone.serve.watching import log_since, overview, run_view


def step(number, loss=1.0):
    return StepRow(number, 100 * number, loss, 1.0, 0.5, 0.0, 200.0, 2**20 * number)


def read_all(name, stage):
    """A log as a page reads it: piece by piece -> (steps, number of answers)."""
    file, offset, steps = "", 0, []
    for number in range(1, 1000):
        answer = log_since(name, stage, file=file, offset=offset)
        steps += answer["steps"]["step"]
        file, offset = answer["file"], answer["offset"]
        if not answer["more"]:
            return steps, number
    raise AssertionError("it never ends")


def test_a_log_is_read_from_where_the_last_answer_ended(finished):
    log = finished.stage_folder("base") / "log.jsonl"
    first = log_since("first_try", "base")
    assert first["is_new"] and not first["more"] and first["steps"]["step"] == [*range(1, 41)]
    assert first["evals"] == [{"step": 40, "values": {"bpb": 1.5}}] and first["events"] == [], "saves are no news"
    again = log_since("first_try", "base", file=first["file"], offset=first["offset"])
    assert not again["is_new"] and again["steps"]["step"] == [] and again["offset"] == first["offset"]
    log_row(log, step(41))
    with open(log, "a") as file:
        file.write('{"kind": "step", "st')  # a row that is being written
    grown = log_since("first_try", "base", file=first["file"], offset=first["offset"])
    assert grown["steps"]["step"] == [41] and grown["damaged"] == 0
    with open(log, "a") as file:
        file.write("no row\n")
    log_row(log, EventRow(41, "restart", "killed"))
    news = log_since("first_try", "base", file=first["file"], offset=grown["offset"])
    assert news["damaged"] == 1 and news["events"] == [{"step": 41, "event": "restart", "message": "killed"}]


def test_a_log_that_was_cut_by_a_resumed_run_begins_anew(finished):
    log = finished.stage_folder("base") / "log.jsonl"
    first = log_since("first_try", "base")
    rows = log.read_text().splitlines(keepends=True)[:20]
    other = log.with_suffix(".other")
    other.write_text("".join(rows) * 3)  # longer than before: only the file's identity tells
    os.replace(other, log)
    cut = log_since("first_try", "base", file=first["file"], offset=first["offset"])
    assert cut["is_new"] and cut["steps"]["step"][:20] == [*range(1, 21)]
    gone = log_since("first_try", "sft", file="1", offset=5)
    assert gone["is_new"]


def test_a_long_log_comes_in_pieces_of_few_points_that_hold_every_step(finished, monkeypatch):
    log = finished.stage_folder("sft") / "log.jsonl"
    log.write_text("")
    with open(log, "a") as file:
        for number in range(1, 2001):
            row = {"kind": "step", **step(number, loss=number / 1000).__dict__}
            file.write(json.dumps(row) + "\n")
    answer = log_since("first_try", "sft")
    assert len(answer["steps"]["step"]) == 300 and answer["steps"]["step"][-1] == 2000
    assert answer["steps"]["tokens_per_s"] == [200.0] * 300
    monkeypatch.setattr(watching, "PIECE_BYTES", 10_000)
    steps, num_answers = read_all("first_try", "sft")
    assert steps == [*range(1, 2001)] and num_answers > 20, "small pieces are not thinned, and none is lost"


def test_a_run_at_work_is_live_and_looking_does_not_take_its_lock(finished):
    run = with_state(finished, "unfinished")
    (run.stage_folder("sft") / "outcome.json").unlink()
    (run.stage_folder("sft") / "log.jsonl").unlink()
    for number in range(1, 11):
        log_row(run.stage_folder("sft") / "log.jsonl", step(number))
    assert not overview()["runs"][0]["is_live"]
    with FolderLock(run.folder / "lock"):
        entry = overview()["runs"][0]
    assert entry["is_live"] and (entry["stage"], entry["step"], entry["steps"], entry["left_s"]) == ("sft", 10, 20, 5.0)
    FolderLock(run.folder / "lock").close()


def test_the_view_of_a_run_changes_its_version_with_files_but_not_with_the_log(finished):
    before = overview()["runs"][0]["version"]
    log_row(finished.stage_folder("sft") / "log.jsonl", EvalRow(20, 1.0, {"bpb": 1.0}))
    assert overview()["runs"][0]["version"] == before
    write_json(finished.stage_folder("sft") / "checkpoints" / "step_000020" / "manifest.json", {})
    write_outcome(finished.stage_folder("sft"), Outcome("killed", 3, "by somebody", "start it again"))
    assert overview()["runs"][0]["version"] != before
    view = run_view("first_try")
    sft = view["train"][1]
    assert (sft["state"], sft["outcome"]) == ("killed", {"message": "by somebody", "fix": "start it again"})
    assert sft["newest_save"] == 20 and view["samples"][0]["said"] == [
        {"prompt": "Hello <b>", "text": "world & *all*\nof it"}
    ]
    assert view["decided"][2] == {
        "name": "dtype", "value": "bf16", "origin": "measured", "reason": "1.6x as fast",
        "beat": [{"value": "fp32", "why": "slower by 1.6x"}],
    }  # fmt: skip
    assert [entry["name"] for entry in view["defaults"]] == ["keep"]


def test_only_runs_by_their_name_are_shown_and_damaged_ones_are_named(finished, tmp_path):
    for name in ("..", "latest", "first_try/base", str(finished.folder), "nothing"):
        with pytest.raises(UserError, match="there is no run"):
            run_view(name)
    with pytest.raises(UserError, match="has no stage 'rl'\n  fix: it has: base, sft"):
        log_since("first_try", "rl")
    with pytest.raises(UserError, match="offset is -1"):
        log_since("first_try", "base", offset=-1)
    write_json(finished.folder.parent / "odd" / "run.json", {"format": 99})
    seen = overview()
    assert [run["name"] for run in seen["runs"]] == ["first_try"] and "has format 99" in seen["not_readable"][0]
