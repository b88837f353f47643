"""Faults of steps, copies and files in ways of writing that were missed once, and code beside them that is right."""

import pytest
from tests.optimise.scan.variants import Collection, Variant

WAYS = Collection()
fault, right = WAYS.fault, WAYS.right

# --- host-sync: what is read behind the counter of the optimizer step is read at every step ---------------------------
fault("host-sync", "behind the turn that goes on without a step", """
    import torch

    def train(model, opt, loader, accum):
        for i, (x, y) in enumerate(loader):
            loss = model(x, y) / accum
            loss.backward()
            if (i + 1) % accum:
                continue
            opt.step()
            opt.zero_grad()
            print(f"loss {loss.item() * accum:.3f}")  # <-
""")  # fmt: skip
right("host-sync", "every hundredth step behind the counter of the step", """
    import torch

    def train(model, opt, loader, accum):
        done = 0
        for i, (x, y) in enumerate(loader):
            loss = model(x, y) / accum
            loss.backward()
            if (i + 1) % accum == 0:
                opt.step()
                opt.zero_grad()
                done += 1
                if done % 100 == 0:
                    print(f"loss {loss.item() * accum:.3f}")
""")  # fmt: skip

# --- compile: anew at every call of the method that trains ------------------------------------------------------------
fault("compile", "in the method that the loop over rounds calls", """
    import torch

    class Agent:
        def __init__(self, net, opt):
            self.net, self.opt = net, opt

        def loss(self, x, y):
            return ((self.net(x) - y) ** 2).mean()

        def update(self, rows):
            loss_of = torch.compile(lambda x, y: self.loss(x, y))  # <-
            for x, y in rows:
                loss = loss_of(x, y)
                loss.backward()
                self.opt.step()
                self.opt.zero_grad()

        def learn(self, rounds):
            for _ in range(rounds):
                self.update(self.collect())
""")  # fmt: skip
right("compile", "one model for each width that is tried", """
    import torch
    from torch import nn

    def fit(width, rows):
        net = nn.Linear(width, 1)
        opt = torch.optim.SGD(net.parameters(), 0.1)
        fast = torch.compile(net)
        for x, y in rows:
            loss = ((fast(x) - y) ** 2).mean()
            loss.backward()
            opt.step()
            opt.zero_grad()

    def sweep(rows):
        for width in (64, 128):
            fit(width, rows)
""")  # fmt: skip
right("compile", "an object for each setting that is tried", """
    import torch

    class Agent:
        def __init__(self, net, opt):
            self.net, self.opt = net, opt

        def fit(self, rows):
            fast = torch.compile(self.net)
            for x, y in rows:
                loss = ((fast(x) - y) ** 2).mean()
                loss.backward()
                self.opt.step()
                self.opt.zero_grad()

    def sweep(settings, rows):
        for net, opt in settings:
            agent = Agent(net, opt)
            agent.fit(rows)
""")  # fmt: skip

# --- recast: all positions in fp32 where one is used ------------------------------------------------------------------
fault("recast", "last position of what a helper cast", """
    class Decoder:
        def scores(self, hidden):
            return self.head(hidden).float()  # <-

        def next(self, hidden):
            return self.scores(hidden)[:, -1].argmax(-1)
""")  # fmt: skip
right("recast", "cast behind the cut", """
    class Decoder:
        def scores(self, hidden):
            return self.head(hidden[:, -1]).float()

        def loss(self, hidden, labels, criterion):
            return criterion(self.head(hidden), labels)
""")  # fmt: skip

# --- async-copy: one stage that an unknown function fills, and only streams that wait for each other ------------------
fault("async-copy", "filled by what is handed over", """
    import torch

    class Restorer:
        def __init__(self, shape):
            self.stage = torch.empty(shape, pin_memory=True)
            self.stream = torch.cuda.Stream()

        def fetch(self, blocks, out, unpack):
            with torch.cuda.stream(self.stream):
                for j, block in enumerate(blocks):
                    unpack(block, self.stage)
                    out[j].copy_(self.stage, non_blocking=True)  # <-
            torch.cuda.current_stream().wait_stream(self.stream)
            return out
""")  # fmt: skip
right("async-copy", "an event that the host waits for before it fills again", """
    import torch

    class Restorer:
        def __init__(self, shape):
            self.stage = torch.empty(shape, pin_memory=True)
            self.done = torch.cuda.Event()

        def fetch(self, blocks, out, unpack):
            for j, block in enumerate(blocks):
                self.done.synchronize()
                unpack(block, self.stage)
                out[j].copy_(self.stage, non_blocking=True)
                self.done.record()
            return out
""")  # fmt: skip

# --- checkpoint: the writer is handed over, the name comes from who moves the file ------------------------------------
fault("checkpoint", "a lambda that gets the final name", """
    import torch

    def publish(folder, name, writer):
        path = folder / name
        writer(path)

    def keep(folder, model):
        publish(folder, "model.pt", lambda p: torch.save(model.state_dict(), p))  # <-
""")  # fmt: skip
right("checkpoint", "a lambda that gets a name beside it", """
    import os
    import tempfile
    import torch

    def publish(folder, name, writer):
        handle, draft = tempfile.mkstemp(dir=folder)
        os.close(handle)
        writer(draft)
        os.replace(draft, folder / name)

    def keep(folder, model):
        publish(folder, "model.pt", lambda p: torch.save(model.state_dict(), p))
""")  # fmt: skip


def _name(variant: Variant) -> str:
    return f"{variant.kind}-{variant.name.replace(' ', '-')}"


@pytest.mark.parametrize("variant", WAYS.variants, ids=_name)
def test_faults_are_found_and_what_is_right_is_not(variant: Variant) -> None:
    assert bool(variant.found()) == variant.fault, variant.found()
