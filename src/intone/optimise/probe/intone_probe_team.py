"""Processes that train together: how often they exchange gradients, what that costs, and who is slow.

An exchange is known of DistributedDataParallel, and of all_reduce called on gradients. Behind the look come steps with
and without it, in the order A B B A; every process counts the same steps, so that all leave it out in the same ones.
How long a process takes for its own work shows in those. Weights part in them: the program is ended behind them.
"""

import functools
import json
import statistics
import time

BLOCK_STEPS = 3  # that are timed of a block; the step before them lets the processes come together again
ORDER = (True, False, False, True)  # whether gradients are exchanged


class Team:
    """What is known of the exchange so far. begin(), then step() behind each step."""

    def __init__(self, probe):
        self.probe = probe
        self.models = []  # of DistributedDataParallel
        self.prepared = False  # a model exchanges the gradients of the newest backward pass
        self.exchanged = False  # all_reduce was called on them, by the program or for a model
        self.num_exchanges = 0  # backward passes whose gradients were exchanged
        self.gradients = None  # (places in memory, number of values) since the newest backward pass
        self.is_silent = False
        self.count = 0  # steps since begin()
        self.last_s = 0.0
        self.seconds: dict = {True: [], False: []}

    # --- hooks ----------------------------------------------------------------------------------------------------

    def install(self, torch):
        distributed = getattr(torch, "distributed", None)
        if distributed is None or not distributed.is_available():
            return
        self.wrap_models(torch)
        self.wrap_backward(torch)
        self.wrap_all_reduce(distributed)

    def wrap_models(self, torch):
        plain, models = torch.nn.parallel.DistributedDataParallel.__init__, self.models

        @functools.wraps(plain)
        def made(model, *args, **kwargs):
            plain(model, *args, **kwargs)
            models.append(model)

        torch.nn.parallel.DistributedDataParallel.__init__ = made

    def wrap_backward(self, torch):
        plain, team = torch.Tensor.backward, self

        @functools.wraps(plain)
        def backward(tensor, *args, **kwargs):
            team.before_backward()
            return plain(tensor, *args, **kwargs)

        torch.Tensor.backward = backward

    def wrap_all_reduce(self, distributed):
        plain, team = distributed.all_reduce, self

        @functools.wraps(plain)
        def all_reduce(tensor, *args, **kwargs):
            if not team.probe.is_compiling() and team.is_gradient(tensor):
                team.exchanged = True
                if team.is_silent:
                    return Done() if kwargs.get("async_op") or (len(args) > 2 and args[2]) else None
            return plain(tensor, *args, **kwargs)

        distributed.all_reduce = all_reduce

    def before_backward(self):
        self.settle()
        # the flag says what the newest forward pass prepared: no_sync() around it clears it
        self.prepared = any(getattr(model, "require_forward_param_sync", False) for model in self.models)

    def settle(self):
        """Counts the newest backward pass where its gradients were exchanged."""
        self.num_exchanges += self.prepared or self.exchanged
        self.prepared, self.exchanged, self.gradients = False, False, None

    def is_gradient(self, tensor):
        """Whether an exchanged tensor is a gradient, or holds at least half of them."""
        if self.gradients is None:  # looked up once for every backward pass
            weights = [
                weight for optimizer in self.probe.optimizers.values() for group in optimizer.param_groups
                for weight in group["params"] if weight.grad is not None
            ]  # fmt: skip
            self.gradients = {weight.grad.data_ptr() for weight in weights}, sum(one.numel() for one in weights)
        places, whole = self.gradients
        try:
            return tensor.data_ptr() in places or (whole > 0 and 2 * tensor.numel() >= whole)
        except RuntimeError:
            return False  # it has no memory of its own

    # --- steps without an exchange --------------------------------------------------------------------------------

    def begin(self):
        """Starts the steps that are compared; False where no exchange was seen. Every process answers alike."""
        if not self.num_exchanges:
            self.probe.notes.append("processes train together, and how they exchange gradients is not known: no"
                                    " DistributedDataParallel, no all_reduce on gradients")  # fmt: skip
            return False
        self.last_s = self.now()
        return True

    def step(self):
        """Behind every step; True where all were done."""
        block, place = divmod(self.count, BLOCK_STEPS + 1)
        now_s = self.now()
        if place:
            self.seconds[ORDER[block]].append(now_s - self.last_s)
        self.count += 1
        block, place = divmod(self.count, BLOCK_STEPS + 1)
        if place == 0 and block < len(ORDER) and ORDER[block] == self.is_silent:
            self.turn(silent=not ORDER[block])
        if block == len(ORDER):
            return True
        if place == 0 and block == len(ORDER) - 1:
            self.write()  # before the last block: a step with an exchange ends for nobody before all have begun it
        self.last_s = self.now()
        return False

    def now(self):
        self.probe.sync()
        return time.perf_counter()

    def turn(self, silent):
        """Leaves the exchange out from here on, or takes it in again."""
        self.is_silent = silent
        models = self.probe.torch.nn.parallel.DistributedDataParallel
        if silent:
            # it lies over the model's own flag, which programs set in every step
            models.require_backward_grad_sync = property(lambda model: False, lambda model, value: None)
        else:
            del models.require_backward_grad_sync

    def write(self):
        """The own work of this process, for the first one's reader."""
        path = f"{self.probe.plan['out']}.rank{self.probe.rank}"
        with open(path, "w") as file:
            json.dump({"rank": self.probe.rank, "own_s": statistics.median(self.seconds[False])}, file)

    def found(self):
        """{"num_processes", "with_s"}; empty where nothing was compared."""
        if not self.seconds[True]:
            return {}
        size = self.probe.torch.distributed.get_world_size()
        return {"num_processes": size, "with_s": statistics.median(self.seconds[True])}


class Done:
    """What an exchange answers that was left out."""

    def wait(self, *args):
        return True

    def is_completed(self):
        return True
