"""Faults of steps told by facts of the whole program: what feeds a model, what pins, who waits, what runs again."""

import pytest
from tests.optimise.scan.variants import Collection, Variant

FACTS = Collection()
fault, right = FACTS.fault, FACTS.right

# --- host-sync: a loop that feeds its model with what it gave ---------------------------------------------------------
fault("host-sync", "a test in every turn of a sampler", """
    import torch

    @torch.no_grad()
    def denoise(unet, scheduler, shape):
        x = torch.randn(shape, device="cuda")
        for t in scheduler.timesteps:
            eps = unet(x, t)
            x = scheduler.advance(eps, t, x)
            if torch.isnan(x).any():  # <-
                raise FloatingPointError("diverged")
        return x
""")  # fmt: skip
right("host-sync", "the same test every fifty turns", """
    import torch

    @torch.no_grad()
    def denoise(unet, scheduler, shape):
        x = torch.randn(shape, device="cuda")
        for i, t in enumerate(scheduler.timesteps):
            eps = unet(x, t)
            x = scheduler.advance(eps, t, x)
            if i % 50 == 49 and torch.isnan(x).any():
                raise FloatingPointError("diverged")
        return x
""")  # fmt: skip
right("host-sync", "an action that a simulator takes on the host", """
    import torch

    @torch.no_grad()
    def play(policy, env, steps):
        obs, h = env.reset(), None
        for _ in range(steps):
            logits, h = policy(torch.as_tensor(obs, device="cuda"), h)
            action = logits.argmax(-1).cpu().numpy()
            obs, reward, done, info = env.step(action)
        return obs
""")  # fmt: skip
right("host-sync", "what a model gives for each batch, read once", """
    import torch

    @torch.no_grad()
    def embed(encoder, loader):
        parts = []
        for x in loader:
            parts.append(encoder(x.cuda()).cpu())
        return torch.cat(parts)
""")  # fmt: skip
fault("host-sync", "drafts checked number by number", """
    import torch

    class Sampler:
        def __init__(self, draft, target, width):
            self.draft, self.target, self.width = draft.eval(), target.eval(), width
            self.ask = torch.compile(self.draft.__call__, dynamic=True)
            self.check = torch.compile(self.target.__call__, dynamic=True)

        def propose(self, last, cache):
            tokens, chances = [last], []
            for i in range(self.width):
                q = torch.softmax(self.ask(tokens[-1], cache)[:, -1], -1)
                chances.append(q)
                tokens.append(torch.multinomial(q, 1))
            return torch.cat(tokens, 1), torch.stack(chances, 1)

        def accept(self, tokens, q, cache):
            p = torch.softmax(self.check(tokens, cache), -1)
            u = torch.rand_like(p[:, :-1, 0])
            n = 0
            while n < self.width:
                if u[0, n].item() * q[0, n, 0].item() > p[0, n, 0].item():  # <-
                    break
                n += 1
            return n, torch.multinomial(p[:, n], 1)

        def generate(self, last, caches, count):
            out, made = [last], 1
            while made < count:
                tokens, q = self.propose(last, caches[0])
                n, last = self.accept(tokens, q, caches[1])
                out.extend([tokens[:, 1 : 1 + n], last])
                made += n + 1
            return torch.cat(out, 1)
""")  # fmt: skip

# --- async-copy: what nothing pins, what is made of pinned memory, what nobody waits for ------------------------------
FEED = """
    from torch.utils.data import DataLoader

    def rows(ds):
        return DataLoader(ds, batch_size=32, num_workers=4{pin})

    class OnCard:
        def __init__(self, source, where):
            self.source, self.where = source, where

        def __iter__(self):
            for x, y in self.source:
                yield tuple(t.to(self.where, non_blocking=True) for t in (x, y))  # <-
"""
fault("async-copy", "a program that pins nothing", FEED.format(pin=""))
right("async-copy", "a program whose loader pins", FEED.format(pin=", pin_memory=True").replace("  # <-", ""))
LATE = """
    from torch.utils.data import DataLoader

    def train(net, opt, ds, device):
        for x, y in DataLoader(ds, batch_size=64, pin_memory=True):
            {first}
            {second}
            loss = net(x, y.to(device, non_blocking=True))
            loss.backward()
            opt.step()
            opt.zero_grad()
"""
SEND, SCALE = "x = x.to(device, non_blocking=True)", "x = x.float() / 255"
fault("async-copy", "a pinned batch made anew before it is sent", LATE.format(first=SCALE, second=SEND + "  # <-"))
right("async-copy", "a pinned batch made anew behind its copy", LATE.format(first=SEND, second=SCALE))
BACK = """
    import torch

    class Trace:
        def __init__(self):
            self.kept = {{}}

        def keep(self, name, value):
            self.kept[name] = value.detach().to("cpu", non_blocking=True)  # <-

    def flush(trace, sink):
        {wait}
        sink.put(trace.kept)
"""
fault("async-copy", "a copy to the host that nothing waits for", BACK.format(wait="pass"))
right(
    "async-copy", "a copy to the host with a wait", BACK.format(wait="torch.cuda.synchronize()").replace("  # <-", "")
)
STAGE = """
    import torch

    class Stage:
        def __init__(self, rows, width):
            self.buf = torch.empty(rows, width, dtype=torch.long, pin_memory=True)
            self.done = torch.cuda.Event()

        def fill(self, tokens):
            {wait}
            self.buf.copy_(tokens)

        def send(self):
            out = self.buf.to("cuda", non_blocking=True)  # <-
            self.done.record()
            return out
"""
fault("async-copy", "a buffer that another method fills", STAGE.format(wait="pass"))
right("async-copy", "a buffer whose copy is waited for",
      STAGE.format(wait="self.done.synchronize()").replace("  # <-", ""))  # fmt: skip

# --- compile: by whoever asks for it ----------------------------------------------------------------------------------
SERVE = """
    import torch
    from fastapi import FastAPI

    app = FastAPI()
    model = torch.jit.load("model.pt").cuda()
    eager = model.forward
    fast = None

    @app.post("/answer")
    def answer(body: dict):
        {how}
        return {{"ids": model.generate(body["ids"]).tolist()}}
"""
fault("compile", "the forward pass in every request", SERVE.format(how="model.forward = torch.compile(eager)  # <-"))
right("compile", "the forward pass in the first request", SERVE.format(
    how="global fast\n        if fast is None:\n            fast = model.forward = torch.compile(eager)"
))  # fmt: skip
fault("compile", "in a helper of the request", """
    import torch
    from fastapi import FastAPI

    app = FastAPI()
    NET = torch.jit.load("net.pt").cuda()

    def runner(mode):
        return torch.compile(NET, mode=mode)  # <-

    @app.post("/up")
    def up(body: dict):
        run = runner(body["mode"])
        return run(body["x"])
""")  # fmt: skip
right("compile", "in a helper that keeps what it made", """
    import functools
    import torch
    from fastapi import FastAPI

    app = FastAPI()
    NET = torch.jit.load("net.pt").cuda()

    @functools.lru_cache
    def runner(mode):
        return torch.compile(NET, mode=mode)

    @app.post("/up")
    def up(body: dict):
        run = runner(body["mode"])
        return run(body["x"])
""")  # fmt: skip

# --- recast: by what the loss is about --------------------------------------------------------------------------------
fault("recast", "what goes into the loss over classes, by any name", """
    import torch
    import torch.nn.functional as F

    def nll(hidden, table, targets):
        z = F.linear(hidden, table)
        z = z.to(torch.float32)  # <-
        return F.cross_entropy(z.flatten(0, 1), targets.flatten())
""")  # fmt: skip
right("recast", "a prediction as large as its target", """
    import torch.nn.functional as F

    class Trainer:
        def loss(self, x, t, noise):
            pred = self.model(x, t)
            return F.mse_loss(pred.float(), noise)
""")  # fmt: skip


@pytest.mark.parametrize("variant", FACTS.variants, ids=lambda one: f"{one.kind}: {one.name}")
def test_the_fault_is_found_and_what_is_right_is_left_alone(variant: Variant) -> None:
    assert bool(variant.found()) == variant.fault, variant.found()
