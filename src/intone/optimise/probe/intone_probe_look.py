"""The probe's job of analysing: where the time of steps goes, what batches hold, and what lies in the memory.

After the warm steps it samples where the main thread is and profiles two steps. Then, unless the code is compiled (it
would be compiled again), helpers go on: intone_probe_constant listens to a few steps; where processes train together
intone_probe_team leaves out what they exchange instead; intone_probe_swap times the model's pass with one thing swapped
(where the plan has "swaps"), intone_probe_twin its products with other sizes. It writes what it saw and ends the
program. Beside sitecustomize.py, which starts it.
"""

import atexit
import importlib
import os
import statistics
import sys
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
LIBRARY = os.path.dirname(os.__file__)
SAMPLE_S = 0.005
PROFILED_STEPS = 2
MAX_CALLS = 4096  # of the model outside of training whose times are kept
ENOUGH_CALLS = 1024  # token by token, after which a program that only generates has shown enough
LOOKED_AT = 4  # steps whose batches are looked at
MAX_LOOKS = 64
DATA_WORDS = ("batch", "collate", "loader", "tokeniz", "fetch", "read_")
IGNORED_TARGETS = (-1, -100)


class Job:
    """What is known so far, and the hooks that learn more."""

    def __init__(self, probe):
        self.probe = probe
        self.written = False
        self.is_inside = False  # of a call of a model
        self.grown = 0  # calls that read one token more than the one before, or one alone again
        self.ends_s = []  # of optimizer steps
        self.backwards_at_warm = 0
        self.backwards_steady = 0
        self.syncs = {}  # path:line -> how often the program waited there for the device
        self.calls = []  # (rows, tokens, seconds) of the model outside of training
        self.looks = []  # what the batches of the first steps hold
        self.logits_bytes = 0
        self.samples = {}  # (part, path, line, function) -> seconds
        self.sampled_s = 0.0
        self.sampler = None
        self.profiler = None
        self.trace = None
        self.exchanges_at_warm = self.exchanges_steady = 0
        self.later = None  # who goes on behind the profile
        self.graphs_at_warm = 0
        self.code_bytes = None
        self.memory_kinds = {}
        asked = probe.plan.get("swaps")
        self.swaps = importlib.import_module("intone_probe_swap").Swaps(probe, asked) if asked is not None else None
        self.team = importlib.import_module("intone_probe_team").Team(probe)
        self.constants = importlib.import_module("intone_probe_constant").Constants(probe, place_of)

    def install(self, torch):
        self.code_bytes = resident_bytes()
        if self.swaps is not None:
            self.swaps.install(torch)
        self.team.install(torch)
        self.wrap_syncs(torch)
        self.wrap_calls(torch)
        self.wrap_loss(torch)
        atexit.register(self.finish)

    def wrap_syncs(self, torch):
        job = self

        def wrapped(plain):
            def probe_sync(tensor, *args, **kwargs):
                if job.sampler is not None and tensor.device.type != "cpu":
                    frame = sys._getframe(1)
                    place = f"{frame.f_code.co_filename}:{frame.f_lineno}"
                    job.syncs[place] = job.syncs.get(place, 0) + 1
                return plain(tensor, *args, **kwargs)

            return probe_sync

        for name in ("item", "tolist", "cpu", "numpy"):
            setattr(torch.Tensor, name, wrapped(getattr(torch.Tensor, name)))

    def wrap_calls(self, torch):
        """Notes the outermost calls of models: their shapes, and outside of training their times."""
        cls = torch.nn.Module
        plain = cls.__call__
        job = self

        def call(module, *args, **kwargs):
            if job.is_inside or job.probe.is_compiling():
                return plain(module, *args, **kwargs)
            job.is_inside = True
            begin_s = time.perf_counter()
            try:
                return plain(module, *args, **kwargs)
            finally:
                job.is_inside = False
                job.note_call(module, args, kwargs, time.perf_counter() - begin_s)
                if job.probe.num_steps > LOOKED_AT and cls.__call__ is call:
                    cls.__call__ = plain  # the batches are known: leave no trace in the rest

        cls.__call__ = call

    def wrap_loss(self, torch):
        functional = torch.nn.functional
        plain = functional.cross_entropy
        job = self

        def cross_entropy(input, target, *args, **kwargs):
            job.logits_bytes = max(job.logits_bytes, input.numel() * input.element_size())
            if job.probe.num_steps > LOOKED_AT and functional.cross_entropy is cross_entropy:
                functional.cross_entropy = plain
            return plain(input, target, *args, **kwargs)

        functional.cross_entropy = cross_entropy

    # --- batches --------------------------------------------------------------------------------------------------

    def note_call(self, module, args, kwargs, seconds):
        whole = self.probe.ids_in(args, kwargs)
        if not whole:
            return
        ids = whole[0]
        if self.probe.torch.is_grad_enabled():
            if self.swaps is not None:
                self.swaps.keep(module, args, kwargs, ids.shape[0])
            if len(self.looks) < MAX_LOOKS:
                targets = whole[1] if len(whole) > 1 and whole[1].shape == ids.shape else None
                self.looks.append(look(ids, targets))
            return
        if len(self.calls) < MAX_CALLS:
            before = self.calls[-1][:2] if self.calls else (0, 0)
            rows, tokens = ids.shape[0], ids.shape[1]
            self.calls.append((rows, tokens, seconds))
            self.grown += rows == before[0] and (tokens == before[1] + 1 or tokens == before[1] == 1)
        if self.grown >= ENOUGH_CALLS and not self.probe.backwards:
            self.finish()
            self.probe.leave()

    # --- where the time goes --------------------------------------------------------------------------------------

    def sample(self):
        """The sampling thread: where the main thread is, every few milliseconds."""
        main = threading.main_thread().ident or 0
        last_s = time.perf_counter()
        while self.sampler is not None:
            time.sleep(SAMPLE_S)
            frame = sys._current_frames().get(main)
            now_s = time.perf_counter()
            if frame is not None and self.sampler is not None:
                key = place_of(frame)
                self.samples[key] = self.samples.get(key, 0.0) + now_s - last_s
                self.sampled_s += now_s - last_s
            last_s = now_s

    # --- steps ----------------------------------------------------------------------------------------------------

    def step(self):
        """After every step of training."""
        probe = self.probe
        last = probe.warm + probe.steps
        self.team.settle()
        if probe.rank == 0:
            if probe.num_steps in (probe.warm, last):
                probe.sync()
            self.ends_s.append(time.perf_counter())
        if probe.num_steps == probe.warm and probe.rank == 0:
            self.backwards_at_warm = probe.backwards
            self.exchanges_at_warm = self.team.num_exchanges
            self.graphs_at_warm = graphs()
            self.memory_kinds = kinds_of(probe.optimizers.values(), probe.torch)
            if probe.on_cuda():
                probe.torch.cuda.reset_peak_memory_stats()
            self.sampler = threading.Thread(target=self.sample, daemon=True)
            self.sampler.start()
        elif probe.num_steps == last:
            self.sampler = None
            self.backwards_steady = probe.backwards - self.backwards_at_warm
            self.exchanges_steady = self.team.num_exchanges - self.exchanges_at_warm
            if probe.rank == 0:
                self.start_profile()
        elif probe.num_steps == last + PROFILED_STEPS:
            self.stop_profile()
            # compiled code would be compiled again for other rows and under other ears
            self.later = None if graphs() else self.team if probe.is_team() else self.constants
            if self.later is None or not self.later.begin():
                self.end()
        elif self.later is not None and self.later.step():
            self.end()

    def end(self):
        """Behind the last step that is looked at."""
        # processes of a team would wait for each other
        self.finish(is_whole=not graphs() and not self.probe.is_team())
        self.probe.leave()

    def start_profile(self):
        try:
            profiler = self.probe.torch.profiler
            kinds = [profiler.ProfilerActivity.CPU]
            kinds += [profiler.ProfilerActivity.CUDA] if self.probe.on_cuda() else []
            self.profiler = profiler.profile(activities=kinds, record_shapes=True)
            self.profiler.__enter__()
        except Exception as problem:
            self.profiler = None
            self.probe.notes.append(f"the profiler did not start: {problem}")

    def stop_profile(self):
        if self.profiler is None:
            return
        self.probe.sync()
        try:
            self.profiler.__exit__(None, None, None)
            path = self.probe.plan["out"] + ".trace"
            self.profiler.export_chrome_trace(path)
            self.trace = path
        except Exception as problem:
            self.probe.notes.append(f"the profile could not be written: {problem}")
        self.profiler = None

    # --- the end --------------------------------------------------------------------------------------------------

    def finish(self, is_whole=False):
        """Writes what was learned; once, also where the program ends before the probe is done.

        A process that saw nothing, as one that only starts others, leaves alone what they wrote.
        """
        probe = self.probe
        saw_nothing = not (probe.num_steps or self.calls or self.looks)
        if self.written or probe.rank != 0 or (saw_nothing and os.path.exists(probe.plan["out"])):
            return
        self.written = True
        self.sampler = None
        losses = []
        for step, loss in probe.losses:
            value = float(loss)
            losses.append([step, value if value == value and abs(value) != float("inf") else None])
        found = {
            "facts": probe.facts(), "num_steps": probe.num_steps, "warm": probe.warm, "steps": probe.steps,
            "ends_s": self.ends_s, "backwards": self.backwards_steady, "losses": losses, "syncs": self.syncs,
            "calls": self.calls, "looks": self.looks, "logits_bytes": self.logits_bytes,
            "samples": [list(key) + [seconds] for key, seconds in self.samples.items()], "sampled_s": self.sampled_s,
            "graphs": graphs(), "graphs_at_warm": self.graphs_at_warm, "trace": self.trace,
            "peak_bytes": probe.peak_bytes(), "memory_kinds": self.memory_kinds, "code_bytes": self.code_bytes,
            "threads": probe.torch.get_num_threads(), "memory": self.memory(), "notes": probe.notes,
            "exchanges": self.exchanges_steady, "team": self.team.found(), "twins": [],
            "constants": self.constants.found() if is_whole else [],
        }  # fmt: skip
        # behind all that they would change
        found["swaps"] = self.swaps.measure() if is_whole and self.swaps is not None else {}
        if is_whole and self.trace is not None:
            found["twins"] = self.twins()
        probe.write(found)

    def twins(self):
        """Products whose sizes do not fit, each timed beside one whose do."""
        steady = self.ends_s[self.probe.warm - 1 : self.probe.warm + self.probe.steps]
        step_s = statistics.median(b - a for a, b in zip(steady, steady[1:]))  # noqa: B905  Python 3.8 has no strict
        try:
            module = importlib.import_module("intone_probe_twin")
            device = self.probe.facts()["device"]
            return module.twins(self.probe.torch, self.trace, PROFILED_STEPS, step_s, device)
        except Exception as problem:
            self.probe.notes.append(f"products of other sizes could not be timed: {problem}")
            return []

    def memory(self):
        """What the allocator of a GPU says; nothing on a CPU."""
        cuda = self.probe.torch.cuda
        if not self.probe.on_cuda():
            return {}
        stats = cuda.memory_stats()
        return {
            "retries": stats.get("num_alloc_retries", 0), "reserved": stats.get("reserved_bytes.all.peak", 0),
            "allocated": stats.get("allocated_bytes.all.peak", 0), "total": cuda.mem_get_info()[1],
        }  # fmt: skip


def look(ids, targets):
    """What one batch holds: shape, padding, rows that teach nothing, equal rows."""
    rows = ids.detach().cpu().tolist()
    found = {"rows": len(rows), "tokens": len(rows[0]) if rows else 0, "hashes": [hash(tuple(row)) for row in rows]}
    goals = targets.detach().cpu().tolist() if targets is not None else None
    padded = 0
    for number, row in enumerate(rows):
        length = len(row)
        while (
            length > 1
            and row[length - 1] == row[-1]
            and (goals is None or goals[number][length - 1] in IGNORED_TARGETS)
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


def kinds_of(optimizers, torch):
    """Bytes of weights, gradients and optimizer state, of all that is trained."""
    kinds = {"weights": 0, "gradients": 0, "optimizer": 0}
    seen = set()
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for weight in group["params"]:
                if id(weight) in seen:
                    continue
                seen.add(id(weight))
                kinds["weights"] += bytes_of(weight, torch)
                kinds["gradients"] += bytes_of(weight.grad, torch)
        for state in optimizer.state.values():
            if isinstance(state, dict):
                kinds["optimizer"] += sum(bytes_of(value, torch) for value in state.values())
    return kinds


def bytes_of(value, torch):
    return value.numel() * value.element_size() if isinstance(value, torch.Tensor) else 0


def resident_bytes():
    """Of this process now; None where the system does not say."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None


def graphs():
    """Compiled pieces of code so far; 0 where nothing is compiled."""
    module = sys.modules.get("torch._dynamo.utils")
    return int(module.counters["stats"].get("unique_graphs", 0)) if module is not None else 0


# --- a sample ---------------------------------------------------------------------------------------------------------


def place_of(frame):
    """(part, path, line, function): what kind of work this is, and the program's own line it was called from."""
    part, own, data_word = None, None, False
    while frame is not None:
        code = frame.f_code
        path, name = code.co_filename, code.co_name
        if part is None:
            part = part_of(path, name)
        if is_own(path):
            if own is None:
                own = (path, frame.f_lineno, name)
            data_word = data_word or any(word in name.lower() for word in DATA_WORDS)
        frame = frame.f_back
    if part is None:
        part = "data" if data_word else "own code"
    return (part,) + (own or ("", 0, ""))


def part_of(path, name):
    if path.startswith(HERE):
        return "sync" if name == "probe_sync" else None
    path = path.replace("\\", "/")
    if "/torch/optim/" in path:
        return "optimizer"
    if "/torch/autograd/" in path or (path.endswith("/torch/_tensor.py") and name == "backward"):
        return "backward"
    if "/torch/utils/data/" in path:
        return "data"
    if path.endswith("/torch/nn/modules/module.py") or "/torch/_dynamo/eval_frame.py" in path:
        return "forward"
    return None


def is_own(path):
    """Whether code is the program's own: no library, nothing that Python brings or made up."""
    if path.startswith("<") or "site-packages" in path or "dist-packages" in path:
        return False
    return not path.startswith((LIBRARY + os.sep, HERE + os.sep))
