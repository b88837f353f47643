"""`intone optimise -- PROGRAM`: the round from the command line, its tables, and where the report is"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from intone.errors import UserError
from intone.log import human_duration, table
from intone.optimise.detect.catalogue import DETECTORS
from intone.optimise.detect.finding import Bottleneck
from intone.optimise.items import Plan
from intone.optimise.program import check_program
from intone.optimise.report import write_round_report
from intone.optimise.round import Round, Try
from intone.optimise.settings import OptimiseSettings
from intone.optimise.signals import Signals
from intone.optimise.worktree import run_git
from intone.paths import disk_errors, home, read_json, read_lines
from intone.records import Answer
from intone.settings import Resolved

WIDTH = 56


def optimise_verb(
    settings: OptimiseSettings, _origins: Mapping[str, Resolved], command: Sequence[str] | None
) -> Answer:
    """The verb. command: the words behind --. Raises UserError."""
    if settings.undo:
        return undo(settings.id)
    if not command:
        raise UserError(
            "no program was given", fix="write it behind --: intone optimise -- python train.py --steps 500"
        )
    program = check_program(command, Path(settings.folder).expanduser().resolve())
    folder = None if settings.new else unfinished(program.words, program.folder)
    options: dict[str, Any] = {"quick": settings.quick, "minutes": settings.minutes}
    if folder is not None:
        round_ = Round(folder, **options)
    else:
        with disk_errors(rounds()):
            folder = new_folder(Path(command[-1]).stem if len(command) < 2 else Path(command[1]).stem)
        round_ = Round.begin(folder, program, **options)
    signals, findings = round_.analyse()
    plan = round_.plan(signals, findings)
    if settings.analyse_only:
        report = write_round_report(folder)
        text = "\n\n".join([time_text(signals), findings_text(findings), plan_text(plan), f"report: {report.html}"])
        return Answer(result_of(folder, signals, findings, plan, [], None), text, path=str(folder))
    tries = round_.run(plan)
    whole = round_.whole(tries)
    round_.finish()
    if settings.apply and whole is not None:
        round_.tree.apply()
    report = write_round_report(folder)
    words = [time_text(signals), findings_text(findings), tries_text(tries), whole_text(whole, round_, settings.apply)]
    text = "\n\n".join([*words, f"report: {report.html}"])
    return Answer(result_of(folder, signals, findings, plan, tries, whole), text, path=str(folder))


# --- rounds on disk -------------------------------------------------------------------------------------------------


def rounds() -> Path:
    return home() / "optimise"


def new_folder(word: str) -> Path:
    """An empty folder for a round, named after the program and a number."""
    stem = re.sub(r"[^a-z0-9]+", "-", word.lower()).strip("-") or "program"
    number = 1
    while (rounds() / f"{stem}-{number}").exists():
        number += 1
    folder = rounds() / f"{stem}-{number}"
    folder.mkdir(parents=True)
    return folder


def unfinished(words: Sequence[str], place: Path) -> Path | None:
    """The newest round on this very program that did not come to its end."""
    for folder in sorted(rounds().glob("*/target.json"), key=lambda path: -path.stat().st_mtime):
        target = read_json(folder)
        ended = any(line["kind"] == "end" for line in read_lines(folder.parent / "ledger.jsonl"))
        if target["words"] == list(words) and target["folder"] == str(place) and not ended:
            return folder.parent
    return None


def undo(name: str | None) -> Answer:
    """Takes a round's changes out of the person's files again. Raises UserError where they do not fit any more."""
    found = sorted(rounds().glob("*/target.json"), key=lambda path: -path.stat().st_mtime)
    folders = [path.parent for path in found if name in (None, path.parent.name)]
    if not folders:
        raise UserError(f"there is no round {name or ''}".strip(), value=name, fix=f"see the folders in {rounds()}")
    round_ = Round(folders[0])
    tree = round_.tree
    if tree.origin is None:
        raise UserError("the round changed a copy only, there is nothing to undo", value=folders[0].name)
    diff = tree.diff(tree.base, "HEAD")
    top = Path(run_git(tree.origin, "rev-parse", "--show-toplevel").strip())
    if diff:
        try:
            run_git(top, "apply", "-R", "--whitespace=nowarn", "-", given=diff)
        except UserError as problem:
            raise UserError(
                f"the changes of {folders[0].name} are not in {top}, or were changed since", value=folders[0].name,
                fix=f"look at them with: git diff {tree.base[:12]} {tree.branch}",
            ) from problem  # fmt: skip
    return Answer({"id": folders[0].name, "undone": bool(diff)}, f"took the changes of {folders[0].name} out of {top}")


# --- text -----------------------------------------------------------------------------------------------------------


def time_text(signals: Signals) -> str:
    """Where the time of a step goes."""
    if signals.step_s is None:
        return "no optimizer step was seen: the program generates"
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
    rows = [[item.title[:WIDTH], item.how, item.finding or "", item.risk[:WIDTH]] for item in plan.items]
    return "plan\n" + table(rows, header=["change", "how", "finding", "risk"]) if rows else "nothing to try"


def tries_text(tries: Sequence[Try]) -> str:
    rows = [[entry.item.title[:WIDTH], entry.verdict, "kept" if entry.kept else ""] for entry in tries]
    text = "tries\n" + table(rows, header=["change", "verdict", ""]) if rows else "nothing was tried"
    return text + "".join(f"\n{entry.item.title}: {entry.reason}" for entry in tries)


def whole_text(whole: Mapping[str, Any] | None, round_: Round, applied: bool) -> str:
    """What holds in the end, and how to have it."""
    if whole is None:
        return "nothing proven: no change made the program faster beyond doubt and passed the gates"
    found = whole["comparison"]
    interval = f"{found['ratio']:.2f}x [{found['low']:.2f}, {found['high']:.2f}]" if found["ratio"] else ""
    lines = [f"all together, measured: {found['verdict']} {interval}".rstrip()]
    for entry in whole["without"]:
        alone = entry["comparison"]
        share = f"{alone['ratio']:.2f}x of it is its own" if alone and alone["ratio"] else entry["reason"]
        lines.append(f"  without {entry['name']}: {share}")
    tries = [Try.from_json(line["try"]) for line in round_.lines("try")]
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
