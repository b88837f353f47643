"""Faults as further hands wrote them, each cut down to its way of writing, and right code beside."""

import pytest
from tests.optimise.scan.variants import Collection, Variant

HANDS = Collection()
fault, right = HANDS.fault, HANDS.right

# --- data order -------------------------------------------------------------------------------------------------------
WHILE = """
    import os, torch
    def save(path, net, opt, stepMORE):
        torch.save({"net": net.state_dict(), "opt": opt.state_dict(), "step": step}, path + ".tmp")
        os.replace(path + ".tmp", path)
    def run(net, opt, loader, sampler, path, last):
        step, epoch = 0, 0
        home = os.environ["HOME"]
        if os.path.exists(path):
            kept = torch.load(path, weights_only=True)
            net.load_state_dict(kept["net"])
            opt.load_state_dict(kept["opt"])
            step = kept["step"]  # <-
            BACK
        while step < last:
            sampler.set_epoch(epoch)
            for x, y in loader:
                net(x, y).backward()
                opt.step(); opt.zero_grad()
                step += 1
                if step % 500 == 0:
                    save(path, net, opt, step)
            epoch += 1
"""
fault("data-order", "while over steps around the loader", WHILE.replace("MORE", "").replace("BACK", "pass"))
right("data-order", "the sampler goes on", WHILE.replace("  # <-", "").replace("MORE", "").replace(
    "BACK", "sampler.load_state_dict(kept['sampler'])"))  # fmt: skip
fault("data-order", "accelerator under a short name", """
    import os
    from accelerate import Accelerator
    from torch.utils.data import DataLoader
    class Keeper:
        def __init__(self, acc): self.acc = acc
        def save(self, n):
            self.acc.save_state("new")
        def load(self):
            self.acc.load_state("new")
            with open("new/step") as f:
                return int(f.read())
    def make(rows):
        return DataLoader(rows, 32, shuffle=True, pin_memory=True)
    def main(rows, net, opt):
        acc = Accelerator()
        loader = make(rows)
        net, opt, loader = acc.prepare(net, opt, loader)
        keeper = Keeper(acc)
        n = keeper.load()
        while n < 1000:
            for batch in loader:  # <-
                acc.backward(net(**batch).loss)
                opt.step(); opt.zero_grad()
                n += 1
                if n % 100 == 0:
                    keeper.save(n)
""")  # fmt: skip
fault("data-order", "a position without its order", """
    import random
    class Rows(Dataset):
        def __init__(self, rows):
            self.rows = list(rows)
            random.Random().shuffle(self.rows)  # <-
            self.at = 0
        def state_dict(self):
            return {"at": self.at}
        def load_state_dict(self, state):
            self.at = state["at"]
""")  # fmt: skip
fault("data-order", "data skip off in long settings", """
    from transformers import TrainingArguments
    ARGS = TrainingArguments(
        output_dir="out",
        learning_rate=1e-4,
        per_device_train_batch_size=64,
        warmup_steps=100,
        bf16=True,
        torch_compile=True,
        save_steps=500,
        ignore_data_skip=True,  # <-
    )
""")  # fmt: skip

# --- random numbers ---------------------------------------------------------------------------------------------------
NOISE = """
    import torch, torch.distributed as dist
    def setup():
        dist.init_process_group("nccl")
        return dist.get_rank(), dist.get_world_size()
    def main(net, opt, reader, corrupt):
        rank, world = setup()
        noise = torch.Generator(device="cuda")
        noise.manual_seed(SEED)  # <-
        for step in range(1000):
            x, y = reader.next()
            x = corrupt(x, p=0.1, generator=noise)
            net(x, y).backward()
            opt.step(); opt.zero_grad()
"""
fault("rng", "noise alike on every rank", NOISE.replace("SEED", "77"))
right("rng", "noise by rank", NOISE.replace("  # <-", "").replace("SEED", "77 + rank"))
fault("rng", "worker seed by default", """
    import numpy as np
    from torch.utils.data import DataLoader
    def begin(worker, seed=9):
        np.random.seed(seed)  # <-
    def make(rows):
        return DataLoader(rows, 8, num_workers=4, worker_init_fn=begin)
""")  # fmt: skip
right("rng", "samples of one call with the caller's seed", """
    import torch
    def sample(net, prompt, n, new, seed):
        gen = torch.Generator("cuda").manual_seed(seed)
        ids = prompt.expand(n, -1)
        for _ in range(new):
            ids = torch.multinomial(torch.softmax(net(ids)[:, -1], -1), 1, generator=gen)
        return ids
""")  # fmt: skip
right("rng", "each row's own generator", """
    import torch
    class Row:
        def __init__(self, seed): self.seed = seed
        def generator(self, device):
            return torch.Generator(device).manual_seed(self.seed)
    def run(rows, device):
        return [row.generator(device) for row in rows]
""")  # fmt: skip

# --- caches -----------------------------------------------------------------------------------------------------------
SLOTS = """
    import torch
    class Shared:
        def __init__(self, layers, slots, heads, dim):
            self.slots, self.length = slots, 0
            self.kv = torch.empty(layers, 2, slots, heads, dim)
        def slot(self):
            CHECK
            return self.length % self.slots  # <-
        def put(self, layer, k, v):
            at = self.slot()
            self.kv[layer, 0, at] = k
            self.kv[layer, 1, at] = v
"""
fault("cache-overflow", "a slot modulo the slots", SLOTS.replace("CHECK", "pass"))
right("cache-overflow", "room asked for by a property", """
    import torch
    class Cache:
        def __init__(self, most):
            self.k, self.v = torch.zeros(1, 8, most, 64), torch.zeros(1, 8, most, 64)
            self.most, self.at = most, 0
        @property
        def room(self): return self.most - self.at
        def update(self, k, v):
            n = k.shape[2]
            if n > self.room:
                raise ValueError("full")
            self.k[:, :, self.at : self.at + n] = k
            self.v[:, :, self.at : self.at + n] = v
            self.at += n
""")  # fmt: skip
fault("no-kv-cache", "rows made longer one by one", """
    import torch
    from functools import partial
    class Writer:
        def __init__(self, model): self.run = partial(model, use_cache=False)
        def write(self, ids, new):
            for _ in range(new):
                logits = self.run(ids).logits[:, -1]  # <-
                toks = torch.multinomial(torch.softmax(logits, -1), 1)
                ids = torch.stack([torch.cat([row, tok]) for row, tok in zip(ids, toks)])
            return ids
""")  # fmt: skip

# --- copied tokens ----------------------------------------------------------------------------------------------------
SPREAD = """
    import torch
    class Worker:
        def draw(self, logits):
            return torch.multinomial(torch.softmax(logits, -1), 1)
        def begin(self, ids):
            out = self.model(ids, use_cache=True)
            return self.draw(out.logits[:, -1]), out.past_key_values
        def fan(self, token, cache):
            return token.expand(self.group, 1), cache  # <-
        def group(self, ids):
            token, cache = self.fan(*self.begin(ids))
            return token
"""
fault("copied-token", "handed on with a star", SPREAD)
BEHIND = """
    import torch
    def write(model, ids, n):
        for _ in range(n):
            probs = torch.softmax(model(ids)[:, -1], -1)
            DRAW
            ids = torch.stack([torch.cat([row, tok]) for HEAD])  # <-
        return ids
"""
fault("copied-token", "one token behind each row", BEHIND.replace(
    "DRAW", "tok = torch.multinomial(probs[0], 1)").replace("HEAD", "row in ids"))  # fmt: skip
right("copied-token", "its own token behind each row", BEHIND.replace("  # <-", "").replace(
    "DRAW", "toks = torch.multinomial(probs, 1)").replace("HEAD", "row, tok in zip(ids, toks)"))  # fmt: skip
fault("copied-token", "a list of one draw with noise", """
    import torch
    def draw(logits):
        u = torch.rand_like(logits).log_().neg_().log_().neg_()
        return (logits + u).argmax(-1)
    def group(model, ids, g):
        tok = draw(model(ids)[:, -1])
        return torch.stack([tok] * g)  # <-
""")  # fmt: skip

# --- ranks and samples ------------------------------------------------------------------------------------------------
DIFFUSE = """
    import torch
    from accelerate import Accelerator
    from accelerate.utils import set_seed
    def main(net, opt, loader, steps):
        acc = Accelerator()
        set_seed(42OPTION)  # <-
        net, opt, loader = acc.prepare(net, opt, loader)
        for x in loader:
            noise = torch.randn_like(x)
            loss = (net(x + noise) - noise).square().mean()
            acc.backward(loss)
            opt.step(); opt.zero_grad()
"""
fault("rng", "noise of the whole process", DIFFUSE.replace("OPTION", ""))
right("rng", "noise by device", DIFFUSE.replace("  # <-", "").replace("OPTION", ", device_specific=True"))
SEEDED = """
    import random, numpy as np, torch, torch.distributed as dist
    def seed_all(s):
        random.seed(s); np.random.seed(s); torch.manual_seed(s)
    def batch(data, b, t):
        at = np.random.randint(0, len(data) - t, b)
        return torch.stack([torch.from_numpy(data[i : i + t]) for i in at])
    def main(net, opt, data):
        dist.init_process_group("nccl")
        rank = dist.get_rank()
        seed_all(SEED)  # <-
        for step in range(1000):
            net(batch(data, 32, 512)).backward()
            opt.step(); opt.zero_grad()
"""
fault("rng", "a helper that seeds all ranks alike", SEEDED.replace("SEED", "7"))
right("rng", "a helper that is told the rank", SEEDED.replace("  # <-", "").replace("SEED", "7 + rank"))
right("rng", "a request's generator from a helper", """
    import torch
    from fastapi import FastAPI
    app = FastAPI()
    def stream(seed):
        return torch.Generator("cuda").manual_seed(seed)
    def write(model, ids, n, new, gen):
        x = ids.expand(n, -1)
        for _ in range(new):
            x = torch.multinomial(torch.softmax(model(x)[:, -1], -1), 1, generator=gen)
        return x
    @app.post("/write")
    def handle(req):
        return write(model, req.ids, req.n, 64, stream(req.seed)).tolist()
""")  # fmt: skip
fault("eval-output", "blocks taken out of an answer", """
    class Notebook:
        def turn(self, history):
            said = self.model.chat(history)
            for block in extract_code(said):
                self.shell.run_cell(block)  # <-
""")  # fmt: skip
fault("copied-token", "sessions that begin with one draw", """
    import torch
    def fork(engine, prompt, names):
        logits = engine.feed(prompt)
        tok = torch.multinomial(torch.softmax(logits[0, -1], 0), 1).item()
        return {name: Session(prompt, first=tok) for name in names}  # <-
""")  # fmt: skip
fault("rng", "a generator of the data set's class", """
    import numpy as np
    from torch.utils.data import DataLoader, Dataset
    class Noisy(Dataset):
        rng = np.random.default_rng(0)
        def __getitem__(self, i):
            return self.rows[i] + self.rng.normal(size=8)  # <-
    def make():
        return DataLoader(Noisy(), 64, num_workers=8)
""")  # fmt: skip
fault("cache-overflow", "the place wraps on the way to the model", """
    class Decoder:
        def step(self, tok):
            pos = self.count % self.model.max_seq_len  # <-
            logits = self.model(tok, self.cache, pos)
            self.count += 1
            return logits
""")  # fmt: skip
fault("data-order", "sources chosen by chance", """
    import random, torch
    def main(model, opt, sources, path):
        kept = torch.load(path, weights_only=True)
        model.load_state_dict(kept["model"]); opt.load_state_dict(kept["opt"])
        for step in range(kept["step"], 1000):
            model(random.choice(sources).next()).backward()  # <-
            opt.step(); opt.zero_grad()
""")  # fmt: skip


@pytest.mark.parametrize("variant", [pytest.param(one, id=f"{one.kind}: {one.name}") for one in HANDS.variants])
def test_what_further_hands_wrote_is_found_and_what_is_right_is_left_alone(variant: Variant):
    found = variant.found()
    assert bool(found) == variant.fault, found
