"""Which functions a call may mean."""

import pytest

from intone.optimise.scan.project import Project
from intone.optimise.scan.source import parse_module

FILES = {
    "pkg/__init__.py": "from pkg.core import plain as public\n",
    "pkg/core.py": """
import functools, torch
from types import SimpleNamespace
def plain(x):
    return x
def other(x):
    return x
fast = torch.compile(plain)
half = functools.partial(other, 1)
ops = SimpleNamespace(run=plain)
class Base:
    def shared(self):
        return self.hook()
    def hook(self):
        return 0
class Child(Base):
    def hook(self):
        return 1
class Callable_:
    def __call__(self, x):
        return x
def factory():
    def inner(x):
        return x
    return inner
""",
}


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("from pkg.core import plain as p\np(1)", ["plain"]),
        ("from pkg import core\ncore.plain(1)", ["plain"]),
        ("import pkg.core\npkg.core.plain(1)", ["plain"]),
        ("from pkg import public\npublic(1)", ["plain"]),
        ("from pkg.core import *\nplain(1)", ["plain"]),
        ("from pkg.core import fast\nfast(1)", ["plain"]),
        ("from pkg import core\ncore.half(1)", ["other"]),
        ("from pkg.core import ops\nops.run(1)", ["plain"]),
        ("from pkg.core import Child\nChild().shared()", ["Base.shared"]),
        ("from pkg.core import Child\nc = Child()\nc.hook()", ["Child.hook"]),
        ("from pkg.core import Base\ndef f(b: Base):\n    b.hook()", ["Base.hook", "Child.hook"]),
        ("from pkg.core import Callable_\ng = Callable_()\ng(1)", ["Callable_.__call__"]),
        ("from pkg.core import factory\nmade = factory()\nmade(1)", ["factory.inner"]),
        ("from pkg.core import plain, other\nTABLE = {'a': plain, 'b': other}\nTABLE['a'](1)", ["other", "plain"]),
        ("from pkg.core import plain\ndef run(fn):\n    fn(1)\nrun(plain)", ["plain"]),
        ("class T:\n    def __init__(self, fn):\n        self.fn = fn\n    def go(self):\n        self.fn(1)\n"
         "from pkg.core import plain\nT(plain)", ["plain"]),
        ("import torch\ntorch.plain(1)", []),
        ("x = []\nx.append(1)", []),
    ],
)  # fmt: skip
def test_a_call_is_resolved(code, found):
    modules = [parse_module(name, text) for name, text in FILES.items()]
    user = parse_module("use.py", code)
    project = Project([*modules, user])
    callees = {f.name for scope in user.scopes for call in scope.calls for f in project.callees(call, scope)}
    made = {"factory", "run", "Child", "Base", "T.__init__"}
    assert sorted(callees - made) == found


def test_callers_are_found_through_other_names():
    code = "import torch\ndef step(x):\n    return x\nfast = torch.compile(step)\n"
    code += "def loop(xs):\n    for x in xs:\n        fast(x)\n"
    project = Project([parse_module("a.py", code)])
    step = project.functions["step"][0]
    assert [site.scope.name for site in project.callers(step)] == ["loop"]
