"""Looks at a training or generation program from inside: found by Python at its start, it needs nothing but Python.

INTONE_PROBE names a JSON file: {"mode": "analyse" | "live", "out": FILE, "socket": PATH, "warm": N, "steps": N}.
analyse: after the warm steps it samples where the time goes, profiles two steps, writes FILE and ends the program.
live: after the warm steps the program waits at the end of an optimizer step for commands on a socket, one line each;
with "kind": "generate" at the end of a call of its model outside of training.
It edits nothing. Python 3.8 and PyTorch 2.1 are the oldest that it knows.
"""

import atexit
import importlib.machinery
import importlib.util
import json
import os
import sys
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
SAMPLE_S = 0.005
PROFILED_STEPS = 2
MAX_CALLS = 4096  # of the model outside of training whose times are kept
ENOUGH_CALLS = 1024  # token by token, after which a program that only generates has shown enough
LOOKED_AT = 4  # steps whose batches are looked at
DATA_WORDS = ("batch", "collate", "loader", "tokeniz", "fetch", "read_")
IGNORED_TARGETS = (-1, -100)


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
    """What is known so far, and the hooks that learn more."""

    def __init__(self, plan):
        self.plan = plan
        self.mode = plan["mode"]
        self.writes = plan.get("kind") == "generate"  # live: steps are calls of the model, token by token
        self.grown = 0  # calls that read one token more than the one before, or one alone again
        self.block_tokens = []  # of a block: newest token of each row, call by call
        self.warm, self.steps = int(plan["warm"]), int(plan["steps"])
        self.rank = int(os.environ.get("RANK", "0") or 0)
        self.begin_s = time.perf_counter()
        self.num_steps = 0
        self.ends_s = []  # of optimizer steps
        self.backwards = 0
        self.backwards_at_warm = 0
        self.saw_backward = False
        self.losses = []
        self.syncs = {}
        self.depth = 0
        self.calls = []  # (rows, tokens, seconds) of the model outside of training
        self.looks = []  # what the batches of the first steps hold
        self.logits_bytes = 0
        self.samples = {}  # (part, path, line, function) -> seconds
        self.sampled_s = 0.0
        self.sampler = None
        self.profiler = None
        self.trace = None
        self.graphs_at_warm = 0
        self.channel = None
        self.left = 0
        self.block_s = 0.0
        self.block_begin = 0
        self.uses_loader = False
        self.written = False

    # --- patching -------------------------------------------------------------------------------------------------

    def patch(self, torch):
        self.torch = torch
        from torch.optim import optimizer as module

        register = getattr(module, "register_optimizer_step_post_hook", None)
        if register is None:
            return self.fail(f"torch {torch.__version__} is older than 2.1, which the probe needs")
        register(self.after_step)
        self.wrap_backward(torch)
        if self.mode == "analyse":
            self.wrap_syncs(torch)
            self.wrap_calls(torch)
            self.wrap_loss(torch)
            atexit.register(self.finish)
        elif self.writes:
            self.wrap_calls(torch)
        return None

    def wrap_backward(self, torch):
        plain = torch.Tensor.backward
        probe = self

        def backward(tensor, *args, **kwargs):
            probe.saw_backward = True
            probe.backwards += 1
            if tensor.numel() == 1 and len(probe.losses) < 4096:
                probe.losses.append((probe.num_steps, tensor.detach()))
            return plain(tensor, *args, **kwargs)

        torch.Tensor.backward = backward

    def wrap_syncs(self, torch):
        probe = self

        def wrapped(plain):
            def probe_sync(tensor, *args, **kwargs):
                if probe.sampler is not None and tensor.device.type != "cpu":
                    frame = sys._getframe(1)
                    place = f"{frame.f_code.co_filename}:{frame.f_lineno}"
                    probe.syncs[place] = probe.syncs.get(place, 0) + 1
                return plain(tensor, *args, **kwargs)

            return probe_sync

        for name in ("item", "tolist", "cpu", "numpy"):
            setattr(torch.Tensor, name, wrapped(getattr(torch.Tensor, name)))

    def wrap_calls(self, torch):
        """Notes the outermost calls of models: their shapes, and outside of training their times."""
        cls = torch.nn.Module
        plain = cls.__call__
        probe = self

        def call(module, *args, **kwargs):
            if probe.depth or is_compiling(torch):
                return plain(module, *args, **kwargs)
            probe.depth = 1
            begin_s = time.perf_counter()
            try:
                return plain(module, *args, **kwargs)
            finally:
                probe.depth = 0
                if probe.mode == "live":
                    probe.live_call(args, kwargs)
                else:
                    probe.note_call(args, kwargs, time.perf_counter() - begin_s)
                if probe.mode != "live" and probe.num_steps > LOOKED_AT and cls.__call__ is call:
                    cls.__call__ = plain  # the batches are known: leave no trace in the rest

        cls.__call__ = call

    def wrap_loss(self, torch):
        functional = torch.nn.functional
        plain = functional.cross_entropy
        probe = self

        def cross_entropy(input, target, *args, **kwargs):
            probe.logits_bytes = max(probe.logits_bytes, input.numel() * input.element_size())
            if probe.num_steps > LOOKED_AT and functional.cross_entropy is cross_entropy:
                functional.cross_entropy = plain
            return plain(input, target, *args, **kwargs)

        functional.cross_entropy = cross_entropy

    # --- looking --------------------------------------------------------------------------------------------------

    def note_call(self, args, kwargs, seconds):
        whole = [value for value in list(args) + list(kwargs.values()) if self.is_ids(value)]
        if not whole:
            return
        ids = whole[0]
        if not self.torch.is_grad_enabled():
            if len(self.calls) < MAX_CALLS:
                before = self.calls[-1][:2] if self.calls else (0, 0)
                rows, tokens = ids.shape[0], ids.shape[1]
                self.calls.append((rows, tokens, seconds))
                self.grown += rows == before[0] and (tokens == before[1] + 1 or tokens == before[1] == 1)
            if self.grown >= ENOUGH_CALLS and not self.backwards:
                self.finish()
                sys.stdout.flush()
                os._exit(0)
            return
        if len(self.looks) < 64:
            targets = whole[1] if len(whole) > 1 and whole[1].shape == ids.shape else None
            self.looks.append(self.look(ids, targets))

    def is_ids(self, value):
        return (
            isinstance(value, self.torch.Tensor)
            and value.dim() == 2
            and value.dtype in (self.torch.int64, self.torch.int32)
        )

    def look(self, ids, targets):
        """What one batch holds: shape, padding, rows that teach nothing, equal rows."""
        rows = ids.detach().cpu().tolist()
        found = {"rows": len(rows), "tokens": len(rows[0]) if rows else 0, "hashes": [hash(tuple(row)) for row in rows]}
        goals = targets.detach().cpu().tolist() if targets is not None else None
        padded = 0
        for number, row in enumerate(rows):
            length = len(row)
            while length > 1 and row[length - 1] == row[-1] and (
                goals is None or goals[number][length - 1] in IGNORED_TARGETS
            ):
                length -= 1
            # one position is an end-of-text token where goals say nothing
            run = len(row) - length
            padded += run if goals is not None or run > 1 else 0
        found["padded"] = padded
        if goals is not None:
            found["masked"] = sum(all(goal in IGNORED_TARGETS for goal in row) for row in goals)
            found["supervised"] = sum(goal not in IGNORED_TARGETS for row in goals for goal in row)
        return found

    def sample(self):
        """The sampling thread: where the main thread is, every few milliseconds."""
        main = threading.main_thread().ident or 0
        last_s = time.perf_counter()
        while self.sampler is not None:
            time.sleep(SAMPLE_S)
            frame = sys._current_frames().get(main)
            now_s = time.perf_counter()
            if frame is not None and self.sampler is not None:
                key = self.place_of(frame)
                self.samples[key] = self.samples.get(key, 0.0) + now_s - last_s
                self.sampled_s += now_s - last_s
            last_s = now_s

    def place_of(self, frame):
        """(part, path, line, function): what kind of work this is, and the program's own line it was called from."""
        part, own, data_word = None, None, False
        while frame is not None:
            code = frame.f_code
            path, name = code.co_filename, code.co_name
            if part is None:
                part = self.part_of(path, name)
            if path != __file__ and is_own(path):
                if own is None:
                    own = (path, frame.f_lineno, name)
                data_word = data_word or any(word in name.lower() for word in DATA_WORDS)
            frame = frame.f_back
        if part is None:
            part = "data" if data_word else "own code"
        return (part,) + (own or ("", 0, ""))

    def part_of(self, path, name):
        if path == __file__:
            return "sync" if name == "probe_sync" else None
        path = path.replace("\\", "/")
        if "/torch/optim/" in path:
            return "optimizer"
        if "/torch/autograd/" in path or (path.endswith("/torch/_tensor.py") and name == "backward"):
            return "backward"
        if "/torch/utils/data/" in path:
            self.uses_loader = True
            return "data"
        if path.endswith("/torch/nn/modules/module.py") or "/torch/_dynamo/eval_frame.py" in path:
            return "forward"
        return None

    # --- steps ----------------------------------------------------------------------------------------------------

    def after_step(self, optimizer, args, kwargs):
        """After every optimizer's step; the first one after a backward pass ends a step of training."""
        if not self.saw_backward:
            return
        self.saw_backward = False
        self.num_steps += 1
        if self.mode == "live":
            self.live_step()
            return
        if self.rank == 0:
            if self.num_steps in (self.warm, self.warm + self.steps):
                self.sync()
            self.ends_s.append(time.perf_counter())
        if self.num_steps == self.warm and self.rank == 0:
            self.backwards_at_warm = self.backwards
            self.graphs_at_warm = self.graphs()
            self.reset_peak()
            self.sampler = threading.Thread(target=self.sample, daemon=True)
            self.sampler.start()
        elif self.num_steps == self.warm + self.steps:
            self.sampler = None
            self.backwards_steady = self.backwards - self.backwards_at_warm
            if self.rank == 0:
                self.start_profile()
        elif self.num_steps == self.warm + self.steps + PROFILED_STEPS:
            self.stop_profile()
            self.finish()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)

    def sync(self):
        torch = self.torch
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            torch.cuda.synchronize()
        elif getattr(torch.backends, "mps", None) is not None and torch.backends.mps.is_available():
            torch.mps.synchronize()

    def on_cuda(self):
        return self.torch.cuda.is_available() and self.torch.cuda.is_initialized()

    def reset_peak(self):
        if self.on_cuda():
            self.torch.cuda.reset_peak_memory_stats()

    def graphs(self):
        """Compiled pieces of code so far; 0 where nothing is compiled."""
        module = sys.modules.get("torch._dynamo.utils")
        return int(module.counters["stats"].get("unique_graphs", 0)) if module is not None else 0

    def start_profile(self):
        try:
            profiler = self.torch.profiler
            kinds = [profiler.ProfilerActivity.CPU] + ([profiler.ProfilerActivity.CUDA] if self.on_cuda() else [])
            self.profiler = profiler.profile(activities=kinds, record_shapes=True)
            self.profiler.__enter__()
        except Exception as problem:
            self.profiler = None
            self.note(f"the profiler did not start: {problem}")

    def stop_profile(self):
        if self.profiler is None:
            return
        self.sync()
        try:
            self.profiler.__exit__(None, None, None)
            path = self.plan["out"] + ".trace"
            self.profiler.export_chrome_trace(path)
            self.trace = path
        except Exception as problem:
            self.note(f"the profile could not be written: {problem}")
        self.profiler = None

    def note(self, text):
        self.plan.setdefault("notes", []).append(text)

    # --- commands -------------------------------------------------------------------------------------------------

    def live_call(self, args, kwargs):
        """A call of the model outside of training is a step of generation; its newest tokens are kept."""
        whole = [value for value in list(args) + list(kwargs.values()) if self.is_ids(value)]
        if not whole or self.torch.is_grad_enabled():
            return
        if self.left:
            self.block_tokens.append(whole[0][:, -1].tolist())
        self.num_steps += 1
        self.live_step()

    def live_step(self):
        """Counts down a block; where it is done, answers and waits for the next."""
        if self.num_steps < self.warm or self.rank != 0:
            return
        if self.channel is None:
            self.connect()
            return self.wait()
        self.left -= 1
        if self.left == 0:
            self.sync()
            seconds = time.perf_counter() - self.block_s
            losses = [float(loss) for step, loss in self.losses if step >= self.block_begin]
            self.losses = []
            steps = self.num_steps - self.block_begin
            self.say(
                {"steps": steps, "seconds": seconds, "losses": losses, "first_step": self.block_begin,
                 "peak_bytes": self.peak_bytes(), "texts": self.block_tokens,
                 "tokens": sum(map(len, self.block_tokens))}
            )  # fmt: skip
            self.block_tokens = []
            self.wait()
        return None

    def connect(self):
        import socket

        self.channel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.channel.connect(self.plan["socket"])
        self.lines = self.channel.makefile("rb")
        self.sync()
        now_s = time.perf_counter()
        self.losses = []
        self.say({"ready": True, "first_s": now_s - self.begin_s, "warm_s": 0.0, "facts": self.facts()})

    def wait(self):
        line = self.lines.readline()
        command = json.loads(line.decode()) if line.strip() else {"do": "quit"}
        if command.get("do") == "quit":
            sys.stdout.flush()
            os._exit(0)
        self.left = int(command["steps"])
        self.block_begin = self.num_steps
        self.sync()
        self.block_s = time.perf_counter()

    def say(self, value):
        assert self.channel is not None, "connect() comes first"
        self.channel.sendall((json.dumps(value) + "\n").encode())

    def facts(self):
        kind = "cuda" if self.on_cuda() else "cpu"
        return {"device": kind, "torch": str(self.torch.__version__), "python": sys.version.split()[0]}

    def peak_bytes(self):
        if self.on_cuda():
            return int(self.torch.cuda.max_memory_allocated())
        try:
            import resource

            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        except ImportError:
            return None

    # --- the end --------------------------------------------------------------------------------------------------

    def finish(self):
        """Writes what was learned; once, also where the program ends before the probe is done."""
        if self.written or self.rank != 0:
            return
        self.written = True
        self.sampler = None
        losses = []
        for step, loss in self.losses:
            value = float(loss)
            losses.append([step, value if value == value and abs(value) != float("inf") else None])
        found = {
            "facts": self.facts(), "num_steps": self.num_steps, "warm": self.warm, "steps": self.steps,
            "ends_s": self.ends_s,
            "backwards": getattr(self, "backwards_steady", 0), "losses": losses, "syncs": self.syncs,
            "calls": self.calls, "looks": self.looks, "logits_bytes": self.logits_bytes,
            "samples": [list(key) + [seconds] for key, seconds in self.samples.items()], "sampled_s": self.sampled_s,
            "graphs": self.graphs(), "graphs_at_warm": self.graphs_at_warm, "trace": self.trace,
            "peak_bytes": self.peak_bytes(), "threads": self.torch.get_num_threads(), "memory": self.memory(),
            "uses_loader": self.uses_loader, "notes": self.plan.get("notes", []), "cwd": os.getcwd(),
            "complete": self.num_steps >= self.warm + self.steps,
        }  # fmt: skip
        self.write(found)

    def memory(self):
        if not self.on_cuda():
            return {}
        stats = self.torch.cuda.memory_stats()
        free, total = self.torch.cuda.mem_get_info()
        return {
            "retries": stats.get("num_alloc_retries", 0), "reserved": stats.get("reserved_bytes.all.peak", 0),
            "allocated": stats.get("allocated_bytes.all.peak", 0), "total": total,
        }  # fmt: skip

    def fail(self, message):
        self.written = True
        self.write({"error": message})
        sys.stderr.write(f"intone: {message}\n")
        sys.stderr.flush()
        os._exit(2)

    def write(self, found):
        temporary = self.plan["out"] + ".tmp"
        with open(temporary, "w") as file:
            json.dump(found, file)
        os.replace(temporary, self.plan["out"])


def is_own(path):
    """Whether code is the program's own: no library, nothing that Python brings or made up."""
    if path.startswith("<") or "site-packages" in path or "dist-packages" in path:
        return False
    return not path.startswith((os.path.dirname(os.__file__) + os.sep, HERE))


def is_compiling(torch):
    module = getattr(torch, "compiler", None)
    return bool(module is not None and hasattr(module, "is_compiling") and module.is_compiling())


def begin():
    path = os.environ.get("INTONE_PROBE")
    if not path:
        return
    try:
        with open(path) as file:
            plan = json.load(file)
    except (OSError, ValueError):
        return  # the round that asked for it is over
    sys.meta_path.insert(0, TorchWatcher(Probe(plan).patch))


chain()
begin()
