"""What runs inside a loop, and the loops around a node."""

import ast

from intone.optimise.scan.loops import train_loops
from intone.optimise.scan.project import Project
from intone.optimise.scan.reach import loops_around, reached
from intone.optimise.scan.seldom import is_periodic
from intone.optimise.scan.source import parse_module

CODE = """
def log(step, value, every=50):
    if step % every:
        return
    show(value)
def inner(model, batch):
    loss = model(batch)
    loss.backward()
    return loss
def outer(model, opt, loader):
    for step, batch in enumerate(loader):
        for part in batch.chunk(4):
            loss = inner(model, part)
        opt.step()
        log(step, loss)
def rows(n):
    while n:
        make(n)
        yield n
def walk():
    for row in rows(4):
        use(row)
"""


def named(project, name):
    return project.functions[name][0]


def test_calls_lead_into_functions_and_keep_their_way():
    project = Project([parse_module("a.py", CODE)])
    outer = named(project, "outer")
    loop = outer.body[0]
    item = next(one for one in reached(loop, outer, project) if isinstance(one.node, ast.Call)
                and ast.unparse(one.node) == "loss.backward()")  # fmt: skip
    assert item.path() == "reached by the call at a.py:13"
    assert item.anchor.lineno == 13 and item.scope.name == "inner"


def test_a_generators_body_runs_in_the_loop_that_walks_over_it():
    project = Project([parse_module("a.py", CODE)])
    walk = named(project, "walk")
    calls = [ast.unparse(one.node) for one in reached(walk.body[0], walk, project) if isinstance(one.node, ast.Call)]
    assert "make(n)" in calls and "use(row)" in calls


def test_loops_of_callers_count():
    project = Project([parse_module("a.py", CODE)])
    inner = named(project, "inner")
    nest = loops_around(inner.calls[0], inner, project)
    assert [[frame.loop.lineno for frame in way] for way in nest] == [[12, 11]]


def test_a_training_loop_over_several_functions():
    project = Project([parse_module("a.py", CODE)])
    (loop,) = train_loops(project.modules[0], project)
    assert (loop.inner.lineno, loop.outer.lineno, loop.shape) == (12, 11, "nested")
    assert loop.accumulates and [item.line for item in loop.steps] == [14]


def test_what_stands_behind_an_early_return_on_a_counter_is_periodic():
    project = Project([parse_module("a.py", CODE)])
    outer = named(project, "outer")
    items = [one for one in reached(outer.body[0], outer, project) if isinstance(one.node, ast.Call)]
    rare = {ast.unparse(one.node): is_periodic(one, outer.body[0], project) for one in items}
    assert rare["show(value)"] and not rare["loss.backward()"] and not rare["opt.step()"]
