"""Regression mode: a program, or a stage of ours, at an earlier revision against the working tree, in turns"""

import itertools
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from intone import jobs
from intone.child import PACKAGE_PARENT
from intone.errors import EXIT_CHECK_FAILED, EXIT_DONE, UserError
from intone.log import human_duration, three_digits
from intone.optimise.program import Program, program_side
from intone.optimise.program_gates import judge_times, judge_training, losses_of
from intone.optimise.stages.target import Part, Target
from intone.optimise.stages.training import MANY_STEPS, QUIET
from intone.optimise.worktree import Worktree, is_repository, open_worktree, run_git
from intone.paths import home
from intone.prove.gates import sealed
from intone.prove.gates.result import GateReport
from intone.prove.live import LineChild
from intone.prove.measure import Measured, Side, SideFailed, measure_rounds
from intone.records import Answer

NOW = "the working tree"


@dataclass(frozen=True)
class Trees:
    """A code base twice: at the revision, and as it is now, uncommitted changes included."""

    before: Worktree
    now: Worktree
    commit: str  # of the revision
    place: str  # of the folder that was named, inside the repository


def against_program(program: Program, revision: str, *, quick: bool) -> Answer:
    """The program now against itself at a revision of its repository -> the verdict.

    Raises UserError where there is no such revision, or where the program does not run there.
    """
    with trees_of(program.folder, revision) as trees, tempfile.TemporaryDirectory(prefix="intone-against-") as scratch:
        names = (f"at {revision}", NOW)
        folders = [tree.path / trees.place for tree in (trees.before, trees.now)]
        sides = [
            program_side(name, Program(program.words, folder, program.env), Path(scratch) / folder.parent.name)
            for name, folder in zip(names, folders, strict=True)
        ]
        tracked = [*trees.before.tracked(), *trees.now.tracked()]
        return answer_of(*compared(sides, tracked, quick=quick), revision, trees.commit, program.text)


def against_stage(target: Target, part: Part, revision: str, *, quick: bool, name: str) -> Answer:
    """A stage by our code at a revision against this code -> verdict, as for a program.

    Raises UserError where this code lies in no repository, and where the job does not run at the revision.
    """
    with trees_of(PACKAGE_PARENT, revision) as trees, jobs.trial_folder(home() / "trials") as scratch:
        numbers = itertools.count(1)

        def side(words: str, source: Path) -> Side:
            def start() -> LineChild:
                folder = scratch / f"job-{next(numbers)}"
                target.write(part, {}, folder, **({"steps": MANY_STEPS, **QUIET} if part == "train" else {}))
                command = [sys.executable, "-P", "-m", target.worker, str(folder), jobs.LIVE]
                return LineChild(command, {**target.variables(part, {}), "PYTHONPATH": str(source)}, name=words)

            if part == "train":
                return Side(words, start, target.block_command, count="steps", unit="supervised")
            return Side(words, start, count="requests", unit="tokens")

        sides = [side(f"at {revision}", trees.before.path / trees.place), side(NOW, trees.now.path / trees.place)]
        tracked = [*trees.before.tracked(), *trees.now.tracked()]
        return answer_of(*compared(sides, tracked, quick=quick), revision, trees.commit, f"intone {name}")


@contextmanager
def trees_of(folder: Path, revision: str) -> Iterator[Trees]:
    """Worktrees of both states, removed at the end, with the branch that the present one needed."""
    if not is_repository(folder):
        fix = "run it where git knows the code, or commit the code once"
        raise UserError(f"{folder} is in no git repository, so it has no revision {revision}", value=revision, fix=fix)
    commit = run_git(folder, "rev-parse", "-q", "--verify", f"{revision}^{{commit}}", check=False).strip()
    if not commit:
        raise UserError(f"there is no revision {revision!r} in {folder}", value=revision, fix="see git log --oneline")
    place = run_git(folder, "rev-parse", "--show-prefix").strip() or "."
    room = Path(tempfile.mkdtemp(prefix="intone-trees-"))
    now = open_worktree(folder, room / "now", f"intone/against-{room.name}")
    try:
        before = now.at(commit, room / "before")
        try:
            yield Trees(before, now, commit, place)
        finally:
            before.close()
    finally:
        now.close(keep_branch=False)
        shutil.rmtree(room, ignore_errors=True)


def compared(sides: list[Side], tracked: list[Path], *, quick: bool) -> tuple[Measured, GateReport]:
    """The second side against the first, and what the gates say of it. Raises UserError where the first fails."""
    before = sealed.seal([*sealed.harness(), *tracked])
    try:
        measured = measure_rounds(sides, quick=quick)
    except SideFailed as failure:
        raise UserError(str(failure), value=failure.side, fix=failure.outcome.fix) from failure
    first, second = (side.name for side in sides)
    gates = [judge_times(measured, {first: "baseline", second: "candidate"})]
    if losses_of(measured, first):
        gates.append(judge_training(measured, first, second))
    gates.append(sealed.judge(before, sealed.seal(before.paths)))
    return measured, GateReport(tuple(gates))


def answer_of(measured: Measured, gates: GateReport, revision: str, commit: str, what: str) -> Answer:
    """The verdict in words and as JSON; exit 1 for slower, for a side that failed, and for a gate that rejects."""
    comparison = measured.comparisons[0]
    is_bad = comparison.verdict in ("slower", "rejected") or gates.passed is False
    lines = [f"{what}: {revision} ({commit[:12]}) against the working tree"]
    for side in measured.sides:
        if side is not None:
            span = f"{three_digits(side.low)} to {three_digits(side.high)}"
            lines.append(f"  {side.name}: {three_digits(side.rate)} {side.unit}/s, rounds {span}")
    lines += [f"the working tree is {comparison.text()}", f"gates: {gates.reason}"]
    lines.append(f"{measured.num_replicates} replicates of fresh processes in {human_duration(measured.seconds)}")
    result: dict[str, Any] = {
        "against": revision, "commit": commit, "comparison": comparison.as_json(), "gates": gates.as_json(),
    }  # fmt: skip
    return Answer(result, "\n".join(lines), exit=EXIT_CHECK_FAILED if is_bad else EXIT_DONE)
