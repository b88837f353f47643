"""Streams, caches, copies and checkpoints in the ways of writing of other people's practice sets, and what is right."""

import pytest
from tests.optimise.scan.variants import Collection, Variant

WAYS = Collection()
fault, right = WAYS.fault, WAYS.right

# --- an object under another name than self ---------------------------------------------------------------------------
MEMORY = """
    import torch
    from torch import nn
    class Mem(nn.Module):
        def __init__(s, n):
            super().__init__()
            s.n = n
            for name in "kv":
                s.register_buffer(name, torch.zeros(1, 4, n, 8))
        def forward(s, k, v, pos):
            PLACED
            s.k.index_copy_(2, i, k)
            s.v.index_copy_(2, i, v)
            return s.k, s.v
"""
fault("cache-overflow", "wraps, of s", MEMORY.replace("PLACED", "i = pos % s.n  # <-"))
fault("cache-overflow", "wraps by remainder", MEMORY.replace("PLACED", "i = pos.remainder(s.n)  # <-"))
fault("cache-overflow", "clamped behind a name", MEMORY.replace("PLACED", "i = pos.clamp(max=s.n - 1)  # <-"))
right("cache-overflow", "refused", MEMORY.replace("PLACED", """if int(pos.max()) >= s.n:
                raise ValueError("full")
            i = pos"""))  # fmt: skip
fault("cache-overflow", "clamped in a method that says where", """
    import torch
    from torch import nn
    class Paged(nn.Module):
        def __init__(self, table, page):
            self.table, self.page = table, page
            self.register_buffer("kv", torch.zeros(2, 64, 4, 8))
        def slots(self, seq, pos):
            col = (pos // self.page).clamp(max=self.table.size(1) - 1)  # <-
            return self.table[seq, col] * self.page + pos % self.page
        def write(self, slots, k, v):
            self.kv[0].index_copy_(0, slots, k)
            self.kv[1].index_copy_(0, slots, v)
""")  # fmt: skip
POOL = """
    def grow(cache, seq, n):
        # kv pages of a sequence
        CHECKED
        for at, page in zip(range(n), [cache.free.pop() for _ in range(min(n, len(cache.free)))]):
            cache.table[seq, at] = page
"""
fault("cache-overflow", "fewer pages than wanted", POOL.replace("CHECKED", "pass").replace(")]):", ")]):  # <-"))
right("cache-overflow", "fewer pages than wanted, refused", POOL.replace("CHECKED", """if len(cache.free) < n:
            raise RuntimeError("no pages")"""))  # fmt: skip

# --- no-kv-cache: folds, helpers, settings ----------------------------------------------------------------------------
FOLD = """
    import torch
    from functools import reduce
    def unroll(model, ids, n):
        return reduce(lambda z, _: torch.cat([z, torch.multinomial(PROBS, 1)], 1), range(n), ids)
"""
fault("no-kv-cache", "a fold", FOLD.replace("PROBS", "model(z)[:, -1].softmax(-1)").replace("ids)\n", "ids)  # <-\n"))
right("no-kv-cache", "a fold over something else", FOLD.replace("PROBS", "torch.rand(4, 9)"))
HELPER = """
    import torch
    from transformers import DynamicCache
    class Next:
        MADE
        def __call__(self, ids):
            PAST
            out = self.model(input_ids=ids, past_key_values=past, use_cache=True)
            return out.logits[:, -1].argmax(-1, keepdim=True)
    def write(step: Next, ids, n):
        for _ in range(n):
            ids = torch.cat([ids, step(ids)], 1)
        return ids
"""
fault("no-kv-cache", "a cache anew in a helper", HELPER.replace("MADE", "size = 1").replace(
    "PAST", "past = DynamicCache()").replace("use_cache=True)", "use_cache=True)  # <-"))  # fmt: skip
fault("no-kv-cache", "settings of a library's container", """
    from omegaconf import OmegaConf
    GEN = OmegaConf.create(dict(do_sample=True, use_cache=False))  # <-
    def answer(model, x):
        return model.generate(**x, **OmegaConf.to_container(GEN))
""")  # fmt: skip
SETTING = """
    from transformers import GenerationConfig
    class Tuner:
        def __init__(self, policy):
            self.policy = policy
            self.policy.config.use_cache = OFF
            self.loss = policy.train().backward
        def preview(self, ids):
            knobs = GenerationConfig(do_sample=True, use_cache=self.policy.config.use_cache)
            return self.policy.generate(ids, generation_config=knobs)
"""
fault("no-kv-cache", "the setting of the training", SETTING.replace("OFF", "False").replace(
    "config.use_cache)\n", "config.use_cache)  # <-\n"))  # fmt: skip

# --- copied-token: masks and noise for one row ------------------------------------------------------------------------
MASKED = """
    import numpy as np
    import torch
    from einops import repeat
    def draw(n, p):
        return torch.rand(n).argsort()[: int(n * p)]
    class Trainer:
        def training_step(self, x, rng):
            b, n = x.shape[0], x.shape[1]
            line = np.zeros(n, dtype=bool)
            line[rng.choice(n, n // 2, replace=False)] = True
            mask = MADE
            return self.loss(self.net(x, mask), x)
"""
for made in (
    'repeat(draw(n, 0.5), "k -> b k", b=b)',
    "np.tile(line, (b, 1))",
    "draw(n, 0.5)[None].expand(b, -1)",
    "torch.stack([draw(n, 0.5)] * b)",
):
    fault("copied-token", made, MASKED.replace("MADE", f"{made}  # <-"))
for made in ("torch.rand(b, n).argsort(1)[:, :9]", "torch.stack([draw(n, 0.5) for _ in range(b)])"):
    right("copied-token", made, MASKED.replace("MADE", made))

# --- copied-token: one text of a library for all ----------------------------------------------------------------------
TEXT = """
    from vllm import LLM, SamplingParams
    from transformers import pipeline
    pipe, llm = pipeline("text-generation", model="x"), LLM("x")
    def candidates(prompt, k):
        text = MADE
        return [text] * k  # <-
"""
PIPED = 'pipe(prompt, do_sample=True, max_new_tokens=64)[0]["generated_text"]'
ENGINE = "llm.generate([prompt], SamplingParams(n=1, temperature=TEMPERATURE))[0].outputs[0].text"
fault("copied-token", "text of a pipeline", TEXT.replace("MADE", PIPED))
fault("copied-token", "text of an engine", TEXT.replace("MADE", ENGINE.replace("TEMPERATURE", "0.8")))
right("copied-token", "the likeliest text of an engine", TEXT.replace("MADE", ENGINE.replace("TEMPERATURE", "0.0")))

# --- rng: decorators, hooks, workers, streams kept elsewhere ----------------------------------------------------------
DECORATED = """
    import torch
    from functools import wraps
    def seeded(s):
        def deco(f):
            @wraps(f)
            def inner(*a):
                torch.manual_seed(s)
                return f(*a)
            return inner
        return deco
    @seeded(17)
    def noise(x):
        return torch.randn_like(x)
    def train(model, loader, opt):
        for x in loader:
            model(x + CALLED).mean().backward()
            opt.step()
            opt.zero_grad()
"""
fault("rng", "a decorator", DECORATED.replace("manual_seed(s)", "manual_seed(s)  # <-").replace("CALLED", "noise(x)"))
right("rng", "a decorator of what a training does not call", DECORATED.replace("CALLED", "1"))
fault("rng", "a hook of each epoch", """
    import lightning as L
    class Same(L.Callback):
        def on_train_epoch_start(self, trainer, module):
            L.seed_everything(self.seed)  # <-
""")  # fmt: skip
WORKERS = """
    import functools
    import numpy as np
    from torch.utils.data import DataLoader
    def begin(seed, worker):
        np.random.seed(SEED)
    def loader(rows, c):
        return DataLoader(rows, 8, num_workers=4, worker_init_fn=functools.partial(begin, c.seed))
"""
fault("rng", "workers by partial", WORKERS.replace("SEED)", "seed)  # <-"))
right("rng", "workers by partial and number", WORKERS.replace("SEED", "seed + worker"))
HANDED = """
    import numpy as np
    from torch.utils.data import DataLoader, Dataset
    class Drop:
        def __init__(self, rng):
            self.rng = rng
        def __call__(self, row):
            return row if self.rng.random() < 0.5 else row[1:]
    class Rows(Dataset):
        def __init__(self, rows, seed):
            self.rows = rows
            self.drop = Drop(np.random.default_rng(seed))
        def __getitem__(self, i):
            return self.drop(self.rows[i])
    def loader(rows):
        return DataLoader(Rows(rows, 1), num_workers=NUMBER)
"""
fault("rng", "a helper of a data set", HANDED.replace("NUMBER", "8").replace("rng(seed))", "rng(seed))  # <-"))
right("rng", "a helper of a data set without workers", HANDED.replace("NUMBER", "0"))
KEPT = """
    import asyncio, torch
    from functools import lru_cache
    MARK
    def stream(device):
        return torch.Generator(device)
    class Writer:
        def begin(self, request):
            gen = stream("cuda")
            gen.manual_seed(request.seed)
            return gen
        def generate(self, request):
            gen = self.begin(request)
            return torch.multinomial(self.model(request.ids)[:, -1].softmax(-1), 1, generator=gen)
    class Service:
        def __init__(self, writer: Writer):
            self.writer = writer
        async def complete(self, request):
            return await asyncio.to_thread(self.writer.generate, request)
"""
fault("rng", "a stream that a decorator keeps", KEPT.replace("MARK", "@lru_cache(maxsize=None)").replace(
    "manual_seed(request.seed)", "manual_seed(request.seed)  # <-"))  # fmt: skip

# --- data-order: sets, unseeded streams, states set by name -----------------------------------------------------------
KEYS = """
    def pack(table, held, tok, out):
        for key in ORDERED:
            out.write(tok.encode(table[key]))
"""
fault("data-order", "a difference of keys", KEYS.replace("ORDERED:", "table.keys() - held:  # <-"))
right("data-order", "a sorted difference of keys", KEYS.replace("ORDERED", "sorted(table.keys() - held)"))
STAGE = """
    import torch
    from dataclasses import dataclass, field
    @dataclass
    class Shuffle:
        gen: torch.Generator = field(default_factory=torch.Generator)
        def __post_init__(self):
            SEEDED
        def __call__(self, docs):
            return [docs[i] for i in torch.randperm(len(docs), generator=self.gen)]
"""
fault("data-order", "a generator seeded by entropy", STAGE.replace("SEEDED", "self.gen.seed()  # <-"))
right("data-order", "a generator with a seed", STAGE.replace("SEEDED", "self.gen.manual_seed(7)"))
STATE = """
    import numpy as np
    from torch.utils.data import IterableDataset
    class Shards(IterableDataset):
        def __iter__(self):
            while True:
                order = np.random.default_rng((self.seed, self.epoch)).permutation(len(self.files))
                for n, row in enumerate(self.rows(order)):
                    if n < self.row:
                        continue
                    self.row = n + 1
                    yield row
                self.epoch, self.row = self.epoch + 1, 0
        def state_dict(self):
            return {KEYS}
        def load_state_dict(self, state):
            for key, value in state.items():
                setattr(self, key, value)
"""
fault("data-order", "a state without a place", STATE.replace("KEYS}", '"epoch": self.epoch, "seed": self.seed}  # <-'))
right("data-order", "a state with its place", STATE.replace(
    "KEYS", '"epoch": self.epoch, "seed": self.seed, "row": self.row'))  # fmt: skip

# --- packing, padding, small-batch, checkpoint ------------------------------------------------------------------------
DRAINED = """
    def rows(ds, width):
        ds, buf = MADE, []
        while ds:
            buf += ds.TAKEN
            while len(buf) >= width:
                yield buf[:width]
                buf = []
"""
fault("packing", "a list that is drained", DRAINED.replace("MADE", "list(ds)").replace("TAKEN", "pop(0)  # <-"))
right("packing", "a queue that is drained", DRAINED.replace("MADE", "deque(ds)").replace("TAKEN", "popleft()"))
right("packing", "a view of an array", """
    import numpy as np
    def blocks(docs, block):
        while docs:
            doc = docs.popleft()
            while doc.size >= block:
                yield doc[:block]
                doc = doc[block:]
""")  # fmt: skip
FOLDED = """
    from einops import rearrange
    def train(net, opt, loader):
        for x in loader:
            parts = rearrange(x, "(n m) t -> n m t", m=SIZE)
            opt.zero_grad()
            for part in parts:
                (net(part).mean() / len(parts)).backward()
            opt.step()
"""
fault("small-batch", "rows of a folded batch", FOLDED.replace("SIZE)", "2)  # <-"))
right("small-batch", "many rows of a folded batch", FOLDED.replace("SIZE", "64"))
fault("small-batch", "settings put into a dict", """
    CONFIG = dict(optimizer={"type": "AdamW"})
    CONFIG.update(train_micro_batch_size_per_gpu=2, gradient_accumulation_steps=64)  # <-
    def train(engine, loader):
        for x in loader:
            engine.backward(engine(x).loss)
            engine.step()
""")  # fmt: skip
SLOT = """
    import shutil, torch
    class Slot:
        def clear(self):
            shutil.rmtree(self.folder)
    class Keep:
        def on_train_epoch_end(self, trainer, module):
            trainer.save_checkpoint(self.slot.file)
"""
fault("checkpoint", "a helper removes the last one", SLOT.replace("(self.folder)", "(self.folder)  # <-").replace(
    "            trainer.save", "            self.slot.clear()\n            trainer.save"))  # fmt: skip
right("checkpoint", "a helper that is called behind the save", SLOT.replace(
    "self.slot.file)", "self.slot.file)\n            self.slot.clear()"))  # fmt: skip


def _name(variant: Variant) -> str:
    return f"{variant.kind}-{variant.name.replace(' ', '-')}"


@pytest.mark.parametrize("variant", WAYS.variants, ids=_name)
def test_faults_are_found_and_what_is_right_is_not(variant: Variant) -> None:
    assert bool(variant.found()) == variant.fault, variant.found()
