"""`intone.tune.find_batch`: the search for the micro-batch, for anybody's PyTorch training step. See docs/tune.md."""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from intone.errors import UserError, unknown_name
from intone.prove.live import LineChild, LiveFailed
from intone.tune.batch import SEARCH_S, Method, passes_of, search_batch
from intone.tune.curve import curve_text
from intone.tune.found import Found, ProbeFailed, Sample, Size

if TYPE_CHECKING:
    import torch
    from torch import nn

Step = Callable[[int], Any]  # one forward and backward pass over so many rows; gradients add up
SHARE = 0.8  # of free memory that a search in place may use: the process has other work to do afterwards
START_S = 300.0  # of a foreign child: imports, a model from disk, a first step


@dataclass(frozen=True)
class BatchChoice:
    """The micro-batch that does a step's rows in the fewest seconds, and the curve behind it. print() shows both."""

    rows: int  # to give to the step
    passes: int  # steps per optimizer update
    reason: str
    left: str  # what was left on the table
    curve: tuple[Size, ...]
    found: Found
    rows_per_step: int

    def __str__(self) -> str:
        return curve_text(self.found, self.rows_per_step, unit="rows/s", name="rows")


def find_batch(
    step: "str | Step", *, rows_per_step: int, model: "nn.Module | None" = None,
    optimizer: "torch.optim.Optimizer | None" = None, method: Method = "line", budget_s: float = SEARCH_S,
) -> BatchChoice:  # fmt: skip
    """The fastest micro-batch of a training step that sees rows_per_step rows per optimizer update.

    step "module:build": build() -> (step, model, optimizer) is called in a child process, which does the probing, so
    that nothing here changes and an out-of-memory error there is a row of the curve.
    step a function: step(rows) does one forward and backward pass over so many rows, here in this process, on model,
    which optimizer updates. It stays below 80 % of free memory. Weights, buffers, gradients, optimizer state,
    train/eval modes and the random states of torch, NumPy and Python are afterwards bit for bit what they were; what
    else step changes (a loader's position, a scheduler) is not. Under torch.distributed every process calls this, and
    all get one answer: the slowest and the fullest of them decide.

    Raises UserError where the call or what build() returns makes no sense, and where a step leaves no gradients;
    ProbeFailed where not even one row can be done. What step itself raises passes through; from a child it is quoted.
    """
    if isinstance(rows_per_step, bool) or not isinstance(rows_per_step, int) or rows_per_step < 1:
        fix = "give the rows of an update as a whole number"
        raise UserError(f"rows_per_step is {rows_per_step!r}", value=rows_per_step, fix=fix)
    if method not in get_args(Method):
        raise unknown_name("method", str(method), get_args(Method))
    if not budget_s > 0:
        raise UserError(f"budget_s is {budget_s!r}", value=budget_s, fix=f"give seconds, by default {SEARCH_S:g}")
    if isinstance(step, str):
        module_and_function(step)  # before many processes meet: all of them raise it
        if model is not None or optimizer is not None:
            raise UserError("model and optimizer come from build()", value=step, fix="give the name alone")
        return in_child(step, rows_per_step, method, budget_s)
    if model is None:
        raise UserError("find_batch needs the model that step trains", fix="find_batch(step, model=..., optimizer=...)")
    return in_place(step, rows_per_step, model, optimizer, method, budget_s)


def in_place(
    step: Step, rows_per_step: int, model: "nn.Module", optimizer: "torch.optim.Optimizer | None", method: Method,
    budget_s: float,
) -> BatchChoice:  # fmt: skip
    """Probes in this process, and puts everything back."""
    from intone.tune.inplace import Agreement, StepProbe, kept

    with kept(model, optimizer):
        probe = StepProbe(step, model, optimizer)
        together = Agreement()
        free = together.least(None if probe.free_bytes is None else int(SHARE * probe.free_bytes))
        found = search_batch(
            together.measure(probe), rows_per_step, free, method=method, budget_s=budget_s, clock=together.clock
        )
    return answer(found, rows_per_step)


def in_child(name: str, rows_per_step: int, method: Method, budget_s: float) -> BatchChoice:
    """Probes in a child process that imports "module:build". Under torch.distributed the first process asks."""
    if "torch" in sys.modules:
        from intone.tune.inplace import Agreement

        together = Agreement()
        found = together.from_first(lambda: search_in_child(name, rows_per_step, method, budget_s))
    else:
        found = search_in_child(name, rows_per_step, method, budget_s)
    return answer(found, rows_per_step)


def search_in_child(name: str, rows_per_step: int, method: Method, budget_s: float) -> Found:
    begin_s = time.monotonic()
    with ForeignProbe(name) as probe:
        found = search_batch(probe, rows_per_step, probe.free_bytes, method=method, budget_s=budget_s)
    return Found(**{**found.__dict__, "seconds": time.monotonic() - begin_s})


def answer(found: Found, rows_per_step: int) -> BatchChoice:
    passes = passes_of(rows_per_step, found.rows)
    return BatchChoice(found.rows, passes, found.reason, found.left, found.curve, found, rows_per_step)


class ForeignProbe:
    """Steps of somebody's "module:build" in a child, started again after it died. Use it in a with statement."""

    def __init__(self, name: str) -> None:
        module_and_function(name)
        self.name = name
        self._child: LineChild | None = None
        self._start: dict[str, Any] = {}

    def __enter__(self) -> "ForeignProbe":
        return self

    def __exit__(self, *_: object) -> None:
        if self._child is not None:
            self._child.close()

    @property
    def free_bytes(self) -> int | None:
        self._started()
        value = self._start["free_bytes"]
        return None if value is None else int(value)

    def _started(self) -> LineChild:
        if self._child is None:
            # the person's module is found from where they stand, as `python -m` would find it
            search = os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
            argv = [sys.executable, "-m", "intone.tune.inplace", self.name]
            self._child = LineChild(argv, {"PYTHONPATH": search}, name=self.name)
            with self._telling():
                self._start = dict(self._child.wait_ready(START_S).facts)
        return self._child

    def __call__(self, rows: int, passes: int, steps: int) -> Sample:
        """See batch.Measure."""
        with self._telling():
            said = self._started().block(rows=rows, passes=passes, steps=steps)
        return Sample(said["pass_s"], said["update_s"], said["growth_bytes"])

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except LiveFailed as error:
            if self._child is not None:
                self._child.close()
            self._child = None
            if error.outcome.outcome == "bad_input":
                raise UserError(error.outcome.message, value=self.name, fix=error.outcome.fix) from None
            out_of_memory = error.outcome.outcome == "out_of_memory"
            raise ProbeFailed(str(error), out_of_memory=out_of_memory) from None


def module_and_function(name: str) -> tuple[str, str]:
    """The two words of "my_training:build". Raises UserError for anything else."""
    module, _, function = name.partition(":")
    if not (module and function):
        raise UserError(f"{name!r} is no module:function", value=name, fix='for example "my_training:build"')
    if module.endswith(".py") or "/" in module:
        fix = f'write "{Path(module).stem}:{function}" and call this from its folder'
        raise UserError(f"{name!r} names a file, not a module", value=name, fix=fix)
    return module, function
