"""Faults of devices, copies, casts, accumulation and files in forms that larger programs have, and what is right."""

import pytest
from tests.optimise.scan.variants import Collection, Variant

WAYS = Collection()
fault, right = WAYS.fault, WAYS.right

# --- device-string: numbers of devices, and tensors in lists ----------------------------------------------------------
fault("device-string", "the name of a device with a number", """
    import torch

    def main(gpu):
        device = torch.device("cuda", gpu) if torch.cuda.is_available() else torch.device("cpu")
        if str(device) == "cuda":  # <-
            torch.backends.cudnn.benchmark = True
""")  # fmt: skip
right("device-string", "the name of a device without a number", """
    import torch

    def main():
        device = torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")
        if str(device) == "cuda":
            torch.backends.cudnn.benchmark = True
""")  # fmt: skip
fault("device-string", "a device with a number against one without", """
    import torch
    from torch import nn

    class Pages(nn.Module):
        def __init__(self, shape, device):
            super().__init__()
            self.register_buffer("kv", torch.zeros(shape, device=device))

    class Engine:
        def __init__(self, shape, rank):
            self.pages = Pages(shape, torch.device("cuda", rank))
            self.fused = self.pages.kv.device == torch.device("cuda")  # <-
""")  # fmt: skip
right("device-string", "the kind of a device", """
    import torch

    class Engine:
        def __init__(self, kv, device: torch.device):
            self.fused = kv.device.type == "cuda" and kv.device == device
""")  # fmt: skip
fault("device-string", "a kind of device against a name with a number", """
    import torch

    class Lanes:
        def __init__(self, device: torch.device):
            self.device = device

        def make(self):
            return torch.cuda.Stream() if self.device.type == f"cuda:{self.device.index}" else None  # <-
""")  # fmt: skip
fault("device-string", "a table that is asked for the device of a parameter", """
    import torch

    FORMATS = {"cuda": torch.bfloat16, "cpu": torch.float32}

    class Trainer:
        def __init__(self, model):
            self.params = list(model.parameters())
            where = self.params[0].device
            self.format = FORMATS.get(where, torch.float32)  # <-
""")  # fmt: skip
fault("device-string", "the device of a library's object", """
    from accelerate import Accelerator

    runner = Accelerator()
    pinned = runner.device == "cuda"  # <-
""")  # fmt: skip
fault("device-string", "a method whose object is not called self", """
    import torch

    class Place:
        def __init__(s, device: torch.device):
            s.device = device

        def fast(s):
            return s.device == "cuda"  # <-
""")  # fmt: skip

# --- recast: of weights for a functional call, of masters, and for a cut ----------------------------------------------
fault("recast", "weights for every call of a solver", """
    import torch
    from torch.func import functional_call

    def field(net, weights):
        run = torch.compile(lambda p, *rest: functional_call(net, p, rest))

        def velocity(x, t):
            halves = {name: w.bfloat16() for name, w in weights.items()}  # <-
            return run(halves, x, t)

        return velocity

    def solve(velocity, x, times):
        for t in times:
            x = x + velocity(x, t)
        return x

    def main(net, weights, x, times):
        return solve(field(net, weights), x, times)
""")  # fmt: skip
right("recast", "weights once for all calls of a solver", """
    import torch
    from torch.func import functional_call

    def main(net, weights, x, times):
        halves = {name: w.bfloat16() for name, w in weights.items()}
        for t in times:
            x = x + functional_call(net, halves, (x, t))
        return x
""")  # fmt: skip
fault("recast", "masters in one call at every micro-batch", """
    import torch

    def train(net, rows, accum):
        fulls = [p.detach().clone() for p in net.parameters()]
        halves = list(net.bfloat16().parameters())
        opt = torch.optim.AdamW(fulls)
        for batch in rows:
            for x, y in batch.chunk(accum):
                torch._foreach_copy_([p.data for p in halves], [m.data for m in fulls])  # <-
                (net(x, y) / accum).backward()
            opt.step()
            opt.zero_grad()
""")  # fmt: skip
fault("recast", "whatever is handed in, cut behind the cast", """
    import torch

    def pick(z):
        z = z.float()[:, -1]  # <-
        return torch.multinomial(z.softmax(-1), 1)
""")  # fmt: skip
fault("recast", "the ends of many texts", """
    import torch

    class Engine:
        def prefill(self, flat, lens):
            scores = self.model.lm_head(self.model.body(flat)).to(torch.float32)  # <-
            ends = lens.cumsum(0) - 1
            return scores[ends].argmax(-1)
""")  # fmt: skip
right("recast", "cut before the cast", """
    import torch

    def pick(z):
        z = z[:, -1].float()
        return torch.multinomial(z.softmax(-1), 1)
""")  # fmt: skip
fault("recast", "the weight of a convolution", """
    import torch.nn.functional as F
    from torch import nn

    class Conv(nn.Conv2d):
        def forward(self, x):
            return F.conv2d(x, self.weight.type_as(x), None, self.stride)  # <-
""")  # fmt: skip

# --- async-copy: batches that a loader does not pin -------------------------------------------------------------------
LOADS = """
    import dataclasses
    import torch
    from torch.utils.data import DataLoader

    @dataclasses.dataclass
    class Batch:
        sound: torch.Tensor
{pins}
        def to(self, device):
            return Batch(self.sound.to(device, non_blocking=True))  # <-

    def collate(rows):
        return Batch(torch.stack(rows))

    def main(rows):
        return DataLoader(rows, 8, collate_fn=collate, pin_memory=True)
"""
fault("async-copy", "batches of a class of its own", LOADS.format(pins=""))
right("async-copy", "batches of a class that pins itself", LOADS.replace("  # <-", "").format(pins="""
        def pin_memory(self):
            self.sound = self.sound.pin_memory()
            return self
"""))  # fmt: skip

# --- accumulation: in hooks, in helpers, and by a share that is kept --------------------------------------------------
fault("accumulation", "a hook that clears at every batch", """
    import lightning as L

    class Net(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def on_train_batch_start(self, batch, number):
            self.zero_grad()  # <-

        def training_step(self, batch, number):
            self.manual_backward(self.net(batch) / 4)
            if (number + 1) % 4 == 0:
                self.optimizers().step()
""")  # fmt: skip
fault("accumulation", "a helper that reduces at every micro-batch", """
    import torch.distributed as dist

    class Stage:
        def backward_all(self, kept):
            for x, out in reversed(kept):
                out.backward()
                for p in self.params:
                    dist.all_reduce(p.grad)  # <-

        def step(self, kept):
            self.backward_all(kept)
            self.optimizer.step()
            self.optimizer.zero_grad()
""")  # fmt: skip
right("accumulation", "a helper that reduces once", """
    import torch.distributed as dist

    class Stage:
        def backward_all(self, kept):
            for x, out in reversed(kept):
                out.backward()
            for p in self.params:
                dist.all_reduce(p.grad)

        def step(self, kept):
            self.backward_all(kept)
            self.optimizer.step()
            self.optimizer.zero_grad()
""")  # fmt: skip
fault("accumulation", "a share of a loss that a library scales", """
    from accelerate import Accelerator

    class Objective:
        def __init__(self, accumulate):
            self.share = 1.0 / accumulate

        def __call__(self, model, x, y):
            return model(x, y) * self.share  # <-

    class Trainer:
        def __init__(self, accumulate):
            self.accelerator = Accelerator(gradient_accumulation_steps=accumulate)
            self.objective = Objective(accumulate)

        def fit(self, model, opt, loader):
            for x, y in loader:
                with self.accelerator.accumulate(model):
                    loss = self.objective(model, x, y)
                    self.accelerator.backward(loss)
                    opt.step()
                    opt.zero_grad()
""")  # fmt: skip

# --- pickle and eval-output: kept readers, and texts that go through objects and threads ------------------------------
fault("pickle", "a reader in a table", """
    import functools
    import numpy as np

    READERS = {
        ".bin": functools.partial(np.fromfile, dtype=np.int32),
        ".npy": functools.partial(np.load, allow_pickle=True),  # <-
    }
""")  # fmt: skip
right("pickle", "a reader that unpickles nothing", """
    import functools
    import numpy as np

    READERS = {".npy": functools.partial(np.load, mmap_mode="r")}
""")  # fmt: skip
fault("eval-output", "a proposal that a thread made", """
    import asyncio
    from dataclasses import dataclass

    @dataclass
    class Proposal:
        kind: str
        payload: str

        @classmethod
        def parse(cls, text):
            kind, _, payload = text.partition(":")
            return cls(kind=kind, payload=payload)

    class Planner:
        def plan(self, request) -> Proposal:
            return Proposal.parse(self.tokenizer.decode(self.model.generate(request)))

    class Shell:
        async def run(self, payload):
            return await asyncio.create_subprocess_shell(payload)  # <-

    class Copilot:
        def __init__(self, planner: Planner, shell: Shell):
            self.planner = planner
            self.handlers = {"run": shell.run}

        async def handle(self, request):
            proposal = await asyncio.to_thread(self.planner.plan, request)
            return await self.handlers[proposal.kind](proposal.payload)
""")  # fmt: skip
fault("eval-output", "an object that answers", """
    import os

    class Agent:
        def step(self, seen):
            action = self.llm(seen)
            if action.startswith("bash:"):
                os.system(action[5:])  # <-
""")  # fmt: skip


def _name(variant: Variant) -> str:
    return f"{variant.kind}-{variant.name.replace(' ', '-')}"


@pytest.mark.parametrize("variant", WAYS.variants, ids=_name)
def test_faults_are_found_and_what_is_right_is_not(variant: Variant) -> None:
    assert bool(variant.found()) == variant.fault, variant.found()
