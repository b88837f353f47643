"""The tools a model may call inside a text, and the threads in which they work so that no other text waits."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from intone.engine.calculator import calculator
from intone.engine.sandbox.box import Run, Sandbox
from intone.engine.sandbox.probe import weakness
from intone.errors import UserError, unknown_name

# in the order in which they are asked: what the calculator refuses is Python
TOOLS = ("calculator", "python")
# a sum this short takes less than a millisecond, so it is answered at once [measured: 0.8 ms for the slowest found]
QUICK_CHARACTERS = 200
# programs at once; a machine that is generating has no more cores to spare (guess)
NUM_WORKERS = 2


class ToolsBusy(RuntimeError):
    """More calls wait than the runner takes."""


def tool_names(tools: bool | str | Sequence[str]) -> tuple[str, ...]:
    """What a request asked for -> names in the order they are tried. True: the calculator; False: none.

    Raises UserError for a name that is no tool.
    """
    if isinstance(tools, bool):
        return TOOLS[:1] if tools else ()
    if not isinstance(tools, str | Sequence):
        raise UserError(f"tools {tools!r} is neither True nor False nor a list of names", value=repr(tools))
    wanted = (tools,) if isinstance(tools, str) else tuple(tools)
    for name in wanted:
        if name not in TOOLS:
            raise unknown_name("tool", name, TOOLS)
    return tuple(name for name in TOOLS if name in wanted)


class Call:
    """One call of a tool. name: the tool that answered, or the last that refused; output None: all refused.

    error: a fault of ours, so that there is no answer. They may be read once is_done is True, which submit() or
    poll() makes it: never while their caller looks away.
    """

    def __init__(self, names: tuple[str, ...], text: str) -> None:
        self.names = names
        self.text = text
        self.name = names[0]
        self.output: str | None = None
        self.error: Exception | None = None
        self.is_done = False
        self.is_cancelled = False
        self._run: Run | None = None
        self._lock = threading.Lock()

    def cancel(self) -> None:
        """Nobody wants the answer any more: a program that runs is ended, and poll() does not report the call."""
        with self._lock:
            self.is_cancelled = True
            if self._run is not None:
                self._run.kill()

    def wait_for(self, run: Run) -> str:
        """What a program prints; it ends early when the call is cancelled."""
        with self._lock:
            self._run = run
            if self.is_cancelled:
                run.kill()
        return run.wait().text


class ToolRunner:
    """Answers calls in threads of its own. Made by one thread, which submits and polls; close it after use.

    on_done is called from a worker's thread whenever poll() has something new; it must be quick.
    max_calls: calls that are neither answered nor cancelled.
    """

    def __init__(
        self, *, on_done: Callable[[], None] = lambda: None, max_calls: int = 256, sandbox: Sandbox | None = None
    ) -> None:
        self._on_done = on_done
        self._max_calls = max_calls
        self._sandbox = sandbox or Sandbox()
        self._weakness: tuple[str | None] | None = None  # (why Python is off,) once that is known
        self._lock = threading.Lock()
        self._testing = threading.Lock()
        self._open: set[Call] = set()
        self._done: list[Call] = []
        # the calculator has its own thread: a sum must not wait for programs. Threads start with the first call
        self._workers = {
            "calculator": ThreadPoolExecutor(1, thread_name_prefix="intone-calculator"),
            "python": ThreadPoolExecutor(NUM_WORKERS, thread_name_prefix="intone-python"),
        }

    def submit(self, names: tuple[str, ...], text: str) -> Call:
        """Asks the tools of tool_names() in their order until one answers.

        A call that the calculator can decide quickly is done already and not reported by poll(). Raises ToolsBusy.
        """
        call = Call(names, text)
        if names[0] == "calculator" and len(text) <= QUICK_CHARACTERS:
            call.output = calculator(text)
            if call.output is not None or len(names) == 1:
                call.is_done = True
                return call
            names = names[1:]
        with self._lock:
            if sum(not other.is_cancelled for other in self._open) >= self._max_calls:
                raise ToolsBusy(f"{self._max_calls} tool calls wait already")
            self._open.add(call)
        self._workers[names[0]].submit(self._work, call, names)
        return call

    def poll(self) -> list[Call]:
        """Calls that were answered since the last poll, in that order; cancelled ones are left out."""
        with self._lock:
            done, self._done = self._done, []
        for call in done:
            call.is_done = True
        return [call for call in done if not call.is_cancelled]

    def require(self, names: tuple[str, ...]) -> None:
        """Raises UserError where one of these tools is off. The first question for Python takes half a second."""
        if "python" in names and (reason := self._why_python_is_off()) is not None:
            raise UserError(
                f"the Python tool is off on this machine: {reason}",
                value="python",
                fix="ask for the tool calculator only",
            )

    def describe(self) -> dict[str, str]:
        """Each tool's name and "on", or "off: " and why. The first time takes half a second."""
        reason = self._why_python_is_off()
        return {"calculator": "on", "python": "on" if reason is None else f"off: {reason}"}

    def close(self) -> None:
        """Cancels what runs and waits for it; harmless when called twice."""
        with self._lock:
            waiting = list(self._open)
        for call in waiting:
            call.cancel()
        for workers in self._workers.values():
            workers.shutdown()
        self._sandbox.close()

    def _why_python_is_off(self) -> str | None:
        with self._testing:
            if self._weakness is None:
                try:
                    self._weakness = (weakness(self._sandbox),)
                except OSError as error:
                    self._weakness = (f"it could not be tested: {error}",)
            return self._weakness[0]

    # from here on: the workers' threads

    def _work(self, call: Call, names: tuple[str, ...]) -> None:
        """Asks the first of names; the next one in its own workers where this one refuses."""
        try:
            if not call.is_cancelled:
                call.name = names[0]
                call.output = calculator(call.text) if names[0] == "calculator" else self._python(call)
                if call.output is None and len(names) > 1:
                    self._workers[names[1]].submit(self._work, call, names[1:])
                    return
        except Exception as error:
            call.error = error
        with self._lock:
            self._open.discard(call)
            self._done.append(call)
        self._on_done()

    def _python(self, call: Call) -> str | None:
        return None if self._why_python_is_off() is not None else call.wait_for(self._sandbox.prepared(call.text))
