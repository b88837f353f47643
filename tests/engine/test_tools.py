import os
import sys
import threading
import time
from queue import Queue

import pytest

from intone.engine.calculator import calculator
from intone.engine.engine import Engine
from intone.engine.requests import Done, Request, Token, ToolCall
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
    assert (call.name, call.output) == ("calculator", "200")
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
    assert all(call.is_cancelled for call in calls) and not runner._open and answered.empty()
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


def test_a_call_is_done_when_it_is_polled_and_not_before(runner_of):
    """A worker that is quicker than its caller must not look like an answer that was given at once."""
    for _ in range(50):
        finished = threading.Event()
        runner = ToolRunner(on_done=finished.set)
        call = runner.submit(("calculator",), "+".join(["1"] * QUICK_CHARACTERS))
        assert finished.wait(timeout=60)
        assert not call.is_done
        assert runner.poll() == [call] and call.is_done
        runner.close()


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


# --- inside the engine

PROMPT = [5, 200, 17, 5, 9]


@pytest.fixture
def engine_saying(scripted_model, byte_tokenizer):
    """Makes engines whose model says a text, in which <|names|> are special tokens; closes them after the test."""
    engines = []

    def make(text, *, prompt=PROMPT, **options):
        script = []
        for piece in text.replace("<|", "\0<|").replace("|>", "|>\0").split("\0"):
            script += [byte_tokenizer.special(piece)] if piece.startswith("<|") else list(piece.encode())
        model = scripted_model(script, prompt_length=len(prompt), context=256)
        engines.append(Engine(model, byte_tokenizer, **options))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


def called(code, answer):
    """A text that calls a tool; the model's words at the places of the tool's answer are never heard."""
    return f"so <|python_start|>{code}<|python_end|>" + "?" * (len(answer) + 2) + "fine<|assistant_end|>"


@pytest.mark.usefixtures("has_python")
def test_what_a_program_prints_becomes_part_of_the_text(engine_saying):
    engine = engine_saying(called("print(sum(range(10)))", "45"))
    events = list(engine.submit(Request(PROMPT, tools=BOTH)))
    assert ToolCall(0, "python", "print(sum(range(10)))", "45") in events
    tokens = [event for event in events if isinstance(event, Token)]
    assert "".join(token.text for token in tokens) == "so fine"
    assert bytes(token.id for token in tokens if token.logprob is None and token.id < 256) == b"45"
    assert [type(event) for event in events[-2:]] == [Token, Done]


@pytest.mark.parametrize("num_guesses", [0, 4])
def test_an_answer_that_comes_at_once_waits_for_the_end_of_guesses(engine_saying, byte_tokenizer, num_guesses):
    """The guesses are right, and reach beyond the call: what follows it is the tool's answer all the same."""
    said = called("7*8", "56")
    start, end = (byte_tokenizer.special(name) for name in ("<|python_start|>", "<|python_end|>"))
    prompt = [1, start, *b"7*8", end, *b"????"]
    engine = engine_saying(said, prompt=prompt, num_guesses=num_guesses)
    completion = engine.generate([Request(prompt)])[0][0]
    assert (completion.text, completion.reason) == ("so fine", "stop")
    assert bytes(token for token in completion.ids if token < 256) == b"so 7*856fine"
    assert engine.stats().num_right_guesses == (2 if num_guesses else 0)


@pytest.mark.usefixtures("has_python")
def test_tools_answer_as_each_request_asked(engine_saying):
    engine = engine_saying(called("50/5", "10"))
    wanted = [True, False, "calculator", ["python", "calculator"]]
    answers = [samples[0].tool_calls for samples in engine.generate([Request(PROMPT, tools=tools) for tools in wanted])]
    call = ToolCall(0, "calculator", "50/5", "10")
    assert answers == [[call], [], [call], [call]]
    completion = engine_saying(called("50/5", "10.0")).generate([Request(PROMPT, tools="python")])[0][0]
    assert completion.tool_calls == [ToolCall(0, "python", "50/5", "10.0")]
    completion = engine_saying(called("[1]", "")).generate([Request(PROMPT, tools=True)])[0][0]
    assert completion.tool_calls == [ToolCall(0, "calculator", "[1]", None)]


@pytest.mark.usefixtures("has_python")
def test_other_texts_go_on_while_a_program_runs_and_a_cancelled_one_is_killed(engine_saying):
    engine = engine_saying(called(ENDLESS, ""), sandbox=Sandbox(Limits(wall_s=300, cpu_s=300)), num_slots=3)
    first = engine.submit(Request(PROMPT, tools="python", n=2))
    events = iter(first)
    num_said = 2 * (len("so ") + len(ENDLESS) + 2)  # both have called
    for _ in range(num_said):
        next(events)
    others = engine.generate([Request(PROMPT, tools=False, n=4), Request(PROMPT, tools=True)])
    assert [completion.reason for samples in others for completion in samples] == ["stop"] * 5
    runs = [call._run for call in engine._worker.tools._open]
    first.cancel()
    assert [completion.reason for completion in first.result()] == ["cancelled"] * 2
    for _ in range(6000):  # a minute at most; the programs would take five
        if not engine._worker.tools._open:
            break
        threading.Event().wait(0.01)
    assert not engine._worker.tools._open
    for run in runs:
        if run is not None and run.process_group is not None:
            with pytest.raises(ProcessLookupError):
                os.killpg(run.process_group, 0)


@pytest.mark.usefixtures("has_python")
def test_all_rows_may_wait_for_programs_and_nothing_spins(engine_saying):
    engine = engine_saying(called("import time; time.sleep(0.5)", ""), num_slots=2)
    start = time.process_time()
    completions = engine.generate([Request(PROMPT, tools="python", n=4)])[0]
    assert [completion.text for completion in completions] == ["so fine"] * 4
    assert [call.output for completion in completions for call in completion.tool_calls] == [""] * 4
    # a thread that looks again and again for a second would take that second
    assert time.process_time() - start < 0.6


@pytest.mark.usefixtures("has_python")
def test_a_program_without_an_end_is_stopped_and_the_text_goes_on(engine_saying):
    note = "[stopped: out of time]"
    engine = engine_saying(called(ENDLESS, note), sandbox=Sandbox(Limits(wall_s=0.2)))
    completion = engine.generate([Request(PROMPT, tools="python")])[0][0]
    assert (completion.text, completion.reason) == ("so fine", "stop")
    assert completion.tool_calls == [ToolCall(0, "python", ENDLESS, note)]


@pytest.mark.usefixtures("has_python")
def test_an_engine_that_is_closed_does_not_wait_for_programs(engine_saying):
    engine = engine_saying(called(ENDLESS, ""), sandbox=Sandbox(Limits(wall_s=3000, cpu_s=3000)))
    handle = engine.submit(Request(PROMPT, tools="python"))
    while not engine._worker.tools._open:
        threading.Event().wait(0.01)
    engine.close()
    assert [completion.reason for completion in handle.result()] == ["cancelled"]


def test_python_that_is_off_is_refused_before_anything_starts(engine_saying, monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    engine = engine_saying(called("7", "7"))
    with pytest.raises(UserError, match="the Python tool is off on this machine: it needs the system call filter"):
        engine.generate([Request(PROMPT), Request(PROMPT, tools=["python"])])
    assert engine.num_token_forwards == 0
    assert engine.generate([Request(PROMPT)])[0][0].tool_calls[0].output == "7"


def test_a_tool_that_breaks_fails_its_request_and_no_other(engine_saying):
    class Broken(Sandbox):
        def prepared(self, code):
            raise RuntimeError("no luck")

    engine = engine_saying(called("[7]", ""), sandbox=Broken())
    engine._worker.tools._weakness = (None,)
    completions = engine.generate([Request(PROMPT, tools="python"), Request(PROMPT, tools=False)])
    assert [(samples[0].reason, samples[0].error) for samples in completions] == [("error", "no luck"), ("stop", None)]


def test_unknown_tools_are_refused():
    with pytest.raises(UserError, match="unknown tool 'bash'"):
        Request(PROMPT, tools=["bash"])
