"""Values of expressions, as far as the code shows them."""

import ast

import pytest

from intone.optimise.scan.constants import is_never, known_values
from intone.optimise.scan.project import Project
from intone.optimise.scan.source import parse_module

SETTINGS = """
from dataclasses import dataclass, field
BATCH = 4
WIDTHS = {"train": {"rows": 6}, "lr": 1e-3}
@dataclass
class Config:
    rows: int = 2
    names: list = field(default_factory=list)
    depth: int = field(default=12)
    compile: bool = False
"""
USER = """
import argparse, os
import settings
from settings import BATCH as B, Config, WIDTHS
parser = argparse.ArgumentParser()
parser.add_argument("--micro-rows", type=int, default=8)
parser.add_argument("--fast", action="store_true")
args = parser.parse_args()
def helper(n=3):
    return n * 2
class Trainer:
    def __init__(self, cfg: Config, every):
        self.cfg, self.every = cfg, every
    def run(self, x):
        probe(VALUE)
def main():
    Trainer(Config(rows=5), 7)
"""


def project_of(expression: str) -> Project:
    user = USER.replace("VALUE", expression)
    return Project([parse_module("settings.py", SETTINGS), parse_module("user.py", user)])


def argument(project: Project):
    site = project.sites["probe"][0]
    return site.call.args[0], site.scope


@pytest.mark.parametrize(
    ("expression", "values"),
    [
        ("B", {4}), ("settings.BATCH", {4}), ("B * 2 - 1", {7}), ("-B", {-4}), ("B if x else 9", {4, 9}),
        ("args.micro_rows", {8}), ("args.fast", {False}), ("self.every", {7}), ("self.cfg.depth", {12}),
        ("self.cfg.rows", {2, 5}), ("WIDTHS['train']['rows']", {6}), ("WIDTHS.get('lr', 1)", {1e-3, 1}),
        ("int(os.environ.get('ROWS', '16'))", {16}), ("getattr(args, 'micro_rows', 1)", {8, 1}), ("helper()", {6}),
        ("max(1, B)", {1, 4}), ("x", set()), ("unknown()", set()),
    ],
)  # fmt: skip
def test_values_are_followed_to_where_they_are_written(expression, values):
    project = project_of(expression)
    node, scope = argument(project)
    assert {known.value for known in known_values(node, scope, project)} == values


def test_a_switch_is_never_on_where_all_its_values_are_false():
    for expression, never in [("self.cfg.compile", True), ("args.fast", True), ("x", False), ("B", False)]:
        project = project_of(expression)
        node, scope = argument(project)
        assert is_never(node, scope, project) is never, expression


def test_a_value_that_is_made_of_itself_ends():
    code = "def f(n=1):\n    n = n + 1\n    n = g(n)\n    probe(n)\ndef g(m):\n    return f(m)\n"
    project = Project([parse_module("a.py", code)])
    node, scope = argument(project)
    assert {known.value for known in known_values(node, scope, project)} == {1}
    assert isinstance(node, ast.Name)
