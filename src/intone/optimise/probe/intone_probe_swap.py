"""The probe's differential tests: the model's own pass forward and backward is timed again with one thing swapped.

They come last, behind everything else that is looked at, and the program is ended behind them: nothing of it goes on
with what they leave. The optimizer's part of a step is not in them. From the start it is heard where the program asks
for activations to be computed again on the way back (torch.utils.checkpoint): without that is one of the swaps.
"""

import functools
import importlib
import time

BLOCK_S = 0.15  # of passes that are timed together; four blocks a swap, in the order A B B A
LONGEST_S = 3.0  # of one pass, above which nothing is swapped: a swap takes four passes and more
# of torch.utils.checkpoint, and no arguments of the function that is computed again
RECOMPUTING = {"use_reentrant", "context_fn", "determinism_check", "debug", "early_stop", "preserve_rng_state"}


class Swaps:
    """One call of the model in training, to be made again. asked: {"threads": [counts], "dtype": name or None}."""

    def __init__(self, probe, asked):
        self.probe, self.asked = probe, asked
        self.call = None
        self.rows = 0
        self.passes = 1
        self.num_recomputed = 0  # pieces of the program that it asked to compute again on the way back
        self.keeps_all = False  # now: nothing is computed again

    def install(self, torch):
        """Listens to torch.utils.checkpoint, before the program takes its name from there."""
        module, swaps = importlib.import_module("torch.utils.checkpoint"), self
        plain, is_compiling = module.checkpoint, self.probe.is_compiling

        @functools.wraps(plain)
        def checkpoint(function, *args, **kwargs):
            if is_compiling():
                return plain(function, *args, **kwargs)
            swaps.num_recomputed += 1
            if not swaps.keeps_all:
                return plain(function, *args, **kwargs)
            return function(*args, **{name: value for name, value in kwargs.items() if name not in RECOMPUTING})

        setattr(module, "checkpoint", checkpoint)  # noqa: B010  modules have no such attribute for a type checker

    def keep(self, module, args, kwargs, rows):
        """The newest call; its batch stays in memory."""
        self.call, self.rows = (module, args, kwargs), rows

    def measure(self):
        """{"elasticity", "threads": [[count, gain]], "dtype_gain", "kept": [gain, bytes]}: rates over those as it is.

        kept: without computing activations again, and the bytes that those take then. Failures are notes.
        """
        if self.call is None:
            return {}
        torch, found = self.probe.torch, {}
        if not self.prepare():
            return {}
        module, args, kwargs = self.call
        twice = (module, doubled(args, self.rows, torch), doubled(kwargs, self.rows, torch))
        gain = self.gain("twice the rows", self.run, lambda: self.run(twice))
        if gain is not None:
            found["elasticity"] = 2 * gain
        if not self.probe.on_cuda():
            now = torch.get_num_threads()
            counts = [count for count in self.asked.get("threads", ()) if count != now]
            gains = [[count, self.gain(f"{count} threads", self.on(now), self.on(count))] for count in counts]
            found["threads"] = [pair for pair in gains if pair[1] is not None]
            torch.set_num_threads(now)
        name = self.asked.get("dtype")
        if name is not None:
            gain = self.gain(name, self.run, lambda: self.run_in(getattr(torch, name)))
            if gain is not None:
                found["dtype_gain"] = gain
        if self.num_recomputed:
            gain = self.gain("keeping all activations", self.run, self.run_keeping)
            if gain is not None:
                found["kept"] = [gain, self.saved_bytes(keeps_all=True) - self.saved_bytes(keeps_all=False)]
        return found

    def prepare(self):
        """Finds how many passes a block has; False where the call cannot be made again, or takes too long."""
        try:
            self.run()
            seconds = self.timed(self.run)
        except Exception as problem:
            self.probe.notes.append(f"the model's pass could not be made again: {problem}")
            return False
        if seconds > LONGEST_S:
            self.probe.notes.append(f"a pass takes {seconds:.1f} s: nothing was swapped out and timed again")
            return False
        self.passes = max(1, round(BLOCK_S / seconds))
        return True

    # --- passes ---------------------------------------------------------------------------------------------------

    def gain(self, what, before, after):
        """Passes a second with the thing swapped over those without; None: it failed."""
        try:
            after()
            seconds = [self.timed(run) for run in (before, after, after, before)]
        except Exception as problem:
            self.probe.notes.append(f"{what} could not be tried: {problem}")
            return None
        return (seconds[0] + seconds[3]) / (seconds[1] + seconds[2])

    def timed(self, run):
        """Seconds of a pass, over a block of them; of fewer where they take much longer than they did."""
        self.probe.sync()
        begin_s, done = time.perf_counter(), 0
        while done < self.passes and time.perf_counter() - begin_s < 4 * BLOCK_S:
            run()
            done += 1
        self.probe.sync()
        return (time.perf_counter() - begin_s) / max(1, done)

    def run(self, call=None):
        call = call or self.call
        assert call is not None, "keep() comes first"
        (module, args, kwargs), torch = call, self.probe.torch
        torch.autograd.backward(to_go_back_from(module(*args, **kwargs), torch))
        for weight in module.parameters():
            weight.grad = None

    def run_in(self, dtype):
        with self.probe.torch.autocast("cuda" if self.probe.on_cuda() else "cpu", dtype=dtype):
            self.run()

    def run_keeping(self):
        self.keeps_all = True
        try:
            self.run()
        finally:
            self.keeps_all = False

    def saved_bytes(self, keeps_all):
        """What a pass forward keeps for the way back, beside the weights."""
        assert self.call is not None, "keep() comes first"
        torch, (module, args, kwargs) = self.probe.torch, self.call
        weights = {weight.untyped_storage().data_ptr() for weight in module.parameters()}
        saved = {}

        def pack(tensor):
            memory = tensor.untyped_storage()
            if memory.data_ptr() not in weights:
                saved[memory.data_ptr()] = memory.nbytes()
            return tensor

        self.keeps_all = keeps_all
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            answer = module(*args, **kwargs)
        self.keeps_all = False
        del answer
        return sum(saved.values())

    def on(self, threads):
        def run():
            self.probe.torch.set_num_threads(threads)
            self.run()

        return run


def doubled(value, rows, torch):
    """The value with every tensor of so many rows laid below itself, in tuples, lists and dictionaries too."""
    if isinstance(value, torch.Tensor):
        return torch.cat([value, value]) if value.dim() and value.shape[0] == rows else value
    if isinstance(value, dict):
        return {name: doubled(part, rows, torch) for name, part in value.items()}
    if isinstance(value, (list, tuple)) and type(value) in (list, tuple):
        return type(value)(doubled(part, rows, torch) for part in value)
    return value


def to_go_back_from(answer, torch):
    """The loss in a model's answer, else the mean of its first tensor. Raises ValueError where there is neither."""
    parts = answer.values() if isinstance(answer, dict) else answer if isinstance(answer, (list, tuple)) else [answer]
    tensors = [part for part in parts if isinstance(part, torch.Tensor) and part.requires_grad]
    for tensor in tensors:
        if tensor.numel() == 1:
            return tensor.reshape(())
    if not tensors:
        raise ValueError("its answer holds no tensor that it learns from")
    return tensors[0].float().mean()
