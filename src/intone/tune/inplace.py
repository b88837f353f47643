"""Probes of somebody's training step in this process: measured, agreed on by all processes, and everything put back.

As a program (`python -m intone.tune.inplace MODULE:BUILD`) it is the child of find.py: blocks on command, blocks.py.
"""

import contextlib
import copy
import gc
import importlib
import random
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from intone.blocks import Exchange, whole_number
from intone.child import die_with_parent
from intone.errors import UserError
from intone.rates import waiter
from intone.records import Outcome
from intone.train.memory import free_bytes, peak_bytes, reserved_bytes, reset_peak, resident_bytes
from intone.tune.found import Found, Measure, ProbeFailed, Sample
from intone.worker import is_out_of_memory, limit_memory, out_of_memory_message, short

COMMAND = ("rows", "passes", "steps")


class StepProbe:
    """Optimizer steps made of somebody's passes. Changes weights, moments and gradients: use it inside kept()."""

    def __init__(
        self, step: Callable[[int], Any], model: nn.Module, optimizer: torch.optim.Optimizer | None
    ) -> None:  # fmt: skip
        self._step, self._model, self._optimizer = step, model, optimizer
        self._device = next((p.device for p in model.parameters()), torch.device("cpu"))
        self._wait = waiter(self._device)
        self._clear()
        self.free_bytes = free_bytes(self._device)
        self._start_bytes = resident_bytes(self._device) or 0
        self._known: set[int] = set()

    def __call__(self, rows: int, passes: int, steps: int) -> Sample:
        """See batch.Measure. A size that was not seen yet does one step more, unmeasured."""
        try:
            if rows not in self._known:
                self._known.add(rows)
                reset_peak(self._device)
                self._steps(rows, passes, 1)
            else:
                reset_peak(self._device)
            pass_s, update_s = self._steps(rows, passes, steps)
        except Exception as error:
            # the traceback would keep the pass's tensors alive
            out_of_memory, message = is_out_of_memory(error), short(error)
            if not out_of_memory:
                raise
            error.__traceback__ = None
        else:
            peak = reserved_bytes(self._device) or peak_bytes(self._device)
            return Sample(pass_s, update_s, None if peak is None else max(0, peak - self._start_bytes))
        self._clear()
        raise ProbeFailed(message, out_of_memory=out_of_memory)

    def _steps(self, rows: int, passes: int, steps: int) -> tuple[float, float]:
        """(seconds per pass, seconds per update)."""
        passes_s = updates_s = 0.0
        for _ in range(steps):
            self._wait()
            begin_s = time.perf_counter()
            for _ in range(passes):
                self._step(rows)
            if all(parameter.grad is None for parameter in self._model.parameters()):
                fix = "let step(rows) call backward() on its loss, and leave updates and zero_grad() to your loop"
                raise UserError("step left no gradients in the model", fix=fix)
            self._wait()
            middle_s = time.perf_counter()
            if self._optimizer is not None:
                self._optimizer.step()
            self._model.zero_grad(set_to_none=True)
            self._wait()
            passes_s += middle_s - begin_s
            updates_s += time.perf_counter() - middle_s
        return passes_s / steps / passes, updates_s / steps

    def _clear(self) -> None:
        self._model.zero_grad(set_to_none=True)
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()


# --- putting back -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def kept(model: nn.Module, optimizer: torch.optim.Optimizer | None) -> Iterator[None]:
    """Afterwards weights, buffers, gradients, optimizer state, modes and random states are what they were, bit for bit.

    The tensors stay the same objects. Copies lie in main memory meanwhile, so a GPU's is free for the probes.
    """
    tensors = [*model.parameters(), *model.buffers()]
    values = [aside(tensor) for tensor in tensors]
    grads = [(p, p.grad, None if p.grad is None else aside(p.grad)) for p in model.parameters()]
    modes = [(module, module.training) for module in model.modules()]
    moments = None if optimizer is None else optimizer_state(optimizer)
    randoms = random_states()
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in zip(tensors, values, strict=True):
                tensor.copy_(value)
            for parameter, grad, grad_value in grads:
                parameter.grad = grad
                if grad is not None and grad_value is not None:
                    grad.copy_(grad_value)
            if optimizer is not None and moments is not None:
                put_back_optimizer(optimizer, moments)
        for module, training in modes:
            module.training = training
        put_back_random(randoms)


def aside(tensor: torch.Tensor) -> torch.Tensor:
    """A copy in main memory."""
    return tensor.detach().to("cpu", copy=True)


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """What an optimizer holds: its tensors with copies, copies of everything else."""
    state = {}
    for parameter, entries in optimizer.state.items():
        state[parameter] = {
            key: (value, aside(value)) if isinstance(value, torch.Tensor) else (None, copy.deepcopy(value))
            for key, value in entries.items()
        }
    groups = [
        {key: (value, aside(value)) if isinstance(value, torch.Tensor) else (None, copy.deepcopy(value))
         for key, value in group.items() if key != "params"}
        for group in optimizer.param_groups
    ]  # fmt: skip
    return {"state": state, "groups": groups}


def put_back_optimizer(optimizer: torch.optim.Optimizer, kept_: dict[str, Any]) -> None:
    """The inverse of optimizer_state(): moments that were made since are gone."""
    for parameter in list(optimizer.state):
        if parameter not in kept_["state"]:
            del optimizer.state[parameter]
    for parameter, entries in kept_["state"].items():
        put_back_entries(optimizer.state[parameter], entries)
    for group, entries in zip(optimizer.param_groups, kept_["groups"], strict=True):
        params = group["params"]
        put_back_entries(group, entries)
        group["params"] = params


def put_back_entries(now: dict[str, Any], entries: dict[str, tuple[Any, Any]]) -> None:
    for key in list(now):
        if key not in entries and key != "params":
            del now[key]
    for key, (tensor, value) in entries.items():
        if tensor is not None:
            tensor.copy_(value)
        now[key] = value if tensor is None else tensor


def random_states() -> dict[str, Any]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    return {"torch": torch.get_rng_state(), "cuda": cuda, "numpy": np.random.get_state(), "python": random.getstate()}


def put_back_random(states: dict[str, Any]) -> None:
    torch.set_rng_state(states["torch"])
    if states["cuda"] is not None:
        torch.cuda.set_rng_state_all(states["cuda"])
    np.random.set_state(states["numpy"])
    random.setstate(states["python"])


# --- many processes ---------------------------------------------------------------------------------------------------


class Agreement:
    """What all processes of torch.distributed see alike; with one process everything is as it is.

    Every method must be called by all of them in the same order. A search then takes the same turns everywhere: times
    and memory are the largest of all, free memory is the least, and the clock is the first process's.
    """

    def __init__(self) -> None:
        is_many = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        self._many = is_many
        self._device = torch.device("cpu")
        if is_many and dist.get_backend() == "nccl":
            self._device = torch.device("cuda", torch.cuda.current_device())

    def _reduce(self, values: list[float], op: Any) -> list[float]:
        if not self._many:
            return values
        tensor = torch.tensor(values, dtype=torch.float64, device=self._device)
        dist.all_reduce(tensor, op=op)
        return [float(value) for value in tensor.tolist()]

    def least(self, size: int | None) -> int | None:
        """The smallest of all; one that is unknown does not count unless all are."""
        [value] = self._reduce([float("inf") if size is None else float(size)], dist.ReduceOp.MIN)
        return None if value == float("inf") else int(value)

    def clock(self) -> float:
        """The first process's monotonic time."""
        now_s = time.monotonic()
        if not self._many:
            return now_s
        tensor = torch.tensor([now_s], dtype=torch.float64, device=self._device)
        dist.broadcast(tensor, src=0)
        return float(tensor[0])

    def measure(self, probe: Measure) -> Measure:
        """The probe, with what the slowest and the fullest process saw; out of memory where any was."""

        def together(rows: int, passes: int, steps: int) -> Sample:
            failure: ProbeFailed | None = None
            sample = Sample(0.0, 0.0, None)
            try:
                sample = probe(rows, passes, steps)
            except ProbeFailed as error:
                failure = error
            growth = -1.0 if sample.growth_bytes is None else float(sample.growth_bytes)
            seen = [sample.pass_s, sample.update_s, growth, float(failure is not None)]
            pass_s, update_s, most, failed = self._reduce(seen, dist.ReduceOp.MAX)
            if failure is not None:
                raise failure
            if failed:
                raise ProbeFailed("memory ran out in another process", out_of_memory=True)
            return Sample(pass_s, update_s, None if most < 0 else int(most))

        return together

    def from_first(self, search: Callable[[], Found]) -> Found:
        """What the first process found, everywhere; its failure too."""
        if not self._many:
            return search()
        said: list[Any] = [None]
        if dist.get_rank() == 0:
            try:
                said = [search().as_json()]
            except ProbeFailed as error:
                said = [{"failed": str(error), "out_of_memory": error.out_of_memory}]
            except UserError as error:
                said = [{"refused": error.as_json()}]
        dist.broadcast_object_list(said, src=0)
        if "refused" in said[0]:
            refused = said[0]["refused"]
            raise UserError(refused["message"], value=refused["value"], fix=refused["fix"])
        if "failed" in said[0]:
            raise ProbeFailed(said[0]["failed"], out_of_memory=said[0]["out_of_memory"])
        return Found.from_json(said[0])


# --- the child --------------------------------------------------------------------------------------------------------


def load_build(name: str) -> tuple[Callable[[int], Any], nn.Module, torch.optim.Optimizer | None]:
    """What "module:build" makes. Raises UserError where it is not there or makes something else."""
    module_name, _, function = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name != module_name.partition(".")[0] and error.name != module_name:
            raise  # one that theirs imports
        raise UserError(f"there is no module {error.name!r}", value=name, fix="run this from its folder") from None
    build = getattr(module, function, None)
    if not callable(build):
        what = f"has no {function!r}" if build is None else f"has {function!r}, which is no function"
        raise UserError(f"{module_name} {what}", value=name, fix=f"define {function}() there")
    made = build()
    fix = f"let {function}() return (step, model, optimizer)"
    if not isinstance(made, tuple) or len(made) != 3 or not callable(made[0]) or not isinstance(made[1], nn.Module):
        words = ", ".join(type(part).__name__ for part in made) if isinstance(made, tuple) else type(made).__name__
        raise UserError(f"it returned ({words}), not (step, model, optimizer)", value=name, fix=fix)
    return made


def serve(name: str, exchange: Exchange) -> None:
    """Answers blocks {rows, passes, steps} with {pass_s, update_s, growth_bytes} until the end."""
    probe = StepProbe(*load_build(name))
    exchange.ready(0.0, 0.0, facts={"free_bytes": probe.free_bytes})
    for command in exchange.blocks(COMMAND):
        begin_s = time.perf_counter()
        sample = probe(*(whole_number(command, key) for key in COMMAND))
        exchange.answer({**sample.__dict__, "seconds": time.perf_counter() - begin_s})


def main(argv: list[str]) -> int:
    """The child of find.ForeignProbe; every way to fail is said in one line."""
    die_with_parent()
    limit_memory()
    exchange = Exchange.on_standard_streams()
    try:
        serve(argv[0], exchange)
    except ProbeFailed as error:
        exchange.fail(Outcome("out_of_memory", None, str(error)))
    except UserError as error:
        exchange.fail(Outcome("bad_input", None, error.message, error.fix))
    except Exception as error:  # whatever it is, the parent must be able to say it
        if is_out_of_memory(error):
            exchange.fail(Outcome("out_of_memory", None, out_of_memory_message(error)))
        else:
            exchange.fail(Outcome("error", None, short(error)))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
