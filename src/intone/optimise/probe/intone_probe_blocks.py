"""The probe's job of measuring: the program works in blocks of its own steps, on command, and waits between them.

After the warm steps it waits at the end of an optimizer step for commands on a socket, one line each; with "kind":
"generate" at the end of a call of its model outside of training. Beside sitecustomize.py, which starts it.
"""

import json
import time

EARLY_STEPS = 16  # whose losses go with every answer: two programs have them in common, however fast they are


class Job:
    """One connection to whoever measures. Only the first process of many answers."""

    def __init__(self, probe):
        self.probe = probe
        self.writes = probe.plan.get("kind") == "generate"  # steps are calls of the model, token by token
        self.is_inside = False  # of a call of a model
        self.channel = None
        self.left = 0
        self.block_s = 0.0
        self.block_begin = 0
        self.block_tokens = []  # of a block: newest token of each row, call by call
        self.early = []  # [step, loss] of the first steps

    def install(self, torch):
        if self.writes:
            self.wrap_calls(torch)

    def wrap_calls(self, torch):
        """Hears of the outermost calls of models."""
        plain = torch.nn.Module.__call__
        job = self

        def call(module, *args, **kwargs):
            if job.is_inside or job.probe.is_compiling():
                return plain(module, *args, **kwargs)
            job.is_inside = True
            try:
                return plain(module, *args, **kwargs)
            finally:
                job.is_inside = False
                job.after_call(args, kwargs)

        torch.nn.Module.__call__ = call

    def after_call(self, args, kwargs):
        """A call of the model outside of training is a step of generation; its newest tokens are kept."""
        whole = self.probe.ids_in(args, kwargs)
        if not whole or self.probe.torch.is_grad_enabled():
            return
        if self.left:
            self.block_tokens.append(whole[0][:, -1].tolist())
        self.probe.num_steps += 1
        self.step()

    def step(self):
        """Counts down a block; where it is done, answers and waits for the next."""
        probe = self.probe
        if probe.num_steps < probe.warm or probe.rank != 0:
            return
        if self.channel is None:
            self.connect()
            self.wait()
            return
        self.left -= 1
        if self.left == 0:
            self.answer()
            self.wait()

    def connect(self):
        import socket

        self.channel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.channel.connect(self.probe.plan["socket"])
        self.lines = self.channel.makefile("rb")
        self.probe.sync()
        first_s = time.perf_counter() - self.probe.begin_s
        self.take_losses()
        self.say({"ready": True, "first_s": first_s, "warm_s": 0.0, "facts": self.probe.facts()})

    def answer(self):
        probe = self.probe
        probe.sync()
        seconds = time.perf_counter() - self.block_s
        losses = self.take_losses()
        self.say({
            "steps": probe.num_steps - self.block_begin, "seconds": seconds, "losses": losses,
            "first_step": self.block_begin, "peak_bytes": probe.peak_bytes(), "texts": self.block_tokens,
            "tokens": sum(map(len, self.block_tokens)), "early": self.early,
        })  # fmt: skip
        self.block_tokens = []

    def take_losses(self):
        """The losses of a block; those of the first steps are kept beside."""
        known, self.probe.losses = self.probe.losses, []
        self.early += [[step, float(loss)] for step, loss in known if step < EARLY_STEPS]
        return [float(loss) for step, loss in known if step >= self.block_begin]

    def wait(self):
        line = self.lines.readline()
        command = json.loads(line.decode()) if line.strip() else {"do": "quit"}
        if command.get("do") == "quit":
            self.probe.leave()
        self.left = int(command["steps"])
        self.block_begin = self.probe.num_steps
        self.probe.sync()
        self.block_s = time.perf_counter()

    def say(self, value):
        assert self.channel is not None, "connect() comes first"
        self.channel.sendall((json.dumps(value) + "\n").encode())
