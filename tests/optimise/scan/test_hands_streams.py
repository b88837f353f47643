"""How different hands write faults of streams and places: who seeds them, what is copied, what a resume leaves out."""

import pytest
from tests.optimise.scan.variants import Collection, Variant

from intone.optimise.scan.run import scan_texts

HANDS = Collection()
fault, right = HANDS.fault, HANDS.right

# --- rng: a request seeds the stream of all that are under way --------------------------------------------------------
ENGINE = """
    import torch
    class Engine:
        def __init__(self, model):
            self.model, self.gen, self.active = model, torch.Generator(), {}
        %s
        def draw(self, logits):
            return torch.multinomial(logits.softmax(-1), 1, generator=self.gen)
        def step(self):
            self.tokens = self.draw(self.model(self.tokens, cache=self.cache)[:, -1])
        def loop(self):
            while True:
                self.add(self.inbox.get())
                self.step()
"""


def engine(*lines: str) -> str:
    """The engine with other lines for the method that admits a request."""
    return ENGINE % "\n        ".join(lines)


fault("rng", "a slot of many, drawn from at once", engine(
    "def add(self, req, slot=0):",
    "    self.gen.manual_seed(req.seed)  # <-",
    "    self.tokens[slot] = self.draw(self.model(req.ids)[:, -1])[0]",
))  # fmt: skip
fault("rng", "a new stream in place of that of all", engine(
    "def add(self, req):",
    "    if req.seed is not None:",
    "        self.gen = torch.Generator().manual_seed(req.seed)  # <-",
    "    first = self.draw(self.model(req.ids)[:, -1])",
    "    self.active.append((req, first))",
))  # fmt: skip
fault("rng", "the stream of the process", """
    import torch
    class Batcher:
        def submit(self, request):
            torch.manual_seed(request.seed)  # <-
            request.out = [self.sample(self.lm.prefill(request.ids))]
            self.running.append(request)
        def sample(self, logits):
            return torch.multinomial(torch.softmax(logits, -1), 1)
        def decode(self):
            return self.sample(self.lm.step(self.running))
""")  # fmt: skip
fault("rng", "by a method made for it", """
    import torch
    class Sampler:
        def __init__(self):
            self.gen = torch.Generator()
        def reseed(self, seed):
            self.gen.manual_seed(seed)
        def __call__(self, logits):
            return torch.multinomial(logits.softmax(-1), 1, generator=self.gen)
    class Engine:
        def __init__(self):
            self.sampler, self.slots = Sampler(), {}
        def admit(self, job, slot):
            self.sampler.reseed(job.seed)  # <-
            self.slots[slot] = job
""")  # fmt: skip
fault("rng", "a stream of the file", """
    import torch
    GEN = torch.Generator()
    ACTIVE = []
    def join(request):
        GEN.manual_seed(request.seed)  # <-
        ACTIVE.append(request)
    def step(model, x):
        return torch.multinomial(model(x)[:, -1].softmax(-1), 1, generator=GEN)
""")  # fmt: skip
right("rng", "a stream for each slot", engine(
    "def add(self, req, slot=0):",
    "    self.gens[slot].manual_seed(req.seed)",
    "    self.active[slot] = req",
))  # fmt: skip
right("rng", "one text at a time", """
    import torch
    class Session:
        def __init__(self, model):
            self.model, self.gen, self.history = model, torch.Generator(), []
        def ask(self, ids, seed):
            self.gen.manual_seed(seed)
            self.history.append(ids)
            return self.run(ids)
        def run(self, ids):
            for _ in range(9):
                ids = torch.multinomial(self.model(ids, cache=self.c)[:, -1].softmax(-1), 1, generator=self.gen)
            return ids
""")  # fmt: skip

# --- rng: the same numbers at every step, behind a fork ---------------------------------------------------------------
STEPS = """
    import torch
    import numpy as np
    import contextlib
    SEED = 7
    %s
    def train(model, opt, loader):
        for step, x in enumerate(loader):
            loss = model(%s)
            loss.backward()
            opt.step()
            opt.zero_grad()
"""


def steps(call: str, *lines: str) -> str:
    """The training with a helper before it and what it hands to the model."""
    return STEPS % ("\n    ".join(lines), call)


fault("rng", "timesteps in a fork", steps(
    "mix(x)",
    "def mix(x):",
    "    with torch.random.fork_rng():",
    "        torch.manual_seed(SEED)  # <-",
    "        return x + torch.randn_like(x)",
))  # fmt: skip
fault("rng", "kept and put back", steps(
    "masked(x)",
    "def masked(x):",
    "    before = torch.get_rng_state()",
    "    torch.manual_seed(0)  # <-",
    "    keep = torch.rand(x.shape) > 0.15",
    "    torch.set_rng_state(before)",
    "    return x * keep",
))  # fmt: skip
fault("rng", "numpy, kept and put back", steps(
    "crop(x)",
    "def crop(x):",
    "    before = np.random.get_state()",
    "    np.random.seed(SEED)  # <-",
    "    at = np.random.randint(0, 9)",
    "    np.random.set_state(before)",
    "    return x[:, at:]",
))  # fmt: skip
fault("rng", "a context of the project's own", steps(
    "noisy(x)",
    "@contextlib.contextmanager",
    "def seeded(seed):",
    "    with torch.random.fork_rng():",
    "        torch.manual_seed(seed)  # <-",
    "        yield",
    "def noisy(x):",
    "    with seeded(SEED):",
    "        return x + torch.randn_like(x)",
))  # fmt: skip
right("rng", "another seed at each step", steps(
    "mix(x, step)",
    "def mix(x, step):",
    "    with torch.random.fork_rng():",
    "        torch.manual_seed(SEED + step)",
    "        return x + torch.randn_like(x)",
))  # fmt: skip
fault("rng", "timesteps as many as rows", steps(
    "mix(x)",
    "def mix(x):",
    "    with torch.random.fork_rng():",
    "        torch.manual_seed(SEED)  # <-",
    "        t = torch.randint(0, 9, (x.size(0),))",
    "    return x * torch.linspace(0, 1, 9)[t]",
))  # fmt: skip
right("rng", "another part of one permutation", steps(
    "pick(x, step)",
    "def pick(x, step):",
    "    with torch.random.fork_rng():",
    "        torch.manual_seed(SEED)",
    "        order = torch.randperm(len(x))",
    "    return x[order[step * 4 : step * 4 + 4]]",
))  # fmt: skip
right("rng", "an evaluation that begins alike", steps(
    "x)\n            if step % 100 == 0:\n                probe(model, x",
    "def probe(model, x):",
    "    with torch.random.fork_rng():",
    "        torch.manual_seed(SEED)",
    "        return model(x + torch.randn_like(x))",
))  # fmt: skip

# --- copied-token: one number for every row ---------------------------------------------------------------------------
INVERSE = """
    import torch
    import random
    def choose(logits, rows, gen):
        cdf = logits.softmax(-1).cumsum(-1)
        %s
        return torch.searchsorted(cdf, u)
"""
for name, line in {
    "expanded": "u = torch.rand(1, 1, generator=gen).expand(rows, 1)  # <-",
    "filled": "u = torch.full((rows, 1), random.random())  # <-",
    "repeated by name": "one = torch.rand(1)\n        u = one.repeat(rows, 1)  # <-",
    "drawn in place": "u = torch.empty(1, 1).uniform_(generator=gen).expand(cdf.size(0), 1)  # <-",
    "times ones": "u = torch.ones(rows, 1) * torch.rand(()).item()  # <-",
}.items():
    fault("copied-token", name, INVERSE % line)
fault("copied-token", "one row of Gumbel noise", """
    import torch
    def choose(logits, rows):
        noise = torch.rand_like(logits[:1])
        gumbel = -torch.log(-torch.log(noise))
        return (logits + gumbel.expand(rows, -1)).argmax(-1)  # <-
""")  # fmt: skip
right("copied-token", "a number for each row", INVERSE % "u = torch.rand(rows, 1, generator=gen)")
right("copied-token", "one row only", INVERSE % "u = torch.rand(1, 1).expand(1, 1)")
right("copied-token", "spread over the positions", INVERSE % "u = torch.rand(rows, 1).expand(rows, 4)")

# --- data-order: a resume that goes on elsewhere ----------------------------------------------------------------------
RESUMED = """
    import itertools
    import random
    import numpy as np
    import torch
    from torch.utils.data import DataLoader
    def evaluate(model, rows):
        before = torch.get_rng_state()
        torch.manual_seed(0)
        for x in itertools.islice(rows, 20):
            model(x)
        torch.set_rng_state(before)
    def run(model, opt, data, state):
        model.load_state_dict(state["model"])
        opt.load_state_dict(state["opt"])
        step = state["step"]
        batches = DataLoader(data, %s)  # <-
        it = iter(batches)
        while step < 900:
            %s
            x = next(it)
            loss = model(x)
            loss.backward()
            opt.step()
            step += 1
"""
SHUFFLED = "batch_size=4, shuffle=True"
for name, line in {
    "nothing of the place": "pass",
    "a stream for the length": "n = random.Random(5 + step).randint(1, 9)",
    "numpy for the length": "n = np.random.default_rng([5, step]).integers(9)",
    "a generator for the noise": "noise = torch.randn(3, generator=torch.Generator().manual_seed(5 + step))",
}.items():
    fault("data-order", name, RESUMED % (SHUFFLED, line))
right("data-order", "passed over", RESUMED % (SHUFFLED, "next(itertools.islice(it, step, step), None)"))
right("data-order", "a seed of the step in the loader",
      RESUMED % (SHUFFLED + ", generator=torch.Generator().manual_seed(5 + step)", "pass"))  # fmt: skip

SAMPLER = """
    import random
    import numpy as np
    import torch
    from torch.utils.data import Sampler
    class Rows(Sampler):
        def __init__(self, n):
            self.n, self.consumed, self.rng = n, 0, np.random.default_rng()
        def __iter__(self):
            order = list(range(self.n))
            %s
            return iter(order[self.consumed:])
        def state_dict(self):
            return {%s}
        def load_state_dict(self, state):
            self.consumed = state["consumed"]
"""
PLACE = '"consumed": self.consumed'
for name, line in {
    "shuffled": "random.shuffle(order)  # <-",
    "randperm": "order = torch.randperm(self.n).tolist()  # <-",
    "numpy's permutation": "order = np.random.permutation(self.n)  # <-",
    "a stream without a seed": "order = self.rng.permutation(self.n)  # <-",
}.items():
    fault("data-order", name, SAMPLER % (line, PLACE))
right("data-order", "a seed of the epoch", SAMPLER % ("random.Random(self.seed + self.epoch).shuffle(order)", PLACE))
right("data-order", "the order is saved", SAMPLER % (
    "self.order = order\n            random.shuffle(self.order)", PLACE + ', "order": self.order'))  # fmt: skip
right("data-order", "the stream is saved", SAMPLER % (
    "random.shuffle(order)", PLACE + ', "rng": random.getstate()'))  # fmt: skip


@pytest.mark.parametrize("variant", HANDS.variants, ids=lambda one: f"{one.kind}: {one.name}")
def test_streams_and_places_of_many_hands(variant: Variant) -> None:
    """A fault is found at its mark, and what is right stays silent."""
    found = variant.found()
    assert bool(found) is variant.fault, found


PARTS = """
import torch
class Runner:
    def __init__(self, net, pipe):
        self.net, self.pipe = net.eval(), pipe
        {made}
    def __call__(self, ids):
        return self.net.generate(ids), self.pipe(ids)
"""


@pytest.mark.parametrize(
    "made, idle",
    [
        ("self.net.forward = torch.compile(self.net.forward)", False),
        ("self.pipe.model = torch.compile(self.pipe.model)", False),
        ("self.forward = torch.compile(self.forward)", False),
        ("net.model.forward = torch.compile(net.model.forward, dynamic=True)", False),
        ("self.fast_model = torch.compile(self.net)", True),
        ("net.fast_model = torch.compile(net.forward)", True),
    ],
)
def test_a_part_compiled_in_its_place_is_used(made: str, idle: bool) -> None:
    """A part put back in its place runs with the whole; under a new name it has to be used by that name."""
    found = scan_texts({"a.py": PARTS.format(made=made)}, only=["S21"]).findings
    assert bool(found) is idle, [one.message for one in found]
