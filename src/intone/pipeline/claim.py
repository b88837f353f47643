"""Which run a command works on, new or to be gone on with, and that no other process works on it meanwhile"""

import contextlib
import shutil
from collections.abc import Iterator, Mapping

from intone.data.questions import check_named
from intone.errors import DiskFull, UserError
from intone.fields import flag_of, shown
from intone.hardware import load_facts
from intone.paths import FolderLock
from intone.pipeline.forecast import likely_depth
from intone.pipeline.plan_files import depth_of, is_planned
from intone.prepare import find_source
from intone.resolving import Resolved, identity, is_free, named_fields
from intone.runs import (
    UNFINISHED,
    Run,
    check_same,
    create_run,
    find_run,
    find_stage,
    list_runs,
    unfinished_run,
    with_state,
)
from intone.settings import RunSettings, TrainSettings

Asked = RunSettings | TrainSettings


@contextlib.contextmanager
def claimed_run(
    verb: str, settings: Asked, origins: Mapping[str, Resolved], stages: tuple[str, ...]
) -> Iterator[Run]:
    """The run to work on, new or to be gone on with, locked against a second process.

    However it ends before its plan is complete: the run is forgotten, there is nothing to go on with.
    """
    check_like(settings, origins)
    run = choose_run(verb, settings, stages)
    try:
        lock = FolderLock(run.folder / "lock", what=f"run {run.name}")
    except DiskFull:
        forget_if_empty(run)
        raise
    with lock:
        try:
            yield run if run.state == UNFINISHED else with_state(run, UNFINISHED)
        except BaseException:
            forget_if_empty(run)
            raise


def choose_run(verb: str, settings: Asked, stages: tuple[str, ...]) -> Run:
    """--name: that run, if its settings are equal; else the newest unfinished equal one; else a new one."""
    asked = identity(settings)
    if settings.name is not None and any(run.name == settings.name for run in list_runs()[0]):
        run = find_run(settings.name)
        if settings.new:
            raise UserError(
                f"run {run.name!r} exists already", value=run.name, fix="choose another --name, or leave out --new"
            )
        check_same(run, asked)
        if run.state == "done":
            raise UserError(
                f"run {run.name} is finished", value=run.name, fix=f"intone chat --from {run.name}, or another --name"
            )
        return run
    if not settings.new and settings.name is None:
        found = unfinished_run(verb, asked)
        if found is not None and not is_locked(found):
            return found
    if settings.like is not None:
        depth = depth_of(find_like(settings.like, stages))
    else:
        check_sources(settings)
        depth = settings.depth if isinstance(settings.depth, int) else guess_depth(settings)
    return create_run(asked, verb=verb, stages=stages, name=settings.name, depth=depth)


def guess_depth(settings: Asked) -> int:
    """The depth that planning will settle on: the name of a run is given before."""
    if isinstance(settings, TrainSettings) and settings.from_run is not None:
        return depth_of(find_run(settings.from_run))
    return likely_depth(settings, load_facts())[0]


def check_sources(settings: Asked) -> None:
    """Raises UserError for data that is not there, before a run is made and the machine measured."""
    if isinstance(settings, RunSettings):
        find_source("documents", settings.data, settings.val)
        find_source("conversations", settings.sft, settings.sft_val)
    elif settings.stage == "rl":
        check_named(settings.data, settings.val)
        find_stage(settings.from_run or "latest")
    else:
        find_source("conversations" if settings.stage == "sft" else "documents", settings.data, settings.val)
        find_source("conversations", settings.sft, ())


def check_like(settings: Asked, origins: Mapping[str, Resolved]) -> None:
    """Raises UserError for a setting that is asked for beside --like, which brings all of them."""
    if settings.like is None:
        return
    if settings.settings is not None:
        fix = "leave out --settings, or --like"
        raise UserError("--like brings its own settings, and so does --settings", value=settings.settings, fix=fix)
    fields = named_fields(type(settings))
    for name, entry in origins.items():
        if entry.origin == "flag" and name not in ("like", "stage") and not is_free(fields[name]):
            raise UserError(
                f"{flag_of(fields[name])} cannot be given with --like: run {settings.like} brings its own {name}",
                value=shown(entry.value),
                fix=f"leave out {flag_of(fields[name])}, or --like",
            )


def find_like(reference: str, stages: tuple[str, ...]) -> Run:
    """The run of --like. Raises UserError where it lacks one of these stages, or a plan."""
    like = find_run(reference)
    if like.verb == "import":
        raise UserError(
            f"run {like.name} was imported: it has no plan of a training to repeat",
            value=reference,
            fix=f"start from its weights: intone train STAGE --from {like.name}",
        )
    missing = [stage for stage in stages if stage not in like.stages]
    if missing:
        raise UserError(
            f"run {like.name} has no stage {missing[0]}, it has: {', '.join(like.stages)}",
            value=reference,
            fix=f"name another run, or use intone train {like.stages[0]} --like {like.name}",
        )
    if not is_planned(like):
        raise UserError(
            f"run {like.name} has no settled plan yet",
            value=reference,
            fix="let it get to its first step, with the command that started it, or name another run",
        )
    return like


def is_locked(run: Run) -> bool:
    """Whether another process works on this run now."""
    try:
        FolderLock(run.folder / "lock").close()
    except UserError:
        return True
    return False


def forget_if_empty(run: Run) -> None:
    """Removes the folder of a run whose plan is not complete and that never saved anything."""
    if not is_planned(run) and not any(run.folder.glob("*/checkpoints/step_*")):
        shutil.rmtree(run.folder, ignore_errors=True)
