"""`intone optimise`: a round on a stage of ours or on a program, its tables, and where the report is"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from intone.errors import UserError
from intone.fields import flag_of
from intone.log import human_duration, table
from intone.optimise.against import against_program
from intone.optimise.detect.catalogue import DETECTORS
from intone.optimise.detect.finding import Bottleneck
from intone.optimise.items import Plan
from intone.optimise.ledger import Try
from intone.optimise.program import check_program
from intone.optimise.report import expected_words, write_round_report
from intone.optimise.round import Round
from intone.optimise.rounds import known_at_a_stop, named_round, new_folder, rounds, unfinished
from intone.optimise.settings import (
    OF_GENERATION,
    OF_PROGRAMS,
    OF_STAGES,
    OF_TRAINING,
    SETTLED,
    TRAINED,
    OptimiseSettings,
)
from intone.optimise.signals import Signals
from intone.optimise.stages.verb import optimise_stage, undo_stage
from intone.optimise.worktree import run_git
from intone.paths import disk_errors, read_json
from intone.prove.verdict import Comparison
from intone.records import Answer
from intone.resolving import Resolved, named_fields

WIDTH = 56
# what some ways to use the verb would ignore, and how to have it
MODES: Mapping[str, tuple[Sequence[str], str | None]] = {
    "undo": (tuple({*named_fields(OptimiseSettings)} - {"undo", "id", "json", "show"}), None),
    "against": (("analyse_only", "minutes", "apply", "new"), None),
    "analyse_only": (("minutes", "apply"), "leave out --analyse-only to have changes made"),
}


def optimise_verb(settings: OptimiseSettings, origins: Mapping[str, Resolved], command: Sequence[str] | None) -> Answer:
    """The verb. command: the words behind --. Raises UserError."""
    check_fits(settings, origins, command)
    if settings.undo:
        return undo(settings.id)
    if settings.stage is not None:
        return optimise_stage(settings, origins)
    assert command, "checked"
    program = check_program(command, Path(settings.folder).expanduser().resolve())
    if settings.against is not None:
        return against_program(program, settings.against, quick=settings.quick)
    same = {"words": list(program.words), "folder": str(program.folder)}
    folder = None if settings.new else unfinished(same)
    options: dict[str, Any] = {"quick": settings.quick, "minutes": settings.minutes}
    if folder is not None:
        round_ = Round(folder, **options)
    else:
        with disk_errors(rounds()):
            folder = new_folder(Path(command[-1]).stem if len(command) < 2 else Path(command[1]).stem)
        round_ = Round.begin(folder, program, **options)
    with known_at_a_stop(round_.ledger, lambda: write_round_report(folder)):
        signals, findings = round_.analyse()
        plan = round_.plan(signals, findings)
        tries = [] if settings.analyse_only else round_.run(plan)
        whole = None if settings.analyse_only else round_.whole(tries)
    if settings.analyse_only:
        report = write_round_report(folder)
        text = "\n\n".join([time_text(signals), findings_text(findings), plan_text(plan), f"report: {report.html}"])
        return Answer(result_of(folder, signals, findings, plan, [], None), text, path=str(folder))
    round_.finish()
    if settings.apply and whole is not None:
        round_.tree.apply()
    report = write_round_report(folder)
    words = [time_text(signals), findings_text(findings), tries_text(tries), whole_text(whole, round_, settings.apply)]
    text = "\n\n".join([*words, f"report: {report.html}"])
    return Answer(result_of(folder, signals, findings, plan, tries, whole), text, path=str(folder))


def check_fits(settings: OptimiseSettings, origins: Mapping[str, Resolved], command: Sequence[str] | None) -> None:
    """Raises UserError where there is no target, or two, or a flag that would be ignored."""
    given = [name for name, entry in origins.items() if entry.origin == "flag"]
    for mode, (flags, way_out) in MODES.items():
        if mode in given and getattr(settings, mode) not in (None, False):
            refuse([name for name in given if name in flags], f"says nothing beside {flag(mode)}", way_out)
    if settings.undo:
        if command:
            raise UserError("--undo takes back a round, not a program", value=command[0], fix="leave out -- and it")
        return
    if settings.id is not None:
        fix = "add --undo, or leave --id out"
        raise UserError("--id names the round that --undo takes back", value=settings.id, fix=fix)
    if settings.stage is None and not command:
        fix = "name a stage: intone optimise base; or a program: intone optimise -- python train.py --steps 500"
        raise UserError("nothing was named that could be optimised", fix=fix)
    if settings.stage is not None and command:
        raise UserError(f"both {settings.stage} and a program were named", value=settings.stage, fix="name one of them")
    what = "a program behind --" if command else f"the stage {settings.stage}"
    strange = strange_to(settings)
    refuse([name for name in given if name in strange], f"says nothing about {what}")
    if settings.stage in TRAINED and settings.like is not None:
        words = "says nothing beside --like, which looks at a stage as its run settled it"
        refuse([name for name in given if name in SETTLED], words)


def strange_to(settings: OptimiseSettings) -> tuple[str, ...]:
    """Settings that say nothing about the target that was named."""
    if settings.stage is None:
        return OF_STAGES
    if settings.stage in TRAINED:
        return (*OF_PROGRAMS, *OF_GENERATION)
    return (*OF_PROGRAMS, *OF_TRAINING, *(("from_run",) if settings.stage == "pipeline" else ()))


def refuse(names: Sequence[str], why: str, way_out: str | None = None) -> None:
    """Raises UserError for the first of these settings, if there is one."""
    for name in names:
        raise UserError(f"{flag(name)} {why}", value=flag(name), fix=way_out or f"leave out {flag(name)}")


def flag(name: str) -> str:
    return flag_of(named_fields(OptimiseSettings)[name])


# --- taking back ----------------------------------------------------------------------------------------------------


def undo(name: str | None) -> Answer:
    """Takes a round's changes out of the person's files again. Raises UserError where they do not fit any more."""
    folder = named_round(name)
    if read_json(folder / "target.json").get("kind") == "stage":
        return undo_stage(folder)
    round_ = Round(folder)
    tree = round_.tree
    if tree.origin is None:
        raise UserError("the round changed a copy only, there is nothing to undo", value=folder.name)
    diff = tree.diff(tree.base, "HEAD")
    top = Path(run_git(tree.origin, "rev-parse", "--show-toplevel").strip())
    if diff:
        try:
            run_git(top, "apply", "-R", "--whitespace=nowarn", "-", given=diff)
        except UserError as problem:
            raise UserError(
                f"the changes of {folder.name} are not in {top}, or were changed since", value=folder.name,
                fix=f"look at them with: git diff {tree.base[:12]} {tree.branch}",
            ) from problem  # fmt: skip
    words = f"took the changes of {folder.name} out of {top}" if diff else f"{folder.name} kept no change of code"
    return Answer({"id": folder.name, "undone": bool(diff)}, words)


# --- text -----------------------------------------------------------------------------------------------------------


def time_text(signals: Signals) -> str:
    """Where the time of a step goes."""
    if signals.step_s is None:
        return "no optimizer step was seen: the program generates"
    if signals.kind == "generate":
        at = f", late over early {signals.late_over_early:.2f}" if signals.late_over_early is not None else ""
        return f"the program generates: a call of its model takes {human_duration(signals.step_s)}{at}"
    rows = [[part, f"{share:.1%}"] for part, share in sorted(signals.parts.items(), key=lambda entry: -entry[1])]
    head = f"a step takes {human_duration(signals.step_s)} (median of {signals.num_steps})"
    return head + "\n" + table(rows, header=["where the time goes", "share"])


def findings_text(findings: Sequence[Bottleneck]) -> str:
    """The findings with their evidence."""
    if not findings:
        return f"no finding: {len(DETECTORS)} detectors looked and none fired"
    lines = []
    for entry in findings:
        bound = f"at most {entry.bound:.2f}x" if entry.bound else "no bound known"
        place = f"  {entry.place}" if entry.place else ""
        lines.append(f"{entry.detector:<4} {entry.title} ({bound}){place}")
        lines += [f"     {words}" for words in entry.evidence]
    return "\n".join(["findings", *lines])


def plan_text(plan: Plan) -> str:
    rows = [[item.title[:WIDTH], item.finding or "", expected_words(item.expected), item.how] for item in plan.items]
    header = ["change", "finding", "expected", "how"]
    return "plan\n" + table(rows, header=header, left=4) if rows else "nothing to try"


def tries_text(tries: Sequence[Try]) -> str:
    rows = [[entry.item.title[:WIDTH], entry.verdict, "kept" if entry.kept else ""] for entry in tries]
    text = "tries\n" + table(rows, header=["change", "verdict", ""]) if rows else "nothing was tried"
    text += "".join(f"\n{entry.item.title}: {entry.reason}" for entry in tries)
    if any(entry.verdict == "told" for entry in tries):
        text += "\nwhat is told by words a language model can try, judged alike: docs/plan.md, A model's patch"
    return text


def whole_text(whole: Mapping[str, Any] | None, round_: Round, applied: bool) -> str:
    """What holds in the end, and how to have it."""
    if whole is None:
        return "nothing proven: no change made the program faster beyond doubt and passed the gates"
    found = whole["comparison"]
    interval = Comparison(**found).times if found["ratio"] else ""
    lines = [f"all together, measured: {found['verdict']} {interval}".rstrip()]
    for entry in whole["without"]:
        alone = entry["comparison"]
        share = f"{alone['ratio']:.2f}x of it is its own" if alone and alone["ratio"] else entry["reason"]
        lines.append(f"  without {entry['name']}: {share}")
    tries = round_.ledger.tries()
    env = {name: value for name, value in round_.kept_env(tries).items() if name not in round_.target["env"]}
    if env:
        words = [*(f"{name}={value}" for name, value in env.items()), *round_.words]
        lines.append("start it with: " + " ".join(words))
    if round_.tree.changes():
        branch = f"the code changes are on the branch {round_.target['branch']}"
        lines.append("applied to your files" if applied else branch)
    return "\n".join(lines)


def result_of(
    folder: Path, signals: Signals, findings: Sequence[Bottleneck], plan: Plan, tries: Sequence[Try],
    whole: Mapping[str, Any] | None,
) -> dict[str, Any]:  # fmt: skip
    """The result for machines."""
    value = {
        "id": folder.name, "signals": signals.as_json(), "findings": [entry.as_json() for entry in findings],
        "plan": [item.as_json() for item in plan.items], "tries": [entry.as_json() for entry in tries],
        "whole": dict(whole) if whole is not None else None,
    }  # fmt: skip
    found: dict[str, Any] = json.loads(json.dumps(value, default=str))
    return found
