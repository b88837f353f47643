"""The stage's real worker with clocks in it: `python -m intone.optimise.stages.watch PLAN`, a child of the look.

PLAN is a JSON file: {worker, folder, out, warm, plain, split, eager, writes}. The worker's module runs the job in
folder; around its steps stand clocks: after the warm steps come plain ones, timed as they are, then split ones, in
which the device is waited for around every part, then two under the profiler. Where PyTorch's operators run one by one
(eager) they are then listened to for constants, and products whose sizes do not fit are timed beside others. writes:
the stage learns from its own answers, whose writing has clocks too. What was seen is written to out. Nothing of the
computation is changed. The job has at least num_steps(plan) steps.
"""

import contextlib
import importlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import numpy as np
import torch

from intone.child import PACKAGE_PARENT
from intone.data.loader import Batch, Prefetcher
from intone.optimise.probe.intone_probe_constant import NUM_STEPS as LISTENED
from intone.optimise.probe.intone_probe_constant import Constants
from intone.optimise.probe.intone_probe_twin import twins
from intone.paths import read_json, write_json
from intone.rates import waiter
from intone.train import step as step_module
from intone.train.memory import peak_bytes, reset_peak, resident_bytes
from intone.train.step import StepResult, TrainStep

PROFILED = 2
LOOKED_AT = 3  # steps whose batches are looked at; they lie within the warm ones
HERE = (str(Path(__file__)), str(Path(__file__).parents[1] / "probe"))  # code that is not part of the training


def num_steps(plan: dict[str, Any]) -> int:
    """Steps that a job needs for all of this; the last one only ends the interval before it."""
    return int(plan["warm"] + plan["plain"] + plan["split"] + PROFILED + (LISTENED if plan["eager"] else 0) + 1)


class Watch:
    """What is known so far. One training per process."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self.plan = plan
        self.first_split = plan["warm"] + plan["plain"]
        self.first_profiled = self.first_split + plan["split"]
        self.count = 0  # steps that began
        self.first_s: float | None = None  # of the first step, with compiling
        self.begins: list[float] = []  # of plain steps, and of the first one behind them
        self.parts: dict[str, float] = {}
        self.split_begin = self.split_s = 0.0
        self.looks: list[dict[str, Any]] = []
        self.passes = 0
        self.logits_bytes = 0
        self.memory: dict[str, int] = {}
        self.graphs_at_warm = 0
        self.profiler: Any = None
        self.constants: Any = None
        self.facts: dict[str, Any] = {}
        self.written: list[int] = []  # tokens of the answers of each step
        self.wait: Callable[[], None] = lambda: None

    @property
    def is_splitting(self) -> bool:
        return self.first_split < self.count <= self.first_profiled

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """The seconds inside count for the part, where steps are split."""
        if not self.is_splitting:
            yield
            return
        self.wait()
        begin_s = time.perf_counter()
        try:
            yield
        finally:
            self.wait()
            self.add(name, time.perf_counter() - begin_s)

    def add(self, name: str, seconds: float) -> None:
        self.parts[name] = self.parts.get(name, 0.0) + seconds

    @contextlib.contextmanager
    def rest(self, name: str) -> Iterator[None]:
        """The seconds inside that no part inside counts, where steps are split."""
        before, begin_s = sum(self.parts.values()), time.perf_counter()
        yield
        if self.is_splitting:
            inner = sum(self.parts.values()) - before
            self.add(name, max(0.0, time.perf_counter() - begin_s - inner))

    # --- steps ----------------------------------------------------------------------------------------------------

    def step_begins(self, runner: Any) -> None:
        """Before the work of every step: ends the interval of the one before it."""
        if self.count == 0:
            self.wait = waiter(runner._device)
            self.note_start(runner)
        if self.count in (self.plan["warm"], self.first_split, self.first_profiled, self.first_profiled + PROFILED):
            self.wait()
        now_s = time.perf_counter()
        if self.count == 0:
            self.first_s = -now_s
        elif self.count == 1 and self.first_s is not None:
            self.wait()
            self.first_s += time.perf_counter()
        if self.count == self.plan["warm"]:
            reset_peak(runner._device)
            self.graphs_at_warm = graphs()
            self.passes = 0
        if self.plan["warm"] <= self.count <= self.first_split:
            self.begins.append(now_s)
        if self.count == self.first_split:
            self.note_peak(runner)
            self.split_begin = now_s
        if self.count == self.first_profiled:
            self.split_s = now_s - self.split_begin
            self.start_profile(runner._device)
        if self.count == self.first_profiled + PROFILED:
            self.stop_profile()
            if self.plan["eager"]:
                self.listen(runner)
            else:
                self.write(runner._device)
        elif self.count > self.first_profiled + PROFILED and self.constants is not None and self.constants.step():
            self.write(runner._device)
            self.constants = None
        self.count += 1

    def note_start(self, runner: Any) -> None:
        """Sizes that are known before the first step."""
        weights = [parameter.numel() * parameter.element_size() for parameter in runner._parameters]
        moments = runner._optimizer.state_tensors().values()
        self.memory = {
            "weights": sum(weights), "gradients": sum(weights),
            "optimizer": sum(tensor.numel() * tensor.element_size() for tensor in moments),
        }  # fmt: skip
        start = resident_bytes(runner._device)
        if start is not None:
            self.memory["start"] = start
        self.facts |= {"device": runner._device.type, "threads": torch.get_num_threads(), "compiled": runner.compiled}

    def note_peak(self, runner: Any) -> None:
        """The peak of the plain steps, and what of it is known by kind; the rest is kept for the way back."""
        peak = peak_bytes(runner._device)
        start = self.memory.pop("start", None)
        if peak is None or start is None:
            return
        self.memory["code and buffers"] = max(0, start - self.memory["weights"] - self.memory["optimizer"])
        self.memory["activations"] = max(0, peak - start - self.memory["gradients"])
        self.facts["peak_bytes"] = peak
        if runner._device.type == "cuda":
            stats = torch.cuda.memory_stats(runner._device)
            self.facts |= {
                "retries": stats.get("num_alloc_retries", 0), "reserved": stats.get("reserved_bytes.all.peak", 0),
                "memory_bytes": torch.cuda.get_device_properties(runner._device).total_memory,
            }  # fmt: skip

    # --- profile --------------------------------------------------------------------------------------------------

    def start_profile(self, device: torch.device) -> None:
        kinds = [torch.profiler.ProfilerActivity.CPU]
        if device.type == "cuda":
            kinds.append(torch.profiler.ProfilerActivity.CUDA)
        self.profiler = torch.profiler.profile(activities=kinds, record_shapes=True)
        self.profiler.__enter__()

    def stop_profile(self) -> None:
        self.profiler.__exit__(None, None, None)
        self.profiler.export_chrome_trace(self.plan["out"] + ".trace")

    def listen(self, runner: Any) -> None:
        """Hears every operator of the next steps."""
        optimizer = SimpleNamespace(param_groups=[{"params": runner._parameters}])
        probe = SimpleNamespace(torch=torch, optimizers={0: optimizer}, notes=[], sync=self.wait)
        self.constants = Constants(probe, place_of)
        assert self.constants.begin(), "our own torch tells its operators"

    def write(self, device: torch.device) -> None:
        steps = len(self.begins) - 1
        listened = LISTENED if self.constants is not None else 0
        step_s = np.diff(self.begins).tolist()
        passes = self.passes / (steps + self.plan["split"] + PROFILED + listened)
        odd = []
        if self.plan["eager"]:
            odd = twins(torch, self.plan["out"] + ".trace", PROFILED, statistics.median(step_s), str(device))
        write_json(Path(self.plan["out"]), {
            "first_s": self.first_s, "step_s": step_s, "split_s": self.split_s, "parts": self.parts,
            "looks": self.looks, "passes": passes, "logits_bytes": self.logits_bytes, "memory": self.memory,
            "graphs": graphs(), "graphs_at_warm": self.graphs_at_warm, "twins": odd,
            "constants": self.constants.found() if self.constants is not None else [], "written": self.written,
            **self.facts,
        })  # fmt: skip

    # --- clocks ---------------------------------------------------------------------------------------------------

    def install(self) -> None:
        """Puts the clocks around the parts of a step, for the rest of this process."""
        watch = self
        make, run, upload = TrainStep.__init__, TrainStep.run, TrainStep._upload
        backward, sync, take = torch.Tensor.backward, StepResult.sync_loss, Prefetcher.__next__

        def made(runner: Any, *arguments: Any, **options: Any) -> None:
            make(runner, *arguments, **options)
            runner._model = Clocked(runner._model, watch)
            runner._optimizer = ClockedUpdate(runner._optimizer, watch)

        def ran(runner: Any, batch: Batch, scale: Any) -> StepResult:
            watch.step_begins(runner)
            with watch.rest("own code"):
                return run(runner, batch, scale)

        clocked = self.clocked
        for owner, name, value in (
            (TrainStep, "__init__", made), (TrainStep, "run", ran), (TrainStep, "_upload", clocked("copy", upload)),
            (torch.Tensor, "backward", clocked("backward", backward)),
            (StepResult, "sync_loss", clocked("sync", sync)), (Prefetcher, "__next__", clocked("data", take)),
        ):  # fmt: skip
            setattr(owner, name, value)
        self.watch_loss()
        if self.plan["writes"]:
            self.watch_writing()

    def clocked(self, name: str, plain: Callable[..., Any]) -> Callable[..., Any]:
        """The function, whose seconds count for the part."""

        def call(*arguments: Any, **options: Any) -> Any:
            with self.part(name):
                return plain(*arguments, **options)

        return call

    def watch_writing(self) -> None:
        """Clocks around what a step's answers take: the engine's weights, its texts, and what is made of them."""
        from intone.engine.engine import Engine
        from intone.train.rollouts import RolloutSource

        watch, write = self, RolloutSource.__next__

        def written(source: RolloutSource) -> Any:
            with watch.rest("judging"):
                step, batch = write(source)
            assert source.engine is not None, "it wrote"
            watch.facts["num_slots"] = source.engine.settings["num_slots"][0]
            watch.written.append(batch.stats.tokens)
            return step, batch

        setattr(RolloutSource, "__next__", written)  # noqa: B010
        setattr(Engine, "generate", self.clocked("answers", Engine.generate))  # noqa: B010
        setattr(Engine, "update_weights", self.clocked("packing", Engine.update_weights))  # noqa: B010

    def watch_loss(self) -> None:
        """Notes how large the logits are that a loss is computed from."""
        functional: Any = torch.nn.functional
        watch = self
        plain = functional.cross_entropy

        def cross_entropy(logits: Any, *arguments: Any, **options: Any) -> Any:
            watch.logits_bytes = max(watch.logits_bytes, logits.numel() * logits.element_size())
            return plain(logits, *arguments, **options)

        functional.cross_entropy = cross_entropy


class Clocked:
    """A model whose forward passes are timed, and whose first batches are looked at."""

    def __init__(self, model: Any, watch: Watch) -> None:
        self.model, self.watch = model, watch

    def __call__(self, ids: Any, targets: Any, documents: Any, *weights: Any) -> Any:
        watch = self.watch
        watch.passes += 1
        if watch.count <= LOOKED_AT:
            watch.looks.append(look(ids.cpu().numpy(), targets.cpu().numpy()))
        with watch.part("forward"):
            return self.model(ids, targets, documents, *weights)


class ClockedUpdate:
    """An optimizer whose updates are timed."""

    def __init__(self, optimizer: Any, watch: Watch) -> None:
        self.optimizer, self.watch = optimizer, watch

    def step(self, *arguments: Any) -> None:
        with self.watch.part("optimizer"):
            self.optimizer.step(*arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.optimizer, name)


def look(ids: np.ndarray, targets: np.ndarray) -> dict[str, Any]:
    """What a batch (B, T) holds: its shape, padded positions, positions that are learned, and its rows' hashes.

    Padding is a tail of one repeated token, two at least, in which nothing is learned.
    """
    same = (ids == ids[:, -1:]) & (targets < 0)
    tails = np.cumprod(same[:, ::-1], axis=1).sum(axis=1)
    learned = targets >= 0
    rows = [hash(row.tobytes()) for row, taught in zip(ids, learned, strict=True) if taught.any()]
    return {
        "rows": ids.shape[0], "tokens": ids.shape[1], "padded": int(tails[tails > 1].sum()),
        "learned": int(learned.sum()), "hashes": rows,
    }  # fmt: skip


def place_of(frame: FrameType | None) -> tuple[str, str, int, str]:
    """(kind of work, path, line, function): the line of our own code that asked for an operator; "" where none did."""
    part = "own code"
    while frame is not None:
        path = frame.f_code.co_filename
        if "/torch/autograd/" in path or (path.endswith("/torch/_tensor.py") and frame.f_code.co_name == "backward"):
            part = "backward"
        if path.startswith(str(PACKAGE_PARENT / "intone")) and not path.startswith(HERE):
            part = "optimizer" if Path(path).name.startswith("optim") else part
            return part, str(Path(path).relative_to(PACKAGE_PARENT)), frame.f_lineno, frame.f_code.co_name
        frame = frame.f_back
    return part, "", 0, ""


def graphs() -> int:
    """Compiled pieces of code so far; 0 where nothing is compiled."""
    module = sys.modules.get("torch._dynamo.utils")
    return int(module.counters["stats"].get("unique_graphs", 0)) if module is not None else 0


def main(argv: list[str]) -> int:
    """Runs the plan's job under its worker -> the worker's exit code."""
    plan = read_json(Path(argv[0]))
    assert step_module.TrainStep is TrainStep, "the loop uses the class that the clocks are put into"
    Watch(plan).install()
    code: int = importlib.import_module(plan["worker"]).main([plan["folder"]])
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
