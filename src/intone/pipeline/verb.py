"""`intone run` and `intone train` from beginning to end: claim a run, plan it once, do its stages, say what came out"""

import time
from collections.abc import Mapping
from typing import Any

from intone.peak import CostWatch
from intone.pipeline.claim import claimed_run
from intone.pipeline.horizon import open_horizon
from intone.pipeline.plan_files import move, plan_once
from intone.pipeline.result import (
    answers_lines,
    collect_result,
    run_text,
    stage_answers,
    stage_bpb,
    stage_summary,
    stages_table,
    write_page,
)
from intone.pipeline.stages import StageFailed, failed_answer, run_evaluation, run_stage, start_command
from intone.planning import plan_run, plan_stage
from intone.planning_rl import plan_rl
from intone.records import Answer
from intone.resolving import Resolved
from intone.runs import with_state
from intone.settings import RunSettings, TrainSettings

STAGES = ("base", "mid", "sft")
SPENT = "spent.json"  # what the run cost so far


def run_pipeline(settings: RunSettings, origins: Mapping[str, Resolved]) -> Answer:
    """Text -> tokenizer -> base -> mid -> SFT -> evaluation, or what is left of it. Raises UserError."""
    started_s = time.monotonic()
    with claimed_run("run", settings, origins, STAGES) as run, CostWatch(run.folder / SPENT) as cost:
        with cost.phase("planning"):
            plan_once(run, settings.like, lambda: plan_run(settings, origins, run.folder, started_s=started_s))
            move(run, origins)
        horizon = open_horizon(run, settings, lambda: cost.seconds)
        try:
            for stage in run.stages:
                if run.stage_state(stage) != "done":
                    with cost.phase(stage):
                        run_stage(run, stage, horizon)
            with cost.phase("evaluation"):
                run_evaluation(run)
        except StageFailed as failure:
            return failed_answer(run, failure)
        result = collect_result(run, seconds=cost.seconds, peak_bytes=cost.peak_bytes)
        run = with_state(run, "done", result=result)
        cost.keep()
        page = write_page(run)
        return Answer(result, run_text(run, result, page), run=run.name, path=str(run.folder))


def run_train(settings: TrainSettings, origins: Mapping[str, Resolved]) -> Answer:
    """One stage by itself: `intone train base|mid|sft|rl`. With prepare it only writes the job folder."""
    started_s = time.monotonic()
    make_plan = plan_rl if settings.stage == "rl" else plan_stage
    with claimed_run("train", settings, origins, (settings.stage,)) as run, CostWatch(run.folder / SPENT) as cost:
        with cost.phase("planning"):
            plan_once(run, settings.like, lambda: make_plan(settings, origins, run.folder, started_s=started_s))
            move(run, origins)
        folder = run.stage_folder(settings.stage)
        if settings.prepare:
            text = f"the job is in {folder}\nnext: {start_command(folder)}"
            return Answer({"folder": str(folder)}, text, run=run.name, path=str(run.folder))
        horizon = open_horizon(run, settings, lambda: cost.seconds)
        try:
            if run.stage_state(settings.stage) != "done":
                with cost.phase(settings.stage):
                    run_stage(run, settings.stage, horizon)
        except StageFailed as failure:
            return failed_answer(run, failure)
        result: dict[str, Any] = {
            "minutes": cost.seconds / 60,
            "peak_bytes": cost.peak_bytes,
            "bpb": stage_bpb(run, settings.stage),
            "stages": [stage_summary(run, settings.stage)],
        }
        answers = stage_answers(run, settings.stage)
        result |= {} if answers is None else {"answers": answers}
        run = with_state(run, "done", result=result)
        lines = [stages_table(result), *([] if answers is None else answers_lines(answers)), ""]
        text = "\n".join(lines) + f"next: intone chat --from {run.name}"
        return Answer(result, text, run=run.name, path=str(run.folder))
