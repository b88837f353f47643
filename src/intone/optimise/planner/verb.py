"""`intone plan`: the list of what is missing, or a plan for a feature and what came of it."""

import os
import shlex
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from intone.errors import EXIT_CHECK_FAILED, EXIT_DONE, UserError, unknown_name
from intone.log import say, table
from intone.optimise.agent.client import ChatClient
from intone.optimise.agent.loop import Budget
from intone.optimise.planner.catalogue import chances_in
from intone.optimise.planner.chance import Chance
from intone.optimise.planner.document import FeaturePlan
from intone.optimise.planner.feature import WITH_MODEL, Made, make, plan_of_chances, plan_without, template_for, top_of
from intone.optimise.planner.patch import Attempt, Judged, program_measure
from intone.optimise.planner.settings import PlanSettings
from intone.optimise.scan.run import scan_path
from intone.optimise.worktree import is_repository, run_git
from intone.paths import disk_errors, home, read_json, write_atomic, write_json
from intone.records import Answer

WIDTH = 44  # of evidence in the table; all of it stands below
COLUMNS = 100


def plan_verb(settings: PlanSettings, _origins: Mapping[str, Any]) -> Answer:
    """The verb. Raises UserError."""
    text, path = words_of(settings.what)
    if text is None and settings.choose is None:
        if settings.model is not None or settings.plan_only:
            raise UserError("there is nothing to plan", value=str(path), fix="say what in quotes, or --choose NAME")
        return listed(path)
    if text is not None and settings.choose is not None:
        raise UserError("a text and --choose are two plans", value=settings.choose, fix="give one of them")
    root = top_of(path)
    if settings.model is not None:
        return by_model(settings, text, root, path)
    template = template_for(text, root) if text is not None else None
    if template is None:
        plan, _ = open_plan(settings.choose, text, root, path)
        folder = new_folder(root)
        plan.write(folder)
        return Answer(
            {"id": folder.name, "plan": plan.as_json(), "made": None},
            f"{plan.markdown}\n{WITH_MODEL}\nplan: {folder / 'plan.md'}", path=str(folder),
        )  # fmt: skip
    folder = new_folder(root)
    template.plan.write(folder)
    if settings.plan_only:
        return Answer({"id": folder.name, "plan": template.plan.as_json(), "made": None},
                      f"{template.plan.markdown}\nplan: {folder / 'plan.md'}", path=str(folder))  # fmt: skip
    made = make(template, root, folder)
    result = {"id": folder.name, "plan": template.plan.as_json(), "made": made.as_json()}
    write_json(folder / "result.json", result)
    code = EXIT_DONE if made.tests.is_good else EXIT_CHECK_FAILED
    return Answer(result, f"{template.plan.markdown}\n{made_text(made, folder, root)}", path=str(folder), exit=code)


def words_of(what: Sequence[str]) -> tuple[str | None, Path]:
    """(text, folder) of the words of a call, in either order. Raises UserError."""
    paths = [word for word in what if " " not in word and Path(word).expanduser().exists()]
    texts = [word for word in what if word not in paths]
    for word in texts:
        if len(texts) == 1 and " " not in word.strip():
            raise UserError(
                f"{word} is no folder, and no sentence", value=word, fix="name a folder, or say in quotes what to add"
            )
    if len(texts) > 1 or len(paths) > 1:
        word = (texts if len(texts) > 1 else paths)[1]
        raise UserError(
            f"one text and one folder are enough, {word!r} is one more", value=word, fix="put the text in quotes"
        )
    return (texts[0] if texts else None), Path(paths[0] if paths else ".").expanduser()


# --- discover ---------------------------------------------------------------------------------------------------------


def listed(path: Path) -> Answer:
    """What a code base lacks."""
    scan = scan_path(path)
    chances = chances_in(scan)
    result = {"path": str(path), "files": scan.num_files, "chances": [one.as_json() for one in chances]}
    return Answer(result, chances_text(chances, path, scan.num_files), path=str(path))


def chances_text(chances: Sequence[Chance], path: Path, num_files: int) -> str:
    """The ranked table, and the evidence below it."""
    rows = [
        [str(number), one.state, one.name, f"<= {one.factor:.0f}x tokens" if one.factor else "not bounded",
         one.evidence[0][:WIDTH]]
        for number, one in enumerate(chances, 1)
    ]  # fmt: skip
    lines = [f"{num_files} files in {path}", table(rows, header=["", "state", "name", "bound", "evidence"]), ""]
    for one in chances:
        if one.state in ("missing", "partly"):
            lines += [f"{one.name}: {one.title} is {one.state}", *(f"  {where}" for where in one.evidence)]
            brings = f"brings: {one.benefit} ({one.source})"
            lines += textwrap.wrap(brings, COLUMNS, initial_indent="  ", subsequent_indent="    ")
    lines += ["", f"intone plan {path} --choose NAME    plans one of them"]
    return "\n".join(lines)


def open_plan(choose: str | None, text: str | None, root: Path, path: Path) -> tuple[FeaturePlan, str]:
    """(a plan whose change is left open, the task in words). Raises UserError for an unknown name."""
    chances = chances_in(scan_path(path))
    if text is not None:
        return plan_without(text, root, chances), text
    known = {one.name: one for one in chances}
    if choose not in known:
        # the name of a kind is enough where there is one of it
        near = [one for one in chances if one.name.split(":")[0] == choose]
        if len(near) != 1:
            raise unknown_name("entry", str(choose), known)
        known[str(choose)] = near[0]
    one = known[str(choose)]
    if one.state == "present":
        raise UserError(f"{one.title} is there: {one.evidence[0]}", value=choose, fix="choose what is missing")
    task = f"add {one.title}. Evidence: {'; '.join(one.evidence)}"
    return plan_of_chances(f"add {one.title}", root, [one]), task


# --- features ---------------------------------------------------------------------------------------------------------


def new_folder(root: Path) -> Path:
    """An empty folder for a plan; its name is that of no branch in the code base yet."""
    place = home() / "optimise" / "plans"
    is_git, number = is_repository(root), 0
    with disk_errors(place):
        while True:
            number += 1
            branch = f"refs/heads/intone/plan-{number}"
            if is_git and run_git(root, "rev-parse", "-q", "--verify", branch, check=False).strip():
                continue
            try:
                folder = place / f"plan-{number}"
                folder.mkdir(parents=True)
                return folder
            except FileExistsError:
                continue


def stopped_folder(asked: Mapping[str, Any]) -> Path | None:
    """The newest attempt at the very same that has no end."""
    for path in sorted((home() / "optimise" / "plans").glob("*/asked.json"), key=lambda one: -one.stat().st_mtime):
        if not (path.parent / "result.json").exists() and read_json(path) == asked:
            return path.parent
    return None


def made_text(made: Made, folder: Path, root: Path) -> str:
    """What a template made, and how to have it."""
    lines = [f"{made.subject}: {made.tests.text}", *(f"  {name}" for name in made.files)]
    if not made.tests.is_good:
        lines.append(made.tests.output)
    return "\n".join([*lines, f"plan: {folder / 'plan.md'}", *where(made.branch, made.path, root)])


def where(branch: str, path: Path, root: Path) -> list[str]:
    """How to have a kept change, and how to be rid of it."""
    if not is_repository(root):
        return [f"the change is in a copy: {path} (git -C {path} show)"]
    return [
        f"the change is on the branch {branch}: git merge {branch}",
        f"to drop it: git worktree remove --force {path}, then git branch -D {branch}",
    ]


def by_model(settings: PlanSettings, text: str | None, root: Path, path: Path) -> Answer:
    """A patch by a language model, judged by what it cannot reach. The same call goes on with one that was stopped."""
    assert settings.model is not None and settings.base_url is not None
    plan, task = open_plan(settings.choose, text, root, path)
    asked = {"task": task, "root": str(root.resolve())}
    asked |= {name: getattr(settings, name) for name in ("model", "base_url", "tests", "measure")}
    folder = stopped_folder(asked)
    if folder is None:
        folder = new_folder(root)
        write_json(folder / "asked.json", asked)
    else:
        say(f"going on with {folder.name}, which was stopped")
    plan.write(folder)
    key = settings.api_key or os.environ.get("INTONE_API_KEY") or "none"
    measure = None
    if settings.measure is not None:
        measure = program_measure(shlex.split(settings.measure), folder / "blocks", root)
    budget = Budget(settings.steps, settings.tokens, settings.minutes)
    test_words = shlex.split(settings.tests) if settings.tests else None
    client = ChatClient(settings.model, settings.base_url, key)
    try:
        judged = Attempt(root, folder, client, budget, test_words, measure).run(task)
    except KeyboardInterrupt:
        say(f"what {settings.model} did so far is in {folder}; the same command goes on where it was stopped")
        raise
    write_atomic(folder / "plan.md", f"{plan.markdown}\n# What {settings.model} planned\n\n{judged.proposal.text}\n")
    result = {"id": folder.name, "plan": plan.as_json(), **judged.as_json()}
    write_json(folder / "result.json", result)
    say(f"{judged.proposal.steps} messages, {judged.proposal.tokens:,} tokens")
    code = EXIT_DONE if judged.is_kept else EXIT_CHECK_FAILED
    return Answer(result, judged_text(judged, folder, root), path=str(folder), exit=code)


def judged_text(judged: Judged, folder: Path, root: Path) -> str:
    """How it ended, and where things are."""
    lines = [f"{judged.outcome}: {judged.reason}", *(f"  {name}" for name in judged.files)]
    if judged.branch is not None:
        lines += where(judged.branch, folder / "code", root)
    elif (folder / "rejected.diff").exists():
        lines.append(f"what was rejected: {folder / 'rejected.diff'}")
    return "\n".join([*lines, f"plan: {folder / 'plan.md'}"])
