"""Faults of steps, copies, modes and texts in forms that larger programs have, and code beside them that is right."""

import pytest
from tests.optimise.scan.variants import Collection, Variant

WAYS = Collection()
fault, right = WAYS.fault, WAYS.right

# --- eval-mode: what .eval() and no_grad do not reach -----------------------------------------------------------------
fault("eval-mode", "a function that drops at every call", """
    import torch.nn.functional as F
    from torch import nn

    class Block(nn.Module):
        def forward(self, x):
            return F.dropout(self.up(x), p=0.1)  # <-
""")  # fmt: skip
fault("eval-mode", "attention that drops at every call", """
    import torch.nn.functional as F
    from torch import nn

    class Attention(nn.Module):
        def __init__(self, p=0.1):
            super().__init__()
            self.p = p

        def forward(self, q, k, v):
            return F.scaled_dot_product_attention(q, k, v, dropout_p=self.p)  # <-
""")  # fmt: skip
right("eval-mode", "told the mode", """
    import torch.nn.functional as F
    from torch import nn

    class Attention(nn.Module):
        def forward(self, q, k, v):
            y = F.scaled_dot_product_attention(q, k, v, dropout_p=self.p if self.training else 0.0)
            return F.dropout(y, self.p, self.training)
""")  # fmt: skip
right("eval-mode", "nothing to drop", """
    import torch.nn.functional as F
    from torch import nn

    class Attention(nn.Module):
        def forward(self, q, k, v):
            return F.scaled_dot_product_attention(q, k, v, dropout_p=0.0)
""")  # fmt: skip
fault("eval-mode", "one pass for training and evaluation", """
    def run(model, rows, opt=None):
        total = 0.0
        for x, y in rows:
            loss = model(x, y)  # <-
            if opt is not None:
                opt.zero_grad()
                loss.backward()
                opt.step()
            total += loss.detach()
        return total

    def fit(model, rows, held_out, opt):
        for _ in range(9):
            model.train()
            run(model, rows, opt)
            model.eval()
            run(model, held_out)
""")  # fmt: skip
right("eval-mode", "one pass that is told whether gradients are on", """
    import torch

    def run(model, rows, opt=None):
        total = 0.0
        for x, y in rows:
            with torch.set_grad_enabled(opt is not None):
                loss = model(x, y)
            if opt is not None:
                opt.zero_grad()
                loss.backward()
                opt.step()
            total += loss.detach()
        return total

    def fit(model, rows, held_out, opt):
        for _ in range(9):
            model.train()
            run(model, rows, opt)
            model.eval()
            run(model, held_out)
""")  # fmt: skip
fault("eval-mode", "a context that is only named", """
    import torch

    def target(net, slow, x):
        torch.no_grad()  # <-
        return slow(x).gather(-1, net(x).argmax(-1, keepdim=True))
""")  # fmt: skip
fault("eval-mode", "a reference that is handed on", """
    import torch.nn.functional as F

    def preference(policy, ref, batch):
        wins, loses = policy(batch["win"]), policy(batch["lose"])
        base = ref(batch["win"]) - ref(batch["lose"])  # <-
        return -F.logsigmoid(wins - loses - base).mean()

    def train(policy, ref, loader, opt):
        for batch in loader:
            loss = preference(policy, ref, batch)
            loss.backward()
            opt.step()
            opt.zero_grad()
""")  # fmt: skip
fault("eval-mode", "a teacher of a library that makes models to be trained", """
    import torch
    import torchvision

    def distill(student, loader, opt):
        teacher = torchvision.models.resnet50(weights="DEFAULT").cuda()
        for x, y in loader:
            with torch.no_grad():
                wanted = teacher(x)  # <-
            loss = (student(x) - wanted).pow(2).mean()
            loss.backward()
            opt.step()
            opt.zero_grad()
""")  # fmt: skip
right("eval-mode", "a teacher that was put into evaluation mode", """
    import torch
    import torchvision

    def distill(student, loader, opt):
        teacher = torchvision.models.resnet50(weights="DEFAULT").cuda().eval()
        for x, y in loader:
            with torch.no_grad():
                wanted = teacher(x)
            loss = (student(x) - wanted).pow(2).mean()
            loss.backward()
            opt.step()
            opt.zero_grad()
""")  # fmt: skip

# --- compile: made again, or met with another number ------------------------------------------------------------------
fault("compile", "a property that compiles", """
    import torch

    class Stepper:
        def __init__(self, net):
            self.net = net

        @property
        def decode(self):
            return torch.compile(self.net, fullgraph=True)  # <-
""")  # fmt: skip
right("compile", "a property that compiles once", """
    import functools
    import torch

    class Stepper:
        def __init__(self, net):
            self.net = net

        @functools.cached_property
        def decode(self):
            return torch.compile(self.net, fullgraph=True)
""")  # fmt: skip
fault("compile", "a request that compiles", """
    import torch

    class Server:
        def __init__(self, model):
            self.model = model

        @torch.no_grad()
        def generate(self, ids, n):
            step = torch.compile(self.model)  # <-
            cache = self.model.new_cache()
            for _ in range(n):
                ids = step(ids, cache)[:, -1:].argmax(-1)
            return ids
""")  # fmt: skip
fault("compile", "a position that is a Python number", """
    import torch

    def generate(model, tok, cache, n):
        fast = torch.compile(model, mode="reduce-overhead")
        for pos in range(n):
            tok = fast(tok, pos, cache)[:, -1:].argmax(-1)  # <-
        return tok
""")  # fmt: skip
right("compile", "a position that is a tensor", """
    import torch

    def generate(model, tok, cache, n):
        fast = torch.compile(model, mode="reduce-overhead")
        where = torch.zeros(1, dtype=torch.long)
        for _ in range(n):
            tok = fast(tok, where, cache)[:, -1:].argmax(-1)
            where = where + 1
        return tok
""")  # fmt: skip
fault("compile", "a size that a policy draws for a library's step", """
    import random
    from typing import Protocol
    import lightning as L
    import torch
    import torch.nn.functional as F

    class Policy(Protocol):
        def side(self, step): ...

    class AnySide:
        def side(self, step):
            return random.Random(step).choice(range(160, 353, 8))

    class Net(L.LightningModule):
        def __init__(self, net, policy: Policy):
            super().__init__()
            self.policy = policy
            self.net = torch.compile(net, dynamic=False)  # <-

        def training_step(self, batch, number):
            side = self.policy.side(self.global_step)
            return F.cross_entropy(self.net(F.interpolate(batch[0], size=(side, side))), batch[1])
""")  # fmt: skip
fault("compile", "a model that an object keeps", """
    import torch

    class Run:
        def __init__(self, build):
            self.net = build(depth=12).to("cuda")  # <-
            self.opt = torch.optim.AdamW(self.net.parameters())



        def train(self, rows):
            for x, y in rows:
                loss = self.net(x, y)
                loss.backward()
                self.opt.step()
                self.opt.zero_grad()
""")  # fmt: skip

# --- host-sync: in hooks, through map, and in what a dict of objects keeps --------------------------------------------
fault("host-sync", "a hook on every gradient", """
    import torch

    def watch(net, norms):
        def hook(name):
            def keep(grad):
                norms[name] = grad.norm().item()  # <-
            return keep
        return [p.register_hook(hook(name)) for name, p in net.named_parameters()]
""")  # fmt: skip
fault("host-sync", "map over the losses", """
    def train(model, opt, loader, kept):
        for x, y in loader:
            a, b = model(x, y)
            loss = a + b
            loss.backward()
            opt.step()
            opt.zero_grad()
            kept.append(list(map(float, (a, b))))  # <-
""")  # fmt: skip
fault("host-sync", "meters in a dict", """
    class Mean:
        def __init__(self):
            self.total, self.count = 0.0, 0

        def add(self, value):
            self.total += float(value)  # <-
            self.count += 1

    class Watch:
        def __init__(self):
            self.means: dict[str, Mean] = {}

        def record(self, values):
            for name, value in values.items():
                self.means.setdefault(name, Mean()).add(value)

    def train(model, opt, loader, watch: Watch):
        for x, y in loader:
            loss = model(x, y)
            loss.backward()
            opt.step()
            opt.zero_grad()
            watch.record({"loss": loss.detach()})
""")  # fmt: skip
right("host-sync", "meters that add up on the device", """
    class Mean:
        def __init__(self):
            self.total, self.count = 0.0, 0

        def add(self, value):
            self.total = self.total + value
            self.count += 1

    class Watch:
        def __init__(self):
            self.means: dict[str, Mean] = {}

        def record(self, values):
            for name, value in values.items():
                self.means.setdefault(name, Mean()).add(value)

    def train(model, opt, loader, watch: Watch):
        for x, y in loader:
            loss = model(x, y)
            loss.backward()
            opt.step()
            opt.zero_grad()
            watch.record({"loss": loss.detach()})
""")  # fmt: skip


fault("host-sync", "the rows of each expert", """
    import torch
    from torch import nn

    class Experts(nn.Module):
        def forward(self, x):
            chosen = self.gate(x).argmax(-1)
            out = torch.zeros_like(x)
            for number, expert in enumerate(self.experts):
                mine = chosen == number
                out[mine] = expert(x[mine])  # <-
            return out
""")  # fmt: skip
right("host-sync", "all experts on all rows", """
    import torch
    from torch import nn

    class Experts(nn.Module):
        def forward(self, x):
            shares = self.gate(x).softmax(-1)
            parts = torch.stack([expert(x) for expert in self.experts], -1)
            return (parts * shares[:, None]).sum(-1)
""")  # fmt: skip
fault("compile", "rows of any width for fixed shapes", """
    import torch
    from torch.nn.utils.rnn import pad_sequence
    from torch.utils.data import DataLoader

    def join(rows):
        return pad_sequence(rows, batch_first=True)

    def main(rows, model):
        loader = DataLoader(rows, 16, collate_fn=join)
        model = torch.compile(model, dynamic=False)  # <-
        return [model(x) for x in loader]
""")  # fmt: skip


def _name(variant: Variant) -> str:
    return f"{variant.kind}-{variant.name.replace(' ', '-')}"


@pytest.mark.parametrize("variant", WAYS.variants, ids=_name)
def test_faults_are_found_and_what_is_right_is_not(variant: Variant) -> None:
    assert bool(variant.found()) == variant.fault, variant.found()
