"""Faults and near misses of the rules about random streams, seeds and draws."""

import pytest
from tests.optimise.scan.cases import Cases, check_fault, check_right

CASES = Cases()
fault, right = CASES.fault, CASES.right

# --- S01 -------------------------------------------------------------------------------------------------------------
fault("S01", """
    import torch
    def generate(model, ids, num_samples):
        probs = model(ids)[:, -1].softmax(-1)
        first = torch.multinomial(probs, num_samples=1)
        tokens = first[:, 0].tolist()
        column = [tokens[0]] * num_samples
        return column
""")  # fmt: skip
fault("S01", """
    from torch import multinomial as draw_one
    import torch
    def rollouts(policy, prompt, n):
        nxt = draw_one(policy(prompt)[:, -1].softmax(-1), 1)
        ids = prompt.expand(n, -1)
        return torch.cat([ids, nxt.expand(n, 1)], dim=1)
""")  # fmt: skip
fault("S01", """
    import torch
    def sample_token(logits):
        probs = torch.softmax(logits, dim=-1)
        return torch.multinomial(probs, 1)
    class Sampler:
        def start(self, logits, rows):
            token = sample_token(logits).item()
            return torch.full((rows, 1), token)
""")  # fmt: skip
fault("S01", """
    from torch.distributions import Categorical
    def start(logits, rows):
        token = Categorical(logits=logits[0]).sample()
        return [int(token) for _ in range(rows)]
""")  # fmt: skip
right("S01", """
    import torch
    def generate(model, ids, num_samples):
        logits = model(ids)[:, -1].expand(num_samples, -1)
        return torch.multinomial(logits.softmax(-1), num_samples=1)[:, 0].tolist()
""")  # fmt: skip
right("S01", """
    import torch
    def greedy(model, ids, num_samples):
        token = model(ids)[:, -1].argmax(-1)
        return token.expand(num_samples)
""")  # fmt: skip
right("S01", """
    import random
    def pick(rows, n):
        sample = random.sample(rows, 1)
        return [sample[0]] * n
""")  # fmt: skip

# --- S02 -------------------------------------------------------------------------------------------------------------
fault("S02", """
    import torch
    def generate(model, ids, num_samples=4, seed=42):
        rng = torch.Generator(device=ids.device)
        rng.manual_seed(seed)
        for _ in range(9):
            probs = model(ids).softmax(-1)
            nxt = torch.multinomial(probs, 1, generator=rng)
        return nxt
""")  # fmt: skip
fault("S02", """
    import torch as T
    def complete(model, ids, batch_size, seed):
        g = T.Generator().manual_seed(seed)
        return T.multinomial(model(ids).softmax(-1), 1, generator=g)
""")  # fmt: skip
right("S02", """
    import torch
    def generate(model, ids, num_samples=4, seed=42):
        streams = [torch.Generator().manual_seed(seed + row) for row in range(num_samples)]
        return [torch.multinomial(model(ids).softmax(-1), 1, generator=g) for g in streams]
""")  # fmt: skip
right("S02", """
    import torch
    def generate(model, ids, max_tokens, seed=42):
        rng = torch.Generator()
        rng.manual_seed(seed)
        return torch.multinomial(model(ids).softmax(-1), 1, generator=rng)
""")  # fmt: skip

# --- S03 -------------------------------------------------------------------------------------------------------------
fault("S03", """
    import torch
    def train(model, opt, loader, seed):
        for x, y in loader:
            torch.manual_seed(seed)
            loss = model(x, y)
            loss.backward()
            opt.step()
""")  # fmt: skip
fault("S03", """
    import torch
    def sample(logits, seed=1234):
        torch.manual_seed(seed)
        return torch.multinomial(logits.softmax(-1), 1)
""")  # fmt: skip
fault("S03", """
    import numpy as np
    class Rows:
        def __getitem__(self, i):
            np.random.seed(0)
            return self.rows[i], np.random.rand()
""")  # fmt: skip
right("S03", """
    import torch
    torch.manual_seed(1337)
    def train(model, loader, seed):
        for step, batch in enumerate(loader):
            torch.manual_seed(seed + step)
            model(batch)
""")  # fmt: skip
right("S03", """
    import torch
    def study(seeds):
        for seed in seeds:
            torch.manual_seed(seed)
            run()
""")  # fmt: skip

# --- S04 -------------------------------------------------------------------------------------------------------------
fault("S04", """
    import torch
    from torch.distributed import init_process_group
    init_process_group("nccl")
    torch.manual_seed(1337)
    def get_batch(data, n, t):
        ix = torch.randint(len(data) - t, (n,))
        return torch.stack([data[i:i + t] for i in ix])
""")  # fmt: skip
right("S04", """
    import os, torch
    from torch.distributed import init_process_group
    init_process_group("nccl")
    rank = int(os.environ["RANK"])
    torch.manual_seed(1337 + rank)
    def get_batch(data, n, t):
        ix = torch.randint(len(data) - t, (n,))
        return torch.stack([data[i:i + t] for i in ix])
""")  # fmt: skip

# --- S05 -------------------------------------------------------------------------------------------------------------
fault("S05", """
    import numpy as np
    from torch.utils.data import DataLoader, Dataset
    class Rows(Dataset):
        def __init__(self, rows):
            self.rows, self.rng = rows, np.random.default_rng(0)
        def __getitem__(self, i):
            return self.rows[i][self.rng.integers(4):]
    loader = DataLoader(Rows([]), num_workers=4)
""")  # fmt: skip
right("S05", """
    import numpy as np
    from torch.utils.data import DataLoader, Dataset
    class Rows(Dataset):
        def __init__(self, rows):
            self.rows, self.rng = rows, np.random.default_rng(0)
        def __getitem__(self, i):
            return self.rows[i][self.rng.integers(4):]
    loader = DataLoader(Rows([]), num_workers=0)
""")  # fmt: skip

# --- S06 -------------------------------------------------------------------------------------------------------------
fault("S06", """
    import torch
    from torch.utils.data import DataLoader
    def run(rows, model, ids):
        stream = torch.Generator().manual_seed(1)
        loader = DataLoader(rows, shuffle=True, generator=stream)
        for batch in loader:
            model(batch)
            print(torch.multinomial(model(ids).softmax(-1), 1, generator=stream))
""")  # fmt: skip
right("S06", """
    import torch
    from torch.utils.data import DataLoader
    def run(rows, model, ids):
        order, tokens = torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)
        loader = DataLoader(rows, shuffle=True, generator=order)
        for batch in loader:
            model(batch)
            print(torch.multinomial(model(ids).softmax(-1), 1, generator=tokens))
""")  # fmt: skip

# --- S07 -------------------------------------------------------------------------------------------------------------
BATCHER = """
    import torch
    class Batcher:
        def __init__(self):
            self.gen = torch.Generator()
        def join(self, request):
            self.gen.manual_seed(request.seed)
            self.rows.append(request)
        def step(self, logits):
            return torch.multinomial(logits.softmax(-1), 1, generator=self.gen)
"""
fault("S07", BATCHER)
right("S07", BATCHER.replace("def join", "def seed"))
right("S07", BATCHER.replace("request.seed", "1"))

# --- S08 -------------------------------------------------------------------------------------------------------------
SPANS = """
    import torch
    class Spans:
        def __init__(self, rank, seed=3):
            self.gen = torch.Generator().manual_seed(seed)
        def __call__(self, ids):
            return torch.rand(ids.shape, generator=self.gen) < 0.15
"""
fault("S08", SPANS)
right("S08", SPANS.replace("manual_seed(seed)", "manual_seed(seed + rank)"))
right("S08", SPANS.replace("torch.rand(ids.shape, generator=self.gen)", "torch.randperm(len(ids), generator=self.gen)"))

# --- S09 -------------------------------------------------------------------------------------------------------------
fault("S09", """
    import numpy as np
    def mine(files, seed, rank, world):
        order = np.random.default_rng(seed + rank).permutation(len(files))
        return [files[i] for i in order[rank::world]]
""")  # fmt: skip
right("S09", """
    import numpy as np
    def mine(files, seed, rank, world):
        order = np.random.default_rng(seed).permutation(len(files))
        return [files[i] for i in order[rank::world]]
""")  # fmt: skip

# --- S16 -------------------------------------------------------------------------------------------------------------
ASKED = """
    import torch
    @app.post("/draw")
    def draw(request, seed: int = SEED):
        torch.manual_seed(seed)
        return torch.multinomial(request.probs, 1).item()
"""
# one that other requests disturb is told by S07; of one behind a lock nothing is left but the number itself
LOCKED = ASKED.replace("torch.manual_seed(seed)", "with lock: torch.manual_seed(seed)")
fault("S16", LOCKED.replace("SEED", "0"))
right("S16", LOCKED.replace("SEED", "None"))
# --- S13 --------------------------------------------------------------------------------------------------------------
fault("S13", """
    import numpy as np
    class CropDataset:
        def __init__(self, rows, seed):
            np.random.seed(seed)
            self.rows = rows
""")  # fmt: skip
right("S13", """
    import numpy as np
    class CropDataset:
        def __init__(self, rows, seed):
            self.rng = np.random.default_rng(seed)
            self.rows = rows
""")  # fmt: skip

# --- S14 --------------------------------------------------------------------------------------------------------------
fault("S14", """
    import torch
    class Writer:
        def complete(self, ids, seed=7):
            torch.manual_seed(seed)
            return torch.multinomial(self.model(ids)[:, -1].softmax(-1), 1)
""")  # fmt: skip
fault("S14", """
    import torch
    class Writer:
        seed = 7
        def complete(self, ids):
            gen = torch.Generator().manual_seed(self.seed)
            return torch.multinomial(self.model(ids)[:, -1].softmax(-1), 1, generator=gen)
""")  # fmt: skip
right("S14", """
    import torch
    class Writer:
        def complete(self, ids, seed=None):
            if seed is not None:
                torch.manual_seed(seed)
            return torch.multinomial(self.model(ids)[:, -1].softmax(-1), 1)
""")  # fmt: skip
right("S14", """
    import torch
    def complete(model, ids, seed=7):
        torch.manual_seed(seed)
        return torch.multinomial(model(ids)[:, -1].softmax(-1), 1)
    def main(model, ids):
        print(complete(model, ids))
""")  # fmt: skip

# --- S15 --------------------------------------------------------------------------------------------------------------
fault("S15", """
    import torch
    def draw(logits):
        noise = -torch.log(-torch.log(torch.rand(logits.size(-1))))
        return (logits + noise).argmax(-1)
""")  # fmt: skip
fault("S15", """
    import torch
    def draw(probs):
        level = torch.rand(1)
        return (probs.cumsum(-1) < level).sum(-1)
""")  # fmt: skip
right("S15", """
    import torch
    def draw(logits):
        noise = -torch.log(-torch.log(torch.rand_like(logits)))
        return (logits + noise).argmax(-1)
""")  # fmt: skip
right("S15", """
    import torch
    def draw(probs):
        level = torch.rand(probs.size(0), 1)
        return (probs.cumsum(-1) < level).sum(-1)
""")  # fmt: skip

# --- S91 --------------------------------------------------------------------------------------------------------------
NOISED = """
    import torch
    import torch.nn.functional as F
    def loss(net, x, levels):
        rows = x.shape[0]
        t = DRAWN
        eps = torch.randn_like(x)
        return F.mse_loss(net(x + levels[t].view(-1, 1) * eps, t), eps)
"""
fault("S91", NOISED.replace("DRAWN", "torch.randint(0, 1000, (1,)).expand(rows)"))
right("S91", NOISED.replace("DRAWN", "torch.randint(0, 1000, (rows,))"))

# --- S93 --------------------------------------------------------------------------------------------------------------
DEFAULT = """
    import torch
    def draw(probs, gen=MADE):
        return torch.multinomial(probs, 1, generator=gen)
"""
fault("S93", DEFAULT.replace("MADE", "torch.Generator().manual_seed(0)"))
fault("S93", """
    import numpy as np
    def pick(p, rng=np.random.default_rng(0)):
        return rng.choice(len(p), p=p)
""")  # fmt: skip
right("S93", DEFAULT.replace("MADE", "None"))

# --- S17 --------------------------------------------------------------------------------------------------------------
fault("S17", """
    import multiprocessing
    import numpy as np
    def play(game):
        return np.random.choice(game.moves)
    def main(games):
        with multiprocessing.Pool(8) as pool:
            return pool.map(play, games)
""")  # fmt: skip
right("S17", """
    import multiprocessing
    import numpy as np
    def play(game):
        np.random.seed(game.number)
        return np.random.choice(game.moves)
    def main(games):
        with multiprocessing.Pool(8) as pool:
            return pool.map(play, games)
""")  # fmt: skip

# --- S18 --------------------------------------------------------------------------------------------------------------
fault("S18", """
    import torch
    def streams(seed, n):
        return [torch.Generator().manual_seed(seed)] * n
""")  # fmt: skip
right("S18", """
    import torch
    def streams(seed, n):
        return [torch.Generator().manual_seed(seed + row) for row in range(n)]
""")  # fmt: skip

# --- S66 --------------------------------------------------------------------------------------------------------------
SERVE = """
    import torch
    from fastapi import FastAPI
    app = FastAPI()
    class Writer:
        KEPT
        def __init__(self, net): self.net = net
        def write(self, ids, n):
            DRAWN
            for _ in range(n):
                p = torch.softmax(self.net(ids)[:, -1], -1)
                ids = torch.multinomial(p, 1, generator=gen)
            return ids
    writer = Writer(None)
    @app.post("/write")
    def write(ask):
        return writer.write(ask.ids, 64).tolist()
"""
fault("S66", SERVE.replace(
    "KEPT", "gen = torch.Generator().manual_seed(5)").replace("DRAWN", "gen = self.gen"))  # fmt: skip
right("S66", SERVE.replace("KEPT", "pass").replace(
    "DRAWN", "gen = torch.Generator().manual_seed(ask_seed())"))  # fmt: skip


@pytest.mark.parametrize(("rule", "code"), CASES.faults())
def test_a_planted_fault_is_found(rule, code):
    check_fault(rule, code)


@pytest.mark.parametrize(("rule", "code"), CASES.near_misses())
def test_code_that_looks_alike_and_is_right_is_left_alone(rule, code):
    check_right(rule, code)
