"""One round on a program: look, find, plan, try one change after the other, keep what is proven, measure the whole.

Everything that happens is a line of ledger.jsonl, so that a round which was stopped goes on, and nothing that was
tried is forgotten: what failed and what crashed too.
"""

import dataclasses
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from intone.errors import UserError
from intone.hardware import load_facts
from intone.log import human_duration, say
from intone.optimise.codemods import apply_codemod
from intone.optimise.detect.catalogue import detect
from intone.optimise.detect.finding import Bottleneck
from intone.optimise.items import Item, Plan
from intone.optimise.ledger import Ledger, Try
from intone.optimise.near import pairs_wanted, together
from intone.optimise.program import Program, block_calls, look_at, program_side
from intone.optimise.program_gates import judge_times, judge_tokens, judge_training, texts_of
from intone.optimise.program_plan import plan_program
from intone.optimise.signals import Signals
from intone.optimise.worktree import Worktree, open_worktree, reopened, run_git
from intone.paths import read_json, write_json
from intone.prove.gates import sealed
from intone.prove.gates.result import GateReport, GateResult
from intone.prove.measure import Measured, SideFailed, measure_rounds

MAX_TRIES = 12
WHOLE_PAIRS = 10
BEFORE = "before"


@dataclass(frozen=True)
class State:
    """A program as changed so far: code in a worktree, variables laid over the person's."""

    root: Path
    env: Mapping[str, str]

    def program(self, words: Sequence[str], place: str) -> Program:
        return Program(tuple(words), self.root / place, self.env)


class Round:
    """A round in its folder. run() may be called again after a stop and goes on behind the last line of the ledger."""

    def __init__(self, folder: Path, *, quick: bool = False, minutes: float | None = None) -> None:
        self.folder = folder
        self.quick = quick
        self.minutes = minutes
        self.target = read_json(folder / "target.json")
        self.words: list[str] = self.target["words"]
        self.ledger = Ledger(folder)
        self.began_s = time.monotonic()

    # --- beginning ------------------------------------------------------------------------------------------------

    @staticmethod
    def begin(folder: Path, program: Program, **options: Any) -> "Round":
        """A new round on a program, in an empty folder: its code is copied into a worktree first."""
        tree = open_worktree(program.folder, folder / "code", f"intone/{folder.name}")
        place = "."
        if tree.origin is not None:
            place = run_git(program.folder, "rev-parse", "--show-prefix").strip() or "."
        write_json(folder / "target.json", {
            "format": 1, "words": list(program.words), "env": dict(program.env), "folder": str(program.folder),
            "place": place, "branch": tree.branch, "base": tree.base, "notes": list(tree.notes),
            "origin": str(tree.origin) if tree.origin else None,
        })  # fmt: skip
        for note in tree.notes:
            say(note)
        return Round(folder, **options)

    @property
    def tree(self) -> Worktree:
        origin = Path(self.target["origin"]) if self.target["origin"] else None
        return reopened(self.folder / "code", self.target["branch"], self.target["base"], origin)

    # --- the round ------------------------------------------------------------------------------------------------

    def analyse(self) -> tuple[Signals, list[Bottleneck]]:
        """Signals and findings of the program as it was; from the ledger where they are known."""
        is_new = not self.ledger.lines("signals")
        signals = self.looked([])
        found = detect(signals)
        if is_new:
            for entry in found:
                self.ledger.note("finding", finding=entry.as_json())
        return signals, found

    def looked(self, tries: Sequence[Try]) -> Signals:
        """Signals of the program with what was kept of these tries; from the ledger where they are known."""
        kept = [entry.item.name for entry in tries if entry.kept]
        for line in self.ledger.lines("signals"):
            if line["kept"] == kept:
                return Signals.from_json(line["signals"])
        state = State(self.folder / "code", self.kept_env(tries))
        scratch = self.folder / f"look-{len(kept)}"
        signals, _ = look_at(state.program(self.words, self.target["place"]), scratch, facts=load_facts())
        self.ledger.note("signals", kept=kept, signals=signals.as_json())
        return signals

    def plan(self, signals: Signals, findings: Sequence[Bottleneck]) -> Plan:
        """The plan; from the ledger where there is one."""
        known = self.ledger.lines("plan")
        if known:
            return Plan(tuple(Item.from_json(item) for item in known[-1]["items"]))
        root = self.folder / "code" / self.target["place"]
        plan = plan_program(findings, signals, root, load_facts().cores_physical)
        self.ledger.note("plan", items=[item.as_json() for item in plan.items])
        return plan

    def run(self, plan: Plan) -> list[Try]:
        """Tries the items one after the other, each on top of what was kept; returns all tries of this round."""
        tries = self.ledger.tries()
        self.tree.reset(self.last_kept(tries))
        self.looked(tries)  # where it was stopped between a change that was kept and the look behind it
        done = {entry.item.name for entry in tries}
        for item in plan.items[:MAX_TRIES]:
            if item.name in done:
                continue
            if item.how != "instruction" and self.is_late():
                say(f"the {self.minutes:g} minutes are over: {item.title} is left for another round")
                break
            if item.how != "instruction":
                say(self.left_text(plan, tries))
                say(f"trying: {item.title}")
            entry = self.attempt(item, tries)
            self.ledger.note("try", **{"try": entry.as_json()})
            tries.append(entry)
            if item.how != "instruction":
                say(f"{item.title}: {entry.reason}; {'kept' if entry.kept else 'not kept'}")
            self.looked(tries)
        return tries

    def left_text(self, plan: Plan, tries: Sequence[Try]) -> str:
        """How many changes are to be tried, and how long that takes by what those before them took."""
        done = {entry.item.name for entry in tries}
        count = sum(item.how != "instruction" and item.name not in done for item in plan.items[:MAX_TRIES])
        changes = f"{count} change{'s' * (count != 1)} to try"
        seconds = [entry.seconds for entry in tries if entry.verdict != "told"]
        if not seconds:
            return f"{changes}; how long that takes is known behind the first"
        left = human_duration(count * statistics.median(seconds))
        return f"{changes}, about {left} by what those before took; then the sum of what was kept"

    def attempt(self, item: Item, tries: Sequence[Try]) -> Try:
        """One change, applied, measured against what was kept so far, and kept or taken back.

        Raises UserError where the program does not run without the change: the round can go on later.
        """
        begin_s = time.monotonic()
        if item.how == "instruction":
            return Try(item, "told", str(item.change["words"]), False, None, None, None, 0.0)
        tree, before = self.tree, self.tree.head()
        env = self.kept_env(tries)
        base = self.beside(tree, before)
        try:
            commit = self.apply(item, tree)
            changed = {**env, **item.change} if item.how == "environment" else env
            states = State(base, env), State(tree.path, changed)
            measured, gates = self.compare(*states, BEFORE, item.name)
            comparison = measured.comparisons[0]
            wanted = pairs_wanted(comparison)
            if wanted is not None and not self.quick:
                say(f"{comparison.text()}: measuring {wanted} more")
                again, gates = self.compare(*states, BEFORE, item.name, max_pairs=wanted)
                comparison = together(measured, again, BEFORE, item.name)
        except BaseException:
            tree.reset(before)
            raise
        verdict, reason = comparison.verdict, comparison.text()
        if measured.sides[1] is None:
            tree.reset(before)
            seconds = time.monotonic() - begin_s
            return Try(item, "crashed", comparison.reason, False, None, gates.as_json(), None, seconds)
        if verdict == "faster" and gates.passed is not True:
            verdict, reason = "rejected", gates.reason
        kept = verdict == "faster"
        if not kept:
            tree.reset(before)
        return Try(
            item, verdict, reason, kept, comparison.as_json(), gates.as_json(), commit if kept else None,
            time.monotonic() - begin_s,
        )  # fmt: skip

    def whole(self, tries: Sequence[Try]) -> dict[str, Any] | None:
        """Everything that was kept against the program as it was, and against itself without each change."""
        kept = [entry for entry in tries if entry.kept]
        if not kept:
            return None
        known = self.ledger.lines("whole")
        if known and known[-1]["kept"] == [entry.item.name for entry in kept]:
            return dict(known[-1])
        tree = self.tree
        env = self.kept_env(tries)
        base = self.beside(tree, self.target["base"])
        measured, gates = self.compare(State(base, self.target["env"]), State(tree.path, env), "as it was", "with all")
        result: dict[str, Any] = {
            "kept": [entry.item.name for entry in kept], "comparison": measured.comparisons[0].as_json(),
            "sides": [dataclasses.asdict(side) if side else None for side in measured.sides], "gates": gates.as_json(),
            "without": [],
        }  # fmt: skip
        if len(kept) > 1:
            result["without"] = [self.leave_out(entry, tries) for entry in kept]
        result["signals"] = self.looked(tries).as_json()
        self.ledger.note("whole", **result)
        return result

    def leave_out(self, left_out: Try, tries: Sequence[Try]) -> dict[str, Any]:
        """How much slower the whole is without one change: its own share in it, measured."""
        say(f"without: {left_out.item.title}")
        tree, env = self.tree, self.kept_env(tries)
        others = [entry for entry in tries if entry is not left_out]
        if left_out.commit is None:
            root = tree.path
        else:
            change = next(entry for entry in tree.changes() if entry.sha == left_out.commit)
            try:
                root = tree.without(change, self.folder / "trees" / f"without-{left_out.item.name}").path
            except UserError as problem:
                return {"name": left_out.item.name, "reason": problem.message, "comparison": None}
        state = State(root, self.kept_env(others))
        measured, _ = self.compare(state, State(tree.path, env), f"without {left_out.item.name}", "with all")
        return {"name": left_out.item.name, "reason": "", "comparison": measured.comparisons[0].as_json()}

    # --- parts ----------------------------------------------------------------------------------------------------

    def apply(self, item: Item, tree: Worktree) -> str | None:
        """Makes the change in the worktree -> its commit; None where it changes no code."""
        if item.how != "code":
            return None
        root = tree.path / self.target["place"]
        apply_codemod(root, str(item.change["codemod"]))
        change = tree.commit(item.title, f"{item.hypothesis}.\n\nRisk: {item.risk}.")
        assert change is not None, f"{item.name} applies nowhere, and was planned"
        return change.sha

    def compare(
        self, a: State, b: State, name_a: str, name_b: str, *, max_pairs: int = WHOLE_PAIRS
    ) -> tuple[Measured, GateReport]:
        """b against a in turns, and the gates on b; the code of a and the harness are sealed meanwhile."""
        before = sealed.seal([*sealed.harness(), *Worktree(a.root, "", "", None).tracked()])
        scratch = self.folder / "blocks"
        place = self.target["place"]
        signals = self.looked([])
        options: dict[str, Any] = {"kind": signals.kind, "size": block_calls(signals)}
        sides = [
            program_side(name, state.program(self.words, place), scratch / str(time.monotonic_ns()), **options)
            for name, state in ((name_a, a), (name_b, b))
        ]  # fmt: skip
        try:
            measured = measure_rounds(sides, quick=self.quick, max_pairs=max_pairs)
        except SideFailed as failure:
            fix = failure.outcome.fix or "see why, then give the same command again: the round goes on"
            raise UserError(str(failure), value=failure.side, fix=fix) from failure
        results: list[GateResult] = [
            judge_times(measured, {name_a: "baseline", name_b: "candidate"}),
            judge_tokens(texts_of(measured, name_a), texts_of(measured, name_b)) if signals.kind == "generate"
            else judge_training(measured, name_a, name_b),
            sealed.judge(before, sealed.seal(before.paths)),
        ]  # fmt: skip
        return measured, GateReport(tuple(results))

    def beside(self, tree: Worktree, commit: str) -> Path:
        """A second worktree at a commit, made once: the baseline of a comparison."""
        path = self.folder / "trees" / commit[:12]
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            tree.at(commit, path)
        return path

    def kept_env(self, tries: Sequence[Try]) -> dict[str, str]:
        env = dict(self.target["env"])
        for entry in tries:
            if entry.kept and entry.item.how == "environment":
                env |= {str(name): str(value) for name, value in entry.item.change.items()}
        return env

    def last_kept(self, tries: Sequence[Try]) -> str:
        commits = [entry.commit for entry in tries if entry.kept and entry.commit]
        return commits[-1] if commits else str(self.target["base"])

    def is_late(self) -> bool:
        return self.minutes is not None and time.monotonic() - self.began_s > 60 * self.minutes

    def finish(self) -> None:
        """Removes the worktrees beside; the branch with what was kept stays."""
        tree = self.tree
        for path in sorted((self.folder / "trees").glob("*")):
            Worktree(path, "", "", tree.origin or tree.path).close()
        self.ledger.note("end", seconds=time.monotonic() - self.began_s)
        say(f"the round took {human_duration(time.monotonic() - self.began_s)}")
