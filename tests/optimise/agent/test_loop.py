"""A model that plans, edits and is done leaves a proposal; one that does not leaves a readable end."""

import sys
from pathlib import Path

import pytest
from tests.optimise.agent.conftest import PLAN, ScriptedServer, act

from intone.errors import UserError
from intone.optimise.agent.client import ChatClient
from intone.optimise.agent.loop import Budget, Session, parsed
from intone.optimise.agent.tools import Tools


@pytest.fixture
def root(tmp_path: Path) -> Path:
    place = tmp_path / "code"
    (place / "tests").mkdir(parents=True)
    (place / "train.py").write_text("batch = 4\n")
    (place / "tests" / "test_a.py").write_text("def test_a():\n    assert True\n")
    return place


def session(scripted: ScriptedServer, root: Path, **options) -> Session:
    client = ChatClient("scripted", scripted.url, wait=lambda _: None)
    tools = Tools(root, sealed=["tests/*"], test_command=[sys.executable, "-c", "print('2 passed')"])
    return Session(client, tools, "make it fast", root.parent / "talk.jsonl", **options)


def test_a_plan_and_an_edit_become_a_proposal(scripted: ScriptedServer, root: Path):
    scripted.replies = [
        act("read", path="train.py"), PLAN, act("edit", path="train.py", old="4", new="64"), act("run_tests"),
        act("done", summary="Raise the batch", why="4 was small"),
    ]  # fmt: skip
    found = session(scripted, root).run()
    assert (found.end, found.summary, found.edited) == ("done", "Raise the batch", ("train.py",))
    assert (root / "train.py").read_text() == "batch = 64\n"
    assert found.tokens == 500 and found.steps == 5
    assert found.plan["effect"] == "g" and "## Risks" in found.text
    heard = [message["content"] for message in scripted.asked[-1]["messages"]]
    assert any("1 batch = 4" in text for text in heard)
    assert any("2 passed" in text for text in heard)


def test_edits_and_done_before_a_plan_are_refused(scripted: ScriptedServer, root: Path):
    scripted.replies = [act("edit", path="train.py", old="4", new="5"), act("done", summary="x", why="y"), PLAN]
    found = session(scripted, root).run()
    heard = [message["content"] for message in scripted.asked[-1]["messages"]]
    assert heard.count("refused: write a plan first") == 2
    assert found.end == "done" and (root / "train.py").read_text() == "batch = 4\n"


def test_sealed_files_and_files_outside_stay_as_they_are(scripted: ScriptedServer, root: Path):
    outside = root.parent / "outside.py"
    scripted.replies = [
        PLAN, act("edit", path="tests/test_a.py", old="True", new="1"), act("create", path="tests/deep/x.py", text=""),
        act("create", path="../outside.py", text="x"), act("read", path="/etc/hostname"),
        act("create", path=".git/config", text="x"),
    ]  # fmt: skip
    session(scripted, root).run()
    heard = [message["content"] for message in scripted.asked[-1]["messages"]]
    assert sum("is sealed" in text for text in heard) == 2
    assert sum("outside the code base" in text for text in heard) == 3
    assert not outside.exists() and "True" in (root / "tests" / "test_a.py").read_text()


def test_a_link_that_leads_outside_is_refused(scripted: ScriptedServer, root: Path):
    (root / "link").symlink_to(root.parent)
    scripted.replies = [PLAN, act("create", path="link/outside.py", text="x")]
    session(scripted, root).run()
    assert not (root.parent / "outside.py").exists()


def test_a_model_that_never_acts_is_given_up(scripted: ScriptedServer, root: Path):
    scripted.replies = ["Sure!", "I would change the batch.", "{not json}", '{"no": "tool"}', PLAN]
    found = session(scripted, root).run()
    assert found.end == "lost" and found.steps == 4


@pytest.mark.parametrize(
    ("budget", "end"),
    [(Budget(steps=3), "steps"), (Budget(tokens=250), "tokens"), (Budget(minutes=2.5), "minutes")],
)
def test_a_session_ends_with_its_budget(scripted: ScriptedServer, root: Path, budget: Budget, end: str):
    scripted.replies = [act("list")] * 9
    now = iter(range(0, 10_000, 50))
    found = session(scripted, root, budget=budget, clock=lambda: float(next(now))).run()
    assert found.end == end and found.steps <= 3


def test_a_second_session_goes_on_where_the_first_was_stopped(scripted: ScriptedServer, root: Path, monkeypatch):
    scripted.replies = [PLAN, act("edit", path="train.py", old="4", new="8"), act("run_tests")]
    first = session(scripted, root)

    def stop() -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(first.tools, "run_tests", stop)
    assert first.run().end == "stopped"
    scripted.replies = [act("done", summary="Eight", why="w")]
    found = session(scripted, root).run()
    assert (found.end, found.plan["tasks"], found.edited) == ("done", "b", ("train.py",))
    assert found.steps == 3


def test_the_server_is_asked_again_after_a_failure_and_named_when_it_stays_away(scripted: ScriptedServer, root: Path):
    scripted.replies = [503, 429, PLAN]
    assert session(scripted, root).run().end == "done"
    scripted.replies = [500] * 9
    with pytest.raises(UserError, match="no answer from"):
        session(scripted, root.parent / "code").run()


@pytest.mark.parametrize(("status", "fix"), [(401, "OPENAI_API_KEY"), (404, "--model"), (400, "server says")])
def test_a_refusal_says_what_to_do(scripted: ScriptedServer, root: Path, status: int, fix: str):
    scripted.replies = [status]
    with pytest.raises(UserError) as problem:
        session(scripted, root).run()
    assert fix in str(problem.value.fix)


def test_tests_that_hang_are_ended(scripted: ScriptedServer, root: Path):
    scripted.replies = [PLAN, act("run_tests")]
    made = session(scripted, root)
    made.tools.test_command = [sys.executable, "-c", "import time; print('begun', flush=True); time.sleep(60)"]
    made.tools.timeout_s = 1.0
    made.run()
    assert "did not end in time\nbegun" in scripted.asked[-1]["messages"][-1]["content"]


def test_a_long_conversation_is_sent_shortened_with_roles_in_turn(scripted: ScriptedServer, root: Path):
    (root / "long.py").write_text("x = '" + "y" * 200 + "'\n" * 1000)
    scripted.replies = [act("create", path=f"n{i}.py", text="z" * 30_000) for i in range(5)]
    session(scripted, root).run()
    last = scripted.asked[-1]["messages"]
    assert sum(len(message["content"]) for message in last) < 60_000
    assert [message["role"] for message in last] == [("user", "assistant")[i % 2] for i in range(len(last))]


@pytest.mark.parametrize(
    ("text", "tool"),
    [
        ('{"tool": "list"}', "list"),
        ('words {"a": 1} more {"tool": "read", "path": "x"} end', "read"),
        ('```json\n{"tool": "edit", "new": "a {b} c\nd"}\n```', "edit"),
        ('```\n{"tool": "list"}\n```', "list"),
        ("nothing", None),
        ('["tool"]', None),
        ('{"tool": 3}', None),
    ],
)
def test_the_action_is_found_in_what_models_write(text: str, tool: str | None):
    found = parsed(text)
    assert (found or {}).get("tool") == tool
