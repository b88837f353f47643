"""What the page of a run says, in every state a run can be in."""

from dataclasses import replace

import pytest
from tests.report.conftest import JOB, write_stage

from intone.config import RolloutConfig
from intone.paths import append_line, read_lines, write_json
from intone.records import (
    Outcome,
    Rollouts,
    Segment,
    StepRow,
    log_row,
    read_choices,
    write_choices,
    write_outcome,
)
from intone.report.document import Commands, Figure, KeyFigures, Samples, Table
from intone.report.record import read_record
from intone.report.run_page import command_of, run_document
from intone.resolving import Layer, identity, resolve
from intone.runs import create_run, read_run, with_state
from intone.settings import RunSettings, TrainSettings


def page(reference="first_try"):
    return run_document(read_record(reference))


def blocks(document, anchor, kind):
    [section] = [section for section in document.sections if section.anchor == anchor]
    return [block for block in section.blocks if isinstance(block, kind)]


def test_a_finished_run_has_every_section_in_order(finished):
    document = page()
    assert [section.anchor for section in document.sections] == [
        "use", "skills", "learning", "speed", "time", "model", "decisions", "events",
    ]  # fmt: skip
    assert document.title == "first_try"
    assert document.subtitle == (
        "A language model of 1,000 parameters, depth 2, trained on starter, data made on the spot on Planted CPU."
    )
    assert document.footer.startswith("Started 20") and " with intone 0.1.0. " in document.footer


def test_the_numbers_to_take_away_come_first(finished):
    [figures] = page().lead
    assert isinstance(figures, KeyFigures)
    assert list(figures.entries) == [
        ("70.0%", "held-out skills right", "95% interval 64.0 to 75.0"),
        ("1.500", "bits per byte", "1.400 to 1.600, base on validation text"),
        ("1 min 0 s", "time", "3 min planned"),
        ("640", "tokens per second", "19.2k in all"),
        ("2 GiB", "peak memory", "all processes of the run"),
    ]


def test_it_says_how_to_talk_to_it_and_how_to_make_it_again(finished):
    [commands] = blocks(page(), "use", Commands)
    assert [line for line, _ in commands.lines] == [
        "intone chat --from first_try", "intone run --minutes 3.0", "intone run --like first_try",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("cls", "flags", "command"),
    [
        (RunSettings, {}, "intone run"),
        (RunSettings, {"data": ("my text", "b"), "keep": 3}, "intone run --data 'my text' b --keep 3"),
        (RunSettings, {"eval_every": None}, "intone run --eval-every none"),
        (RunSettings, {"deterministic": True, "seed": 3}, "intone run --seed 3 --deterministic"),
        (TrainSettings, {"stage": "sft", "from_run": "d4-1"}, "intone train sft --from d4-1"),
        (TrainSettings, {"stage": "base", "steps": 90}, "intone train base --steps 90"),
    ],
)
def test_the_command_has_what_differs_from_the_defaults(home, cls, flags, command):
    settings, _ = resolve(cls, [Layer("flag", "test", flags)])
    verb = "run" if cls is RunSettings else "train"
    assert command_of(create_run(identity(settings), verb=verb, stages=("base",), name="x")) == command


def test_skills_validation_samples_and_wrong_answers_are_shown(finished):
    document = page()
    [skills] = blocks(document, "skills", Figure)
    assert skills.numbers.rows[0] == ["facts", "90.0%", "85.0%", "93.0%", "200"]
    assert skills.numbers.rows[-1] == ["mean", "70.0%", "64.0%", "75.0%", ""]
    assert "200 questions per skill" in skills.caption
    [validation] = blocks(document, "skills", Table)
    assert validation.rows[1] == ["sft", "the assistant's answers", "1.500 [1.400, 1.600]", "5,000"]
    *samples, wrong = blocks(document, "skills", Samples)
    assert [block.folded for block in samples] == [False, True]
    assert samples[0].entries[0].answer == "world & *all*\nof it"
    assert (wrong.entries[0].label, wrong.entries[0].wanted, wrong.folded) == ("story", "In | town.", True)


def test_the_loss_is_drawn_for_every_stage_logarithmic_where_it_falls_far(finished):
    [loss] = blocks(page(), "learning", Figure)
    assert "loss in nats per token, logarithmic" in loss.svg  # from 4 down to 0.025
    assert loss.svg.count(">sft</text>") == 2  # once wide, once narrow
    assert "<title>base, step 1: loss 4.000</title>" in loss.svg
    assert loss.numbers.rows[0][:3] == ["base", "7", "2,240"]
    [alone] = blocks(page("first_try/sft"), "learning", Figure)
    assert "logarithmic" not in alone.svg  # 0.5 to 0.025
    assert ">sft</text>" not in alone.svg


def test_validation_is_a_curve_only_where_it_was_measured_more_than_once(finished):
    log = finished.stage_folder("base") / "log.jsonl"
    append_line(log, {"kind": "eval", "step": 20, "seconds": 1.0, "values": {"bpb": 1.75}})
    _, curve = blocks(page(), "learning", Figure)
    assert curve.title == "Validation while training"
    assert ["base", "20", "1.7500"] in curve.numbers.rows


def test_speed_is_told_without_the_slow_first_step_and_beside_the_machines_rate(finished):
    [table] = blocks(page(), "speed", Table)
    assert table.rows[0] == ["base", "learns text", "40", "12.8k", "640", "25.0%", "1.04 GiB", "0.100"]
    assert table.rows[1][5] == "unknown"
    assert [figure.title for figure in blocks(page(), "speed", Figure)] == ["Speed", "Memory"]


def test_the_time_has_a_part_that_is_not_explained(finished):
    [figure] = blocks(page(), "time", Figure)
    assert figure.numbers.rows[-2:] == [["not explained", "14 s", "23.3%"], ["together", "1 min 0 s", "100%"]]
    assert figure.caption.endswith(", 3 s of it inside the stages: starting workers, reading weights.")
    restart = {"kind": "event", "step": 40, "event": "restart", "message": ""}
    append_line(finished.stage_folder("base") / "log.jsonl", restart)
    assert blocks(page(), "time", Figure)[0].caption.endswith("reading weights, and steps that were lost in restarts.")


def test_every_decision_has_its_origin_its_reason_and_what_lost(finished):
    document = page()
    decided, defaults, variables = blocks(document, "decisions", Table)
    assert decided.rows == [
        ["minutes", "3", "flag", "--minutes", ""],
        ["device", "cpu", "default", "no GPU here", ""],
        ["dtype", "bf16", "measured", "1.6x as fast", "fp32: slower by 1.6x"],
    ]
    assert (defaults.rows, defaults.folded) == ([["keep", "2"]], True)
    assert variables.rows == [["OMP_NUM_THREADS", "2"]]
    model, recipe, machine = blocks(document, "model", Table)
    assert ["parameters", "1,000: 600 matrices, 300 tables, 90 head, 10 scalars"] in model.rows
    assert recipe.header == ["recipe", "base", "sft"]
    assert ["tokens per step", "320", "320"] in recipe.rows
    assert ["processor", "Planted CPU, 2 cores"] in machine.rows


def test_a_run_without_incidents_says_so_and_one_with_them_names_each(finished):
    document = page()
    [prose] = [block for block in document.sections[-1].blocks if not isinstance(block, Table)]
    assert prose.words == "No restart, no skipped step, no change of plan."
    folder = finished.stage_folder("sft")
    write_choices(folder, read_choices(folder).with_segment(
        Segment(9, device_batch=2, compiled=True, dtype="bf16", attention="sdpa", reason="memory ran out", threads=2)
    ))  # fmt: skip
    append_line(folder / "log.jsonl", {"kind": "event", "step": 9, "event": "restart", "message": "killed"})
    skipped = read_lines(folder / "log.jsonl")[0] | {"step": 21, "skipped": True, "loss": None}
    append_line(folder / "log.jsonl", skipped)
    write_outcome(folder, Outcome("disk_full", 20, "no space left"))
    happened, segments = blocks(page(), "events", Table)
    assert happened.rows == [
        ["sft", "9", "restart", "killed"],
        ["sft", "21", "skipped", "1 updates left out: 21"],
        ["sft", "20", "disk_full", "no space left"],
    ]
    assert segments.rows[-1] == ["sft", "9", "2 rows", "bf16", "yes", "sdpa, kernels torch", "2", "memory ran out"]


def test_an_unfinished_run_says_how_to_go_on(finished):
    with_state(read_run(finished.folder), "unfinished")
    (finished.folder / "eval" / "eval.json").unlink()
    document = page()
    assert document.subtitle.endswith(" on Planted CPU. It is not finished.")
    [commands] = blocks(document, "use", Commands)
    assert ("intone run --minutes 3.0 --name first_try", "goes on from the last save") in commands.lines
    assert document.lead[0].entries[0][1] == "bits per byte"
    assert "skills" in [section.anchor for section in document.sections]
    assert document.data["time"]["total_s"] == 61.0  # by the clock of the command, not by the result


def test_a_run_before_its_plan_is_a_page_too(home):
    create_run({}, verb="run", stages=("base", "sft"), name="empty")
    document = page("empty")
    assert document.subtitle == "A run that has not been planned yet. It is not finished."
    assert [section.anchor for section in document.sections] == ["use"]


def test_a_stage_that_learned_from_rewards_shows_right_answers_in_place_of_its_loss(home):
    settings, _ = resolve(TrainSettings, [Layer("flag", "test", {"stage": "rl", "from_run": "d4-1", "steps": 20})])
    folder = create_run(identity(settings), verb="train", stages=("rl",), name="rewarded").stage_folder("rl")
    write_stage(folder, "rl", steps=20)
    asked = RolloutConfig(prompts=4, samples=5, max_tokens=9, skills=("story",))
    write_json(folder / "config.json", replace(JOB, stage="rl", data=(), rollouts=asked).as_json())
    rows = [row for row in read_lines(folder / "log.jsonl") if row["kind"] != "step"]
    (folder / "log.jsonl").unlink()
    for step in range(1, 21):
        found = Rollouts(step / 20, step / 20, groups=4, even_groups=1, answers=20, tokens=99, cut=0, rollout_s=0.2)
        log_row(folder / "log.jsonl", StepRow(step, 99 * step, -0.1, 0.05, 0.5, 0.2, 198, 2**30, rollouts=found))
    for row in rows:
        append_line(folder / "log.jsonl", row)
    ends = {"low": 0.4, "high": 0.6}
    before, after = (
        {"mean": m, **ends, "skills": {"story": {"score": m, **ends, "num_items": 200}}} for m in (0.5, 0.6)
    )
    write_json(folder / "eval.json", {"format": 1, "step": 20, "answers": after, "before": before})
    document = page("rewarded")
    [figure] = [figure for figure in blocks(document, "learning", Figure) if "Right" in figure.title]
    assert "25% of the questions taught nothing" in figure.caption
    assert [figure.title for figure in blocks(document, "learning", Figure)] == ["Right answers while training"]
    [table] = [table for table in blocks(document, "skills", Table) if table.header[0] == "held-out questions"]
    assert list(table.rows[0]) == ["story", "50.0% [40.0, 60.0]", "60.0% [40.0, 60.0]", "200"]
    assert document.data["time"]["parts_s"]["rollouts"] == pytest.approx(4.0, abs=0.5)
    assert "data" not in document.data["time"]["parts_s"]


def test_a_damaged_file_is_named_at_the_top(finished):
    (finished.stage_folder("base") / "samples.jsonl").write_text("no\njson\n")
    assert page().lead[1].words.startswith("samples.jsonl of base could not be read: ")


def test_the_json_holds_what_the_page_shows(finished):
    data = page().data
    assert data["command"] == "intone run --minutes 3.0"
    assert data["time"]["not_explained_s"] == pytest.approx(14.0)
    base = data["stages"][0]
    assert base["curve"]["step"] == list(range(1, 41))
    assert base["choices"]["settings"]["dtype"]["beat"][0]["value"] == "fp32"
    assert data["starter"]["skills"]["facts"]["score"] == 0.9
