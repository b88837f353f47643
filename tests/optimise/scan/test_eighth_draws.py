"""Draws that rows, steps and ranks share, in ways of writing that were missed once, and code beside that is right."""

import pytest
from tests.optimise.scan.variants import Collection, Variant

WAYS = Collection()
fault, right = WAYS.fault, WAYS.right

# --- copied-token: noise of one row, from a helper --------------------------------------------------------------------
DRAWER = """
    import torch
    class Drawer:
        def noise(self, logits):
            return SIZED
        def __call__(self, logits):
            g = -torch.log(-torch.log(self.noise(logits)))
            return (logits + g).argmax(-1)
"""
for sized in (
    "torch.rand(1, logits.shape[-1])",
    "torch.rand_like(logits[:1])",
    "torch.rand_like(logits[0])",
    "torch.rand(logits.shape[-1:])",
    "torch.empty(1, logits.size(-1)).uniform_()",
):
    fault("copied-token", sized, DRAWER.replace("SIZED", f"{sized}  # <-"))
for sized in ("torch.rand_like(logits)", "torch.rand(*logits.shape)", "torch.rand(logits.size(0), logits.size(-1))"):
    right("copied-token", sized, DRAWER.replace("SIZED", sized))
fault("copied-token", "of a distribution", """
    import torch
    from torch.distributions import Gumbel
    def draw(logits):
        rows, width = logits.shape
        g = Gumbel(0.0, 1.0).sample((width,))  # <-
        return torch.argmax(logits + g, dim=-1)
""")  # fmt: skip
NUMPY = """
    import numpy as np
    def pick(logits, rng):
        rows, width = logits.shape
        noise = rng.gumbel(size=SIZE)
        return np.argmax(logits + noise, axis=-1)
"""
fault("copied-token", "of numpy", NUMPY.replace("SIZE)", "width)  # <-"))
right("copied-token", "of numpy for each row", NUMPY.replace("SIZE", "logits.shape"))
RACE = """
    import torch
    def pick(probs):
        q = torch.empty_like(LIKE).exponential_(1)
        return (probs / q).argmax(dim=-1, keepdim=True)
"""
fault("copied-token", "race of one row", RACE.replace("LIKE).exponential_(1)", "probs[0]).exponential_(1)  # <-"))
right("copied-token", "race of each row", RACE.replace("LIKE", "probs"))
right("copied-token", "one row in all", """
    import torch
    def pick(logits):
        q = torch.empty_like(logits[0]).exponential_(1)
        return (logits[0, -1].softmax(-1) / q).argmax(-1).item()
""")  # fmt: skip
fault("copied-token", "threshold of a helper", """
    import torch
    def level(device):
        return torch.rand((), device=device)
    def pick(probs):
        u = level(probs.device)  # <-
        return (probs.cumsum(-1) < u).sum(-1)
""")  # fmt: skip

# --- copied-token: one draw for the batch of a training ---------------------------------------------------------------
STEP = """
    import random
    import numpy as np
    import torch
    import torch.nn.functional as F
    class Trainer:
        def training_step(self, x):
            b = x.shape[0]
            t = DRAWN
            eps = torch.randn_like(x)
            a = self.kept[t].view(-1, 1, 1, 1)
            return F.mse_loss(self.net(a.sqrt() * x + (1 - a).sqrt() * eps, t), eps)
"""
for drawn in (
    "torch.randint(0, self.T, (1,)).repeat(b)",
    "torch.full((b,), random.randint(0, self.T - 1))",
    "torch.full((b,), int(torch.randint(self.T, (1,))), dtype=torch.long)",
    "torch.ones(b, dtype=torch.long) * np.random.randint(self.T)",
    "torch.tensor([random.randrange(self.T)] * b)",
    "torch.randint(0, self.T, (1,), device=x.device)",
    "torch.randint(0, self.T, ()).expand(x.size(0))",
):
    fault("copied-token", drawn, STEP.replace("DRAWN", f"{drawn}  # <-"))
for drawn in (
    "torch.tensor([random.randrange(self.T) for _ in range(b)])",
    "torch.full((b,), self.step)",
    "(torch.rand(1) + torch.arange(b) / b) % 1",
):
    right("copied-token", drawn, STEP.replace("DRAWN", drawn))
fault("copied-token", "noise of one row for all", """
    import torch
    def train(model, loader, opt):
        for x in loader:
            eps = torch.randn(1, *x.shape[1:]).expand_as(x)  # <-
            loss = (model(x + eps) - eps).pow(2).mean()
            loss.backward()
            opt.step()
            opt.zero_grad()
""")  # fmt: skip
ROWS = """
    import torch
    def get_batch(data, width, batch_size):
        i = torch.randint(len(data) - width, (SIZE,))
        return torch.stack([data[j : j + width] for j in i])
    def train(model, data, opt):
        for _ in range(10):
            loss = model(get_batch(data, 8, 4)).mean()
            loss.backward()
            opt.step()
"""
fault("copied-token", "rows of one place", ROWS.replace("SIZE", "1").replace(
    "[data[j : j + width] for j in i])", "[data[i : i + width] for _ in range(batch_size)])  # <-"))  # fmt: skip
right("copied-token", "rows of several places", ROWS.replace("SIZE", "batch_size"))
right("copied-token", "pictures that begin with one noise", """
    import torch
    def train(model, x):
        model(x).mean().backward()
    @torch.no_grad()
    def sample(model, n, steps):
        z = torch.randn(1, 3, 8, 8).expand(n, -1, -1, -1)
        for s in range(steps):
            z = model(z, torch.full((n,), s))
        return z
""")  # fmt: skip

# --- rng: a function that draws one token and seeds its own stream ----------------------------------------------------
fault("rng", "in the loop of a server", """
    import torch
    def choose(logits, temperatures):
        g = torch.Generator(device=logits.device).manual_seed(0)  # <-
        p = (logits / temperatures[:, None]).softmax(-1)
        return torch.multinomial(p, 1, generator=g)
    def serve(engine, queue):
        while True:
            engine.push(choose(engine.logits(queue), engine.temperatures))
""")  # fmt: skip
fault("rng", "numpy's, called by nobody here", """
    import numpy as np
    def towards(p):
        rng = np.random.default_rng(7)  # <-
        return rng.choice(len(p), p=p)
""")  # fmt: skip
right("rng", "with a seed of the caller's", """
    import torch
    def choose(logits, seed=0):
        g = torch.Generator().manual_seed(seed)
        return torch.multinomial(logits.softmax(-1), 1, generator=g)
    def write(model, ids, n):
        for i in range(n):
            ids = torch.cat([ids, choose(model(ids), 100 + i)], 1)
        return ids
""")  # fmt: skip
REQUEST = """
    import torch
    from dataclasses import dataclass
    @dataclass
    class Ask:
        prompt: torch.Tensor
        seed: SEED
        def attach(self):
            self.gen = torch.Generator()
            self.gen.manual_seed(self.seed)
    class Writer:
        def draw(self, logits, gen):
            return torch.multinomial(logits.softmax(-1), 1, generator=gen)
        def __call__(self, ask):
            ask.attach()
            last = self.net.prefill(ask.prompt.expand(self.n, -1))
            for _ in range(64):
                last = self.net.step(self.draw(last, ask.gen))
"""
right("rng", "of the request that is handed over", REQUEST.replace("SEED", "int"))

# --- rng: a stream of its own that is alike on all ranks --------------------------------------------------------------
RANKS = """
    import random
    import numpy as np
    import torch
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel as DDP
    def batch(data, gen):
        return torch.stack([data[i : i + 8] for i in PICKED])
    def main():
        dist.init_process_group("nccl")
        rank = dist.get_rank()
        data = np.memmap(PATH)
        gen = MADE
        net = DDP(Net())
        opt = torch.optim.AdamW(net.parameters())
        for step in range(100):
            net(batch(data, gen)).mean().backward()
            opt.step()
            opt.zero_grad()
"""
OF_TORCH = "torch.randint(len(data) - 8, (4,), generator=gen)"
OF_NUMPY = "gen.integers(0, len(data) - 8, size=4)"
OF_PYTHON = "[gen.randrange(len(data)) for _ in range(4)]"
for picked, made in {
    OF_TORCH: "torch.Generator().manual_seed(SEED)",
    OF_NUMPY: "np.random.default_rng(SEED)",
    OF_PYTHON: "random.Random(SEED)",
}.items():
    code = RANKS.replace("PATH", '"rows.bin"').replace("PICKED", picked).replace("MADE", made)
    fault("rng", f"ranks, {made}", code.replace("SEED)", "5)  # <-"))
    right("rng", f"ranks, {made} by rank", code.replace("SEED", "5 + rank"))
right("rng", "ranks, each with rows of its own", RANKS.replace("PATH", 'f"rows{rank}.bin"').replace(
    "PICKED", OF_TORCH).replace("MADE", "torch.Generator().manual_seed(1337)"))  # fmt: skip
fault("rng", "ranks, kept by an object", """
    import numpy as np, torch
    import torch.distributed as dist
    class Crops:
        def __init__(self, data, seed=0):
            self.data = data
            self.rng = np.random.default_rng(seed)  # <-
        def next(self):
            return self.data[self.rng.integers(0, len(self.data), size=8)]
    def main(data, net, opt):
        dist.init_process_group("nccl")
        crops = Crops(data)
        net = torch.nn.parallel.DistributedDataParallel(net)
        while True:
            net(crops.next()).mean().backward()
            opt.step()
            opt.zero_grad()
""")  # fmt: skip
right("rng", "ranks, a permutation of which each takes a part", """
    import torch
    import torch.distributed as dist
    def order(n, rank, world):
        g = torch.Generator()
        g.manual_seed(42)
        perm = torch.randperm(n, generator=g)
        return perm[rank * (n // world) : (rank + 1) * (n // world)]
    def main(rows, net, opt):
        dist.init_process_group("nccl")
        net = torch.nn.parallel.DistributedDataParallel(net)
        for i in order(len(rows), dist.get_rank(), dist.get_world_size()):
            net(rows[i]).mean().backward()
            opt.step()
            opt.zero_grad()
""")  # fmt: skip

# --- data-order: progress under another name --------------------------------------------------------------------------
EPOCHS = """
    import torch
    def train(net, opt, loader, per_epoch):
        done = 0
        if RESUME:
            sd = torch.load("last.pt", weights_only=True)
            net.load_state_dict(sd["net"]); opt.load_state_dict(sd["opt"])
            done = sd["updates"]
        for epoch in range(done // per_epoch, 90):
            loader.sampler.set_epoch(epoch)
            for it, x in enumerate(loader):
                PASSED
                net(x).mean().backward()
                opt.step()
                opt.zero_grad()
                done += 1
                if done % 500 == 0:
                    torch.save({"net": net.state_dict(), "opt": opt.state_dict(), "updates": done}, "last.pt")
"""
fault("data-order", "a counter of any name", EPOCHS.replace(
    'done = sd["updates"]', 'done = sd["updates"]  # <-').replace("PASSED", "pass"))  # fmt: skip
right("data-order", "a counter by which batches are passed over", EPOCHS.replace(
    "PASSED", "if it < done % per_epoch: continue"))  # fmt: skip

# --- cache-overflow: the first of two stores --------------------------------------------------------------------------
TIERS = '''
    """Decoding with the cold part of the key/value cache kept in host memory."""
    import torch
    class Hot:
        """The newest spans: a window."""
        def __init__(self, spans, shape):
            self.spans, self.written = spans, 0
            self.data = torch.zeros((spans, *shape))
        def _where(self):
            return self.written % self.spans
        def put(self, span):
            FIRST
            self.data[self._where()].copy_(span)
            self.written += 1
'''
fault("cache-overflow", "a window that hands nothing on", TIERS.replace("% self.spans", "% self.spans  # <-").replace(
    "FIRST", "pass"))  # fmt: skip
right("cache-overflow", "a window that hands on what falls out", TIERS.replace(
    "FIRST", "self.pool.offload(self.data[self._where()])"))  # fmt: skip


def _name(variant: Variant) -> str:
    return f"{variant.kind}-{variant.name.replace(' ', '-')}"


@pytest.mark.parametrize("variant", WAYS.variants, ids=_name)
def test_faults_are_found_and_what_is_right_is_not(variant: Variant) -> None:
    assert bool(variant.found()) == variant.fault, variant.found()
