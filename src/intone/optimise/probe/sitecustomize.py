"""Looks at a training or generation program from inside: found by Python at its start, it needs nothing but Python.

The folder of this file stands on the program's PYTHONPATH. It holds seven files of the standard library alone, since
the program's environment may lack everything of ours: this one, which finds torch and the steps, one for each of two
jobs, and four helpers of the first. INTONE_PROBE names a JSON file: {"mode": "analyse" | "live", "out": FILE, "socket":
PATH, "warm": N, "steps": N}; analyse: intone_probe_look, live: intone_probe_blocks. Nothing of the program is edited.
Python 3.8 and PyTorch 2.1 are the oldest that it knows.
"""

import importlib
import importlib.machinery
import importlib.util
import json
import os
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
JOBS = {"analyse": "intone_probe_look", "live": "intone_probe_blocks"}
MAX_LOSSES = 4096


def chain():
    """Runs the sitecustomize that stands behind this one, as Python would have without us."""
    places = [place for place in sys.path if os.path.abspath(place or ".") != HERE]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", places)
    if spec is not None and spec.loader is not None:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)


class TorchWatcher:
    """A finder that hands torch to patch() as soon as it is imported, whoever imports it."""

    def __init__(self, patch):
        self.patch = patch

    def find_spec(self, name, path=None, target=None):
        if name != "torch":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        execute, patch = spec.loader.exec_module, self.patch

        def exec_module(module):
            execute(module)
            patch(module)

        setattr(spec.loader, "exec_module", exec_module)  # noqa: B010  of this one loader
        return spec


class Probe:
    """Steps and losses of the program, and what both jobs ask of it. A job has install(torch), and step() for each."""

    def __init__(self, plan, make_job):
        self.plan = plan
        self.warm, self.steps = int(plan["warm"]), int(plan["steps"])
        self.begin_s = time.perf_counter()
        self.num_steps = 0
        self.backwards = 0
        self.saw_backward = False
        self.losses = []  # (steps before it, loss)
        self.optimizers = {}
        self.notes = []
        self.job = make_job(self)

    # --- hooks ----------------------------------------------------------------------------------------------------

    def patch(self, torch):
        self.torch = torch
        from torch.optim import optimizer as module

        register = getattr(module, "register_optimizer_step_post_hook", None)
        if register is None:
            return self.fail(f"torch {torch.__version__} is older than 2.1, which the probe needs")
        register(self.after_step)
        self.wrap_backward()
        self.job.install(torch)
        return None

    def wrap_backward(self):
        plain = self.torch.Tensor.backward
        probe = self

        def backward(tensor, *args, **kwargs):
            probe.saw_backward = True
            probe.backwards += 1
            if tensor.numel() == 1 and len(probe.losses) < MAX_LOSSES:
                probe.losses.append((probe.num_steps, tensor.detach()))
            return plain(tensor, *args, **kwargs)

        self.torch.Tensor.backward = backward

    def after_step(self, optimizer, args, kwargs):
        """After every optimizer's step; the first one after a backward pass ends a step of training."""
        self.optimizers[id(optimizer)] = optimizer
        if not self.saw_backward:
            return
        self.saw_backward = False
        self.num_steps += 1
        self.job.step()

    # --- for both jobs --------------------------------------------------------------------------------------------

    @property
    def rank(self):
        """Of this process: torchrun names it in the environment, processes that a program starts learn it later."""
        return self.torch.distributed.get_rank() if self.is_team() else int(os.environ.get("RANK", "0") or 0)

    def is_team(self):
        """Whether processes train together."""
        distributed = getattr(self.torch, "distributed", None)
        return distributed is not None and distributed.is_available() and distributed.is_initialized()

    def is_ids(self, value):
        """Whether an argument of a model is token ids (B, T)."""
        torch = self.torch
        return isinstance(value, torch.Tensor) and value.dim() == 2 and value.dtype in (torch.int64, torch.int32)

    def ids_in(self, args, kwargs):
        return [value for value in list(args) + list(kwargs.values()) if self.is_ids(value)]

    def is_compiling(self):
        module = getattr(self.torch, "compiler", None)
        return bool(module is not None and hasattr(module, "is_compiling") and module.is_compiling())

    def on_cuda(self):
        return self.torch.cuda.is_available() and self.torch.cuda.is_initialized()

    def sync(self):
        torch = self.torch
        if self.on_cuda():
            torch.cuda.synchronize()  # scan: ok[S30] what is measured lies between two of these waits
        elif getattr(torch.backends, "mps", None) is not None and torch.backends.mps.is_available():
            torch.mps.synchronize()

    def facts(self):
        kind = "cuda" if self.on_cuda() else "cpu"
        return {"device": kind, "torch": str(self.torch.__version__), "python": sys.version.split()[0]}

    def peak_bytes(self):
        """Of the device's memory; on a CPU of the whole process, libraries included."""
        if self.on_cuda():
            return int(self.torch.cuda.max_memory_allocated())
        try:
            import resource

            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        except ImportError:
            return None

    def write(self, found):
        temporary = f"{self.plan['out']}.{os.getpid()}.tmp"
        with open(temporary, "w") as file:
            json.dump(found, file)
        os.replace(temporary, self.plan["out"])

    def fail(self, message):
        self.write({"error": message})
        sys.stderr.write(f"intone: {message}\n")
        self.leave(2)

    def leave(self, code=0):
        """Ends the program at once: enough was seen."""
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def begin():
    path = os.environ.get("INTONE_PROBE")
    if not path:
        return
    try:
        with open(path) as file:
            plan = json.load(file)
    except (OSError, ValueError):
        return  # the round that asked for it is over
    job = importlib.import_module(JOBS[plan["mode"]])
    sys.meta_path.insert(0, TorchWatcher(Probe(plan, job.Job).patch))


chain()
begin()
