"""Which files of a project belong to one program: those that a file imports, and those that import it."""

import re

from intone.optimise.scan.project import Project
from intone.optimise.scan.source import Module

ELSEWHERE = re.compile(r"(^|[/_])(eval\w*|infer\w*|generat\w*|sampl\w*|serv\w*|bench\w*|tests?|chat)([/_.]|$)")
TRAINS = re.compile(r"\.backward\(|def training_step|Trainer\(|\boptim\.[A-Z]\w+\(|TrainingArguments\(")
DEPTH = 2  # imports away; guess: a training script, its modules, and what those build on


def imported_by(module: Module, project: Project) -> list[Module]:
    """The files of the project that a file imports from."""
    if module.path not in project.known_imports:
        project.known_imports[module.path] = _imported_by(module, project)
    return project.known_imports[module.path]


def _imported_by(module: Module, project: Project) -> list[Module]:
    names = [*module.imports.values(), *module.stars]
    found = {id(other): other for full in names for other in (project.home_of(full), project.module_of(full)) if other}
    found.pop(id(module), None)
    return list(found.values())


def _users(project: Project) -> dict[Module, list[Module]]:
    """File -> the files that import from it."""
    key = ("users", None)
    if key not in project.remembered:
        found: dict[Module, list[Module]] = {}
        for other in project.modules:
            for one in imported_by(other, project):
                found.setdefault(one, []).append(other)
        project.remembered[key] = found
    users: dict[Module, list[Module]] = project.remembered[key]
    return users


def neighbours(module: Module, project: Project) -> list[Module]:
    """The file, what it imports, what imports it, and what those import; the file first.

    Two scripts that share a helper are no neighbours: of what imports the file, only what that imports is followed.
    """
    if module.path not in project.known_neighbours:
        project.known_neighbours[module.path] = _neighbours(module, project)
    return project.known_neighbours[module.path]


def _neighbours(module: Module, project: Project) -> list[Module]:
    found = {module.path: module}
    users = _users(project).get(module, [])
    todo = [(one, DEPTH) for one in [module, *users]]
    while todo:
        at, left = todo.pop(0)
        found.setdefault(at.path, at)
        if left:
            todo += [(other, left - 1) for other in imported_by(at, project) if other.path not in found]
    return list(found.values())


def is_elsewhere(module: Module) -> bool:
    """Whether a file evaluates, generates or serves, by its name, and trains nothing: not chat_finetune.py."""
    return ELSEWHERE.search(module.path) is not None and not module.mentions(TRAINS)
