"""A feature by a template: planned, written in a worktree as one commit, and tested there."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from intone.log import say
from intone.optimise.planner.chance import Chance
from intone.optimise.planner.check import TestRun, run_pytest
from intone.optimise.planner.document import Decision, FeaturePlan
from intone.optimise.planner.templates import presets, samplers, timing
from intone.optimise.planner.templates.template import Template
from intone.optimise.worktree import is_repository, open_worktree, run_git
from intone.paths import write_atomic

MATCHES: tuple[Callable[[str, Path], Template | None], ...] = (timing.match, presets.match, samplers.match)
WITH_MODEL = "no template fits this: --model NAME --base-url URL writes the patch"


@dataclass(frozen=True)
class Made:
    """What a template made: where, as which commit, and how its tests went."""

    path: Path
    branch: str
    commit: str
    subject: str
    files: tuple[str, ...]
    tests: TestRun

    def as_json(self) -> dict[str, Any]:
        return {
            "path": str(self.path), "branch": self.branch, "commit": self.commit, "subject": self.subject,
            "files": list(self.files), "tests": self.tests.as_json(),
        }  # fmt: skip


def top_of(path: Path) -> Path:
    """The root of the code base that a folder lies in."""
    folder = path if path.is_dir() else path.parent
    return Path(run_git(folder, "rev-parse", "--show-toplevel").strip()) if is_repository(folder) else folder


def template_for(text: str, root: Path) -> Template | None:
    """The template that makes what the text asks for. Raises UserError where the code base has it already."""
    return next((found for match in MATCHES if (found := match(text, root)) is not None), None)


def make(template: Template, root: Path, folder: Path) -> Made:
    """Writes the change in a new worktree below folder, commits it and runs its tests. Raises UserError."""
    tree = open_worktree(root, folder / "code", f"intone/{folder.name}")
    for note in tree.notes:
        say(note)
    try:
        written = template.write(tree.path)
    except BaseException:
        tree.close(keep_branch=False)  # half a change is none
        raise
    change = tree.commit(written.subject, written.why)
    assert change is not None, "a template that changes nothing was chosen"
    write_atomic(folder / "change.diff", tree.diff(tree.base, "HEAD"))
    say(f"running {', '.join(written.tests)}")
    tests = run_pytest(tree.path, [name for name in written.tests if (tree.path / name).exists()], folder / "tests.xml")
    return Made(tree.path, tree.branch, change.sha, change.subject, change.files, tests)


def plan_without(text: str, root: Path, chances: list[Chance]) -> FeaturePlan:
    """An honest plan where no template fits: what was read, what is open, and who could go on."""
    words = {word.lower().strip(".,:") for word in text.replace("-", " ").split() if len(word) > 3}
    near = [
        one
        for one in chances
        if words & set(f"{one.name} {one.title}".lower().replace(":", " ").replace("-", " ").split())
    ]
    return plan_of_chances(text, root, near)


def plan_of_chances(text: str, root: Path, near: list[Chance]) -> FeaturePlan:
    """A plan from entries of the catalogue: evidence, bounds and gates; the change itself is left open."""
    read = [f"{one.title} is {one.state}: {evidence}" for one in near for evidence in one.evidence]
    files = dict.fromkeys(line.split(":")[0] for one in near for line in one.evidence if ".py:" in line)
    effects = [f"{one.title}: {one.benefit} ({one.source})" for one in near]
    return FeaturePlan(
        text=text, root=str(root), kind=None,
        read=tuple(read) or ("the syntax trees of the code base; nothing in the catalogue is about this text",),
        decided=(Decision("Who writes the patch?", "nobody yet", f"{WITH_MODEL[0].upper()}{WITH_MODEL[1:]}"),),
        tasks=("read the places above", "write the change with tests of its own", "run the tests", "measure it"),
        files=tuple(files) or ("not known: nothing was recognised",),
        interfaces=("open: the text does not say how the feature is asked for",),
        risks=("what calls the places above relies on what they do now",),
        tests=("the tests of the code base, unchanged", "new ones for the feature, which fail without it"),
        gates=("G2 the tests", "G4a honest times where speed is claimed", "G8 sealed harness"),
        effect="; ".join(effects) or "not known",
    )  # fmt: skip
