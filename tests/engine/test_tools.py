import sys
import threading
from queue import Queue

import pytest

from intone.engine.calculator import calculator
from intone.engine.sandbox.box import Limits, Sandbox
from intone.engine.tools import QUICK_CHARACTERS, ToolRunner, ToolsBusy, tool_names
from intone.errors import UserError

BOTH = ("calculator", "python")
ENDLESS = "while True: pass"


@pytest.fixture
def runner_of():
    """Makes runners, each with a queue of what poll() reported, and closes them after the test."""
    runners = []

    def make(**options):
        answered = Queue()
        runner = ToolRunner(on_done=lambda: [answered.put(call) for call in runner.poll()], **options)
        runners.append(runner)
        return runner, answered

    yield make
    for runner in runners:
        runner.close()


@pytest.fixture(scope="module")
def has_python():
    with_sandbox = ToolRunner()
    reason = with_sandbox.describe()["python"]
    with_sandbox.close()
    if reason != "on":
        pytest.skip(f"Python is {reason}")


def test_what_a_request_asks_for():
    assert tool_names(True) == ("calculator",)
    assert tool_names(False) == tool_names(()) == ()
    assert tool_names("python") == ("python",)
    assert tool_names(["python", "calculator", "python"]) == BOTH
    with pytest.raises(UserError, match="unknown tool 'pyhton'") as raised:
        tool_names(["pyhton"])
    assert "python" in raised.value.fix
    with pytest.raises(UserError, match="tools 5 is neither True nor False nor a list of names"):
        tool_names(5)


def test_short_sums_are_answered_at_once_without_a_thread(runner_of):
    runner, answered = runner_of()
    before = threading.active_count()
    call = runner.submit(("calculator",), "12*12")
    assert (call.is_done, call.name, call.output) == (True, "calculator", "144")
    call = runner.submit(("calculator",), "import os")
    assert (call.is_done, call.name, call.output) == (True, "calculator", None)
    assert runner.submit(BOTH, "12*12").output == "144"
    assert threading.active_count() == before and answered.empty()


def test_long_sums_are_answered_by_a_worker(runner_of):
    runner, answered = runner_of()
    text = "+".join(["1"] * QUICK_CHARACTERS)
    call = runner.submit(("calculator",), text)
    assert answered.get(timeout=60) is call
    assert (call.is_done, call.name, call.output) == (True, "calculator", "200")
    refused = runner.submit(("calculator",), "x" * (QUICK_CHARACTERS + 1))
    assert answered.get(timeout=60) is refused and refused.output is None


@pytest.mark.usefixtures("has_python")
def test_what_the_calculator_refuses_is_python_where_that_is_asked_for(runner_of):
    runner, answered = runner_of()
    for names, text, name, output in [
        (BOTH, "print(sum(range(10)))", "python", "45"),
        (BOTH, "'ab' * 300 " + " " * QUICK_CHARACTERS, "python", repr("ab" * 300)),
        (BOTH, "1/0", "python", "ZeroDivisionError: division by zero (line 1)"),
        (("python",), "50/5", "python", "10.0"),
    ]:
        call = runner.submit(names, text)
        assert answered.get(timeout=60) is call
        assert (call.name, call.output) == (name, output)
    assert runner.submit(BOTH, "50/5").output == "10"


@pytest.mark.usefixtures("has_python")
def test_sums_do_not_wait_for_programs_and_cancelled_programs_end(runner_of):
    runner, answered = runner_of(sandbox=Sandbox(Limits(wall_s=300, cpu_s=300)))
    endless = [runner.submit(("python",), ENDLESS) for _ in range(5)]
    text = "+".join(["1"] * QUICK_CHARACTERS)
    runner.submit(("calculator",), text)
    assert answered.get(timeout=60).output == "200"
    for call in endless:
        call.cancel()
    last = runner.submit(("python",), "7")
    assert answered.get(timeout=60) is last and last.output == "7"
    assert answered.empty()


@pytest.mark.usefixtures("has_python")
def test_closing_ends_programs_and_is_harmless_twice(runner_of):
    runner, answered = runner_of(sandbox=Sandbox(Limits(wall_s=300, cpu_s=300)))
    calls = [runner.submit(("python",), ENDLESS) for _ in range(3)]
    runner.close()
    runner.close()
    assert all(call.is_done for call in calls) and answered.empty()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("intone-python")]


@pytest.mark.usefixtures("has_python")
def test_more_calls_than_allowed_are_refused(runner_of):
    runner, answered = runner_of(max_calls=2, sandbox=Sandbox(Limits(wall_s=300, cpu_s=300)))
    calls = [runner.submit(("python",), ENDLESS) for _ in range(2)]
    with pytest.raises(ToolsBusy, match="2 tool calls wait"):
        runner.submit(("python",), "7")
    assert runner.submit(BOTH, "2+3").output == "5"
    calls[0].cancel()
    calls[1].cancel()
    runner.submit(("python",), "7")
    assert answered.get(timeout=60).output == "7"


def test_where_python_cannot_be_contained_it_is_off_and_says_why(runner_of, monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    runner, answered = runner_of()
    reason = "it needs the system call filter of Linux, this is darwin"
    assert runner.describe() == {"calculator": "on", "python": f"off: {reason}"}
    runner.require(("calculator",))
    with pytest.raises(UserError, match=reason) as raised:
        runner.require(BOTH)
    assert "calculator" in raised.value.fix
    call = runner.submit(("python",), "print(1)")
    assert answered.get(timeout=60) is call
    assert call.output is None


def test_a_fault_of_ours_is_reported_and_not_swallowed(runner_of):
    class Broken(Sandbox):
        def prepared(self, code):
            raise RuntimeError("no luck")

    runner, answered = runner_of(sandbox=Broken())
    runner._weakness = (None,)
    call = runner.submit(("python",), "7")
    assert answered.get(timeout=60) is call
    assert str(call.error) == "no luck" and call.output is None and not runner._open


def test_a_quick_sum_takes_no_longer_than_a_step():
    import time

    slowest = ["+".join(["3**200/7**150"] * 14), "(" * 99 + "1" + ")" * 99, "**0.5".join(["2"] * 33),
               "+".join(f"1/{10**9 + number}" for number in range(15)), "'" + "\\'" * 90 + "'.count('a')"]  # fmt: skip
    assert all(len(text) <= QUICK_CHARACTERS for text in slowest)
    for text in slowest:
        times = []
        for _ in range(5):
            start = time.thread_time()
            calculator(text)
            times.append(time.thread_time() - start)
        assert min(times) < 0.005
