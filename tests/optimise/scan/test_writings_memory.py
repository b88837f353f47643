"""How different hands write faults of memory and modes: full caches, copies beside work, modes of models."""

import pytest
from tests.optimise.scan.variants import Collection, Variant

WRITINGS = Collection()
fault, right = WRITINGS.fault, WRITINGS.right

# --- cache-overflow ---------------------------------------------------------------------------------------------------
fault("cache-overflow", "two statements", """
    import torch
    class LayerKV:
        def __init__(self, limit):
            self.limit, self.k, self.v = limit, None, None
        def update(self, k, v):
            self.k = k if self.k is None else torch.cat([self.k, k], dim=2)
            self.v = v if self.v is None else torch.cat([self.v, v], dim=2)
            self.k = self.k[:, :, -self.limit:]  # <-
            self.v = self.v[:, :, -self.limit:]
            return self.k, self.v
""")  # fmt: skip
fault("cache-overflow", "another text's page is taken", """
    class Pages:
        def grow(self, name):
            table = self.tables.setdefault(name, [])
            if not self.free:
                oldest = next(iter(self.tables))  # <-
                self.free.append(self.tables[oldest].pop(0))
            table.append(self.free.pop())
""")  # fmt: skip
fault("cache-overflow", "a place is handed out cut", """
    import torch
    class LayerCache:
        def places(self, n):
            at = torch.arange(self.used, self.used + n)
            return at.clamp(max=self.size - 1)  # <-
        def write(self, at, k, v):
            self.k.index_copy_(2, at, k)
            self.v.index_copy_(2, at, v)
""")  # fmt: skip
fault("cache-overflow", "keys and values of a slot", """
    import torch
    class Slot:
        def __init__(self, spec):
            self.k = torch.empty(spec.heads, spec.size, spec.dim)
            self.v = torch.empty(spec.heads, spec.size, spec.dim)
            self.length = 0
        def append(self, k, v):
            at = self.length % self.k.size(1)  # <-
            self.k[:, at].copy_(k)
            self.v[:, at].copy_(v)
            self.length += 1
""")  # fmt: skip
fault("cache-overflow", "one buffer for both", """
    import torch
    class Context:
        def extend(self, layer, k, v):
            room = self.capacity - self.pos
            k, v = k[:, :, :room], v[:, :, :room]  # <-
            end = self.pos + k.size(2)
            self.buf[0, layer, :, :, self.pos:end] = k
            self.buf[1, layer, :, :, self.pos:end] = v
""")  # fmt: skip
fault("cache-overflow", "tokenizer truncates prompt", """
    def answer(model, tokenizer, prompt, limit):
        ids = tokenizer(prompt, return_tensors="pt", truncation=True, max_length=limit)  # <-
        return tokenizer.decode(model.generate(**ids, max_new_tokens=64)[0])
""")  # fmt: skip
fault("cache-overflow", "narrow copy", """
    class KVCache:
        def update(self, start, k):
            room = self.k.size(2) - start
            self.k.narrow(2, start, min(room, k.size(2))).copy_(k[:, :, :room])  # <-
""")  # fmt: skip
fault("cache-overflow", "newest cut after cat", """
    import torch
    class Attn:
        def forward(self, q, k, v):
            self.k_cache = torch.cat([self.k_cache, k], dim=2)[:, :, : self.max_len]  # <-
            self.v_cache = torch.cat([self.v_cache, v], dim=2)[:, :, : self.max_len]
            return attend(q, self.k_cache, self.v_cache)
""")  # fmt: skip
right("cache-overflow", "sliding window", """
    class SlidingWindowCache:
        def update(self, step, k):
            self.k[:, :, step % self.window] = k
""")  # fmt: skip
right("cache-overflow", "refused", """
    def answer(model, enc, prompt, max_new):
        ids = enc.encode(prompt)
        if len(ids) + max_new > model.config.block_size:
            raise ValueError("too long")
        return model.generate(ids, max_new)
""")  # fmt: skip
right("cache-overflow", "deque of losses", """
    from collections import deque
    class Meter:
        def __init__(self):
            self.values = deque(maxlen=100)
        def add(self, x):
            self.values.append(x)
""")  # fmt: skip
# --- async-copy -------------------------------------------------------------------------------------------------------
fault("async-copy", "yielded before it is there", """
    import torch
    class Ahead:
        def __init__(self, loader):
            self.loader, self.side = loader, torch.cuda.Stream()
        def take(self, rows):
            x = next(rows, None)
            if x is None:
                return None
            with torch.cuda.stream(self.side):
                x = x.to("cuda", non_blocking=True)
            return x



        def __iter__(self):
            rows = iter(self.loader)
            x = self.take(rows)
            while x is not None:
                following = self.take(rows)
                yield x  # <-
                x = following
""")  # fmt: skip
fault("async-copy", "loader of another function", """
    from torch.utils.data import DataLoader
    def make(rows):
        return DataLoader(rows, batch_size=8, num_workers=2)
    def batches(loader, device):
        for x, y in loader:
            yield x.to(device, non_blocking=True), y.to(device, non_blocking=True)  # <-
""")  # fmt: skip
fault("async-copy", "tokenizer output", """
    def embed(tokenizer, model, texts):
        enc = tokenizer(texts, return_tensors="pt", padding=True)
        enc = enc.to("cuda", non_blocking=True)  # <-
        return model(**enc)
""")  # fmt: skip
fault("async-copy", "randn", """
    import torch
    def noise(n):
        x = torch.randn(n, 16)
        return x.to("cuda", non_blocking=True)  # <-
""")  # fmt: skip
fault("async-copy", "pad_sequence", """
    import torch
    from torch.nn.utils.rnn import pad_sequence
    def put(rows, device):
        x = pad_sequence([torch.as_tensor(r) for r in rows], batch_first=True)
        return x.to(device, non_blocking=True)  # <-
""")  # fmt: skip
fault("async-copy", "pinned loader with collate on device", """
    import torch
    from torch.utils.data import DataLoader
    def collate(rows):
        return torch.stack(rows).cuda()
    def make(ds):
        return DataLoader(ds, batch_size=4, collate_fn=collate, pin_memory=True)  # <-
""")  # fmt: skip
fault("async-copy", "dict comprehension", """
    import torch
    from torch.utils.data import DataLoader
    def loop(ds, model):
        dl = DataLoader(ds, batch_size=4, shuffle=True, pin_memory=False)
        for b in dl:
            b = {k: v.cuda(non_blocking=True) for k, v in b.items()}  # <-
            model(**b)
""")  # fmt: skip
fault("async-copy", "overwritten at once", """
    import torch
    def go(rows, step):
        buf = torch.empty(8, 128, dtype=torch.long).pin_memory()
        buf.copy_(rows[0])
        x = buf.to("cuda", non_blocking=True)  # <-
        buf.copy_(rows[1])
        step(x)
""")  # fmt: skip
right("async-copy", "pinned fresh each time", """
    import torch
    def send(rows):
        return torch.tensor(rows).pin_memory().to("cuda", non_blocking=True)
""")  # fmt: skip
right("async-copy", "loader pins", """
    from torch.utils.data import DataLoader
    def train(ds, model):
        for x in DataLoader(ds, batch_size=8, pin_memory=True):
            model(x.to("cuda", non_blocking=True))
""")  # fmt: skip
right("async-copy", "blocking", """
    import torch
    class F:
        def __init__(self, shape):
            self.buf = torch.empty(shape, pin_memory=True)
        def send(self, rows):
            self.buf.copy_(rows)
            return self.buf.to("cuda")
""")  # fmt: skip
# --- eval-mode --------------------------------------------------------------------------------------------------------
fault("eval-mode", "scores of the reference by a helper", """
    def logp(model, ids):
        return model(ids).logits.log_softmax(-1)
    class PPO:
        def note(self, ids):
            ref = logp(self.ref, ids)  # <-
            return ref
        def learn(self, batches):
            for ids in batches:
                ref = self.note(ids)
                loss = (logp(self.policy, ids) - ref).mean()
                loss.backward()
                self.opt.step()
                self.opt.zero_grad()
""")  # fmt: skip
fault("eval-mode", "put into training mode to answer", """
    import torch
    from transformers import AutoModelForCausalLM
    def load(path):
        net = AutoModelForCausalLM.from_pretrained(path)
        net.train()  # <-
        return net
    @torch.no_grad()
    def complete(net, ids):
        return net.generate(ids)
""")  # fmt: skip
fault("eval-mode", "an index of vectors", """
    import numpy as np
    class Index:
        def __init__(self, encoder):
            self.encoder = encoder
            self.encoder.eval()
        def add(self, docs):
            self.vectors = np.stack([self.encoder(doc).detach().numpy() for doc in docs])  # <-
""")  # fmt: skip
fault("eval-mode", "dropout at test by a wrapper", """
    import torch
    class Predictor:
        def __init__(self, net_cls, path):
            self.net = net_cls(dropout=0.2)
            self.net.load_state_dict(torch.load(path, weights_only=True))  # <-
        @torch.no_grad()
        def predict(self, x):
            return self.net(x).argmax(-1).tolist()
""")  # fmt: skip
fault("eval-mode", "trace in train mode", """
    import torch
    def export(path, model_cls):
        model = model_cls(dropout=0.1)
        model.load_state_dict(torch.load(path, weights_only=True))
        ts = torch.jit.trace(model, torch.zeros(1, 8, dtype=torch.long))  # <-
        ts.save("m.ts")
""")  # fmt: skip
fault("eval-mode", "reference model logps with graph", """
    def dpo(policy, ref_model, batch, opt, beta):
        for b in batch:
            pi = logps(policy(b))
            ref = logps(ref_model(b))  # <-
            loss = -(beta * (pi - ref)).sigmoid().log().mean()
            loss.backward()
            opt.step()
            opt.zero_grad()
""")  # fmt: skip
fault("eval-mode", "reward model scoring keeps graph", """
    class Scorer:
        def __init__(self, rm):
            self.rm = rm.eval()
        def rewards(self, texts):
            out = []
            for t in texts:
                out.append(self.rm(t).logits[0, 0])  # <-
            return out
""")  # fmt: skip
fault("eval-mode", "embedding search", """
    import numpy as np
    class Index:
        def __init__(self, encoder):
            self.encoder = encoder
            self.encoder.eval()
        def add(self, docs):
            vecs = [self.encoder(d) for d in docs]  # <-
            self.mat = np.stack([v.detach().numpy() for v in vecs])
""")  # fmt: skip
right("eval-mode", "a maker's name is no model", """
    import torch
    from mine import load_story_model
    MODEL = load_story_model("x")
    MODEL.eval()
    @torch.inference_mode()
    def answer(ids):
        return MODEL(ids).argmax(-1)
""")  # fmt: skip
right("eval-mode", "perceptual loss needs its graph", """
    def fit(gen, vgg, loader, opt):
        vgg.eval()
        for x in loader:
            loss = (vgg(gen(x)) - vgg(x)).pow(2).mean()
            loss.backward()
            opt.step()
            opt.zero_grad()
""")  # fmt: skip
right("eval-mode", "teacher frozen", """
    def distill(student, teacher, loader, opt, kl):
        teacher.eval().requires_grad_(False)
        for x in loader:
            loss = kl(student(x), teacher(x))
            loss.backward()
            opt.step()
            opt.zero_grad()
""")  # fmt: skip


@pytest.mark.parametrize("variant", [pytest.param(one, id=f"{one.kind}: {one.name}") for one in WRITINGS.variants])
def test_each_writing_of_a_fault_of_memory_is_found_and_what_is_right_is_left_alone(variant: Variant):
    found = variant.found()
    assert bool(found) == variant.fault, found or f"nothing at {variant.place}"
