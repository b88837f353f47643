"""Faults of nine classes in further ways of writing, found at the first look or made rules."""

import pytest
from tests.optimise.scan.variants import Collection, Variant

WAYS = Collection()
fault, right = WAYS.fault, WAYS.right

# --- all -------------------------------------------------------------------------------------------------------------
fault("small-batch", "property quotient", """
    class Plan:
        micro = 2  # <-
        total = 256
        @property
        def passes(self):
            return self.total // self.micro
    class T:
        def __init__(self, model, opt, src): self.plan, self.model, self.opt, self.src = Plan(), model, opt, src
        def step(self):
            for _ in range(self.plan.passes):
                loss = self.model(next(self.src)) / self.plan.passes
                loss.backward()
            self.opt.step(); self.opt.zero_grad()
        def run(self):
            while True:
                self.step()
""")  # fmt: skip
fault("small-batch", "two at once", """
    from torch.utils.data import DataLoader
    BATCH_SIZE, ACC = 2, 16  # <-
    def train(model, opt, ds):
        loader = DataLoader(ds, BATCH_SIZE)
        for i, (x, y) in enumerate(loader):
            (model(x, y) / ACC).backward()
            if (i + 1) % ACC == 0:
                opt.step(); opt.zero_grad()
""")  # fmt: skip
fault("small-batch", "partial loader", """
    from functools import partial
    from torch.utils.data import DataLoader
    ACC = 16
    make = partial(DataLoader, batch_size=2, shuffle=True)  # <-
    def train(model, opt, ds):
        loader = make(ds)
        for i, (x, y) in enumerate(loader):
            (model(x, y) / ACC).backward()
            if (i + 1) % ACC == 0:
                opt.step(); opt.zero_grad()
""")  # fmt: skip
fault("small-batch", "batch sampler", """
    from torch.utils.data import BatchSampler, DataLoader, RandomSampler
    ACC = 16
    def train(model, opt, ds):
        loader = DataLoader(ds, batch_sampler=BatchSampler(RandomSampler(ds), 2, True))  # <-
        for i, (x, y) in enumerate(loader):
            (model(x, y) / ACC).backward()
            if (i + 1) % ACC == 0:
                opt.step(); opt.zero_grad()
""")  # fmt: skip
fault("small-batch", "project loader positional", """
    from data import make_loader
    ACC = 16
    def build(ds, bs, workers=4):
        return make_loader(ds, bs, workers)
    def train(model, opt, ds):
        loader = build(ds, 2)  # <-
        for i, (x, y) in enumerate(loader):
            (model(x, y) / ACC).backward()
            if (i + 1) % ACC == 0:
                opt.step(); opt.zero_grad()
""")  # fmt: skip
fault("small-batch", "micro generator default", """
    def micro_batches(batch, size=2):  # <-
        for i in range(0, len(batch), size):
            yield batch[i:i + size]
    def step(model, opt, batch):
        parts = list(micro_batches(batch))
        for p in parts:
            (model(p) / len(parts)).backward()
        opt.step(); opt.zero_grad()
    def main(model, opt, loader):
        for b in loader: step(model, opt, b)
""")  # fmt: skip
fault("small-batch", "fire", """
    import fire
    from torch.utils.data import DataLoader
    def main(ds, batch_size: int = 4, grad_acc: int = 8):  # <-
        model, opt = build()
        for i, b in enumerate(DataLoader(ds, batch_size=batch_size)):
            (model(b) / grad_acc).backward()
            if (i + 1) % grad_acc == 0:
                opt.step(); opt.zero_grad()
    fire.Fire(main)
""")  # fmt: skip
fault("small-batch", "attrs", """
    import attr
    from torch.utils.data import DataLoader
    @attr.s(auto_attribs=True)
    class C:
        lr: float = 1e-4
        train_bs: int = attr.ib(default=2)  # <-
        acc: int = 16
    def train(model, opt, ds, c=C()):
        for i, b in enumerate(DataLoader(ds, batch_size=c.train_bs)):
            (model(b) / c.acc).backward()
            if (i + 1) % c.acc == 0:
                opt.step(); opt.zero_grad()
""")  # fmt: skip
fault("small-batch", "final", """
    from typing import Final
    from torch.utils.data import DataLoader
    MICRO: Final[int] = 2  # <-
    ACC: Final = 16
    def train(model, opt, ds):
        loader = DataLoader(ds, batch_size=MICRO)
        for i, (x, y) in enumerate(loader):
            (model(x, y) / ACC).backward()
            if (i + 1) % ACC == 0:
                opt.step(); opt.zero_grad()
""")  # fmt: skip
fault("small-batch", "attribute set", """
    from config import get
    cfg = get()
    cfg.train.micro_batch_size = 1  # <-
    cfg.train.accum = 64
""")  # fmt: skip
fault("small-batch", "ctor defaults", """
    from torch.utils.data import DataLoader
    class Tuner:
        def __init__(self, model, opt, ds, rows=2, every=16):  # <-
            self.model, self.opt, self.every = model, opt, every
            self.loader = DataLoader(ds, rows)
        def go(self):
            n = 0
            for b in self.loader:
                (self.model(b) / self.every).backward()
                n += 1
                if n % self.every: continue
                self.opt.step(); self.opt.zero_grad()
""")  # fmt: skip
fault("compile", "disable by flag", """
    import argparse, torch
    def main(model, loader, opt):
        p = argparse.ArgumentParser()
        p.add_argument('--compile', action='store_true')
        a = p.parse_args()
        model = torch.compile(model, disable=not a.compile)  # <-
        for b in loader:
            model(b).backward(); opt.step(); opt.zero_grad()
""")  # fmt: skip
fault("compile", "trainer gets the old one", """
    import torch
    class Trainer:
        def __init__(self, model, opt): self.model, self.opt = model, opt
        def fit(self, loader):
            for b in loader:
                self.model(b).backward(); self.opt.step(); self.opt.zero_grad()
    def main(model, opt, loader):
        fast = torch.compile(model)  # <-
        Trainer(model=model, opt=opt).fit(loader)
        return fast
""")  # fmt: skip
fault("compile", "step of the model", """
    import torch
    def main(model, loader, opt):
        for b in loader:  # <-
            loss = model.training_step(b)
            loss.backward(); opt.step(); opt.zero_grad()
""")  # fmt: skip
fault("compile", "torch randint length", """
    import torch
    def main(model, data, opt):
        model = torch.compile(model)  # <-
        for _ in range(100):
            n = torch.randint(32, 512, (1,)).item()
            x = data.rows()[:, :n]
            model(x).mean().backward(); opt.step(); opt.zero_grad()
""")  # fmt: skip
fault("compile", "schedule by epoch", """
    import torch
    LENGTHS = [128, 256, 512, 1024]
    def main(model, data, opt):
        net = torch.compile(model, dynamic=False)  # <-
        for epoch in range(4):
            T = LENGTHS[epoch]
            for x in data.batches(32, T):
                net(x).mean().backward(); opt.step(); opt.zero_grad()
""")  # fmt: skip
fault("compile", "np choice", """
    import numpy as np, torch
    def main(model, stream, opt):
        rng = np.random.default_rng(1)
        model = torch.compile(model)  # <-
        while stream.left():
            ctx = rng.choice([256, 512, 1024])
            x, y = stream.take(16, ctx)
            model(x, y).backward(); opt.step(); opt.zero_grad()
""")  # fmt: skip
fault("compile", "helper kernel only", """
    import torch
    from torch.nn.attention.flex_attention import flex_attention
    flex_attention = torch.compile(flex_attention)





    def main(model, loader, opt):
        for b in loader:  # <-
            model(b).backward(); opt.step(); opt.zero_grad()
""")  # fmt: skip
right("compile", "layer by layer decorated forward", """
    import torch
    class Block(torch.nn.Module):
        @torch.compile
        def forward(self, x): return self.f(x)
    def main(model, loader, opt):
        for b in loader:
            model(b).backward(); opt.step(); opt.zero_grad()
""")  # fmt: skip
right("compile", "compiled loss with the model inside", """
    import torch
    def main(model, loader, opt):
        @torch.compile
        def loss_of(x, y):
            return model(x, y)
        for x, y in loader:
            loss_of(x, y).backward(); opt.step(); opt.zero_grad()
""")  # fmt: skip
fault("padding", "pad then cut", """
    import torch
    import numpy as np
    import torch.nn.functional as F
    def loss(m, x, y): return F.cross_entropy(m(x).flatten(0, 1), y.flatten(), ignore_index=-100)
    def row(ids, width):
        x = (ids + [0] * width)[:width]  # <-
        y = (ids[1:] + [-100] * width)[:width]
        return torch.tensor(x), torch.tensor(y)
""")  # fmt: skip
fault("padding", "extend", """
    import torch
    import numpy as np
    import torch.nn.functional as F
    def loss(m, x, y): return F.cross_entropy(m(x).flatten(0, 1), y.flatten(), ignore_index=-100)
    class D:
        def __getitem__(self, i):
            ids = list(self.docs[i][:self.width])
            gap = self.width - len(ids)
            ids.extend([self.pad] * gap)  # <-
            return torch.tensor(ids)
""")  # fmt: skip
fault("padding", "strategy enum", """
    import torch
    import numpy as np
    import torch.nn.functional as F
    def loss(m, x, y): return F.cross_entropy(m(x).flatten(0, 1), y.flatten(), ignore_index=-100)
    from transformers.utils import PaddingStrategy
    def prep(tok, texts):
        b = tok(texts, truncation=True, max_length=512, padding=PaddingStrategy.MAX_LENGTH)  # <-
        b['labels'] = b['input_ids']
        return b
""")  # fmt: skip
fault("padding", "range append", """
    import torch
    import numpy as np
    import torch.nn.functional as F
    def loss(m, x, y): return F.cross_entropy(m(x).flatten(0, 1), y.flatten(), ignore_index=-100)
    def fill(ids, width, pad):
        ids = list(ids)
        for _ in range(width - len(ids)):  # <-
            ids.append(pad)
        return ids
""")  # fmt: skip
fault("padding", "bytes", """
    import torch
    import numpy as np
    import torch.nn.functional as F
    def loss(m, x, y): return F.cross_entropy(m(x).flatten(0, 1), y.flatten(), ignore_index=-100)
    def row(text, width):
        b = text.encode()[:width]
        out = bytearray(width)  # <-
        out[:len(b)] = b
        return torch.frombuffer(out, dtype=torch.uint8).long()
""")  # fmt: skip
fault("padding", "size attr", """
    import torch
    import numpy as np
    import torch.nn.functional as F
    def loss(m, x, y): return F.cross_entropy(m(x).flatten(0, 1), y.flatten(), ignore_index=-100)
    def row(a, width):
        return np.pad(a, (0, width - a.size), constant_values=0)  # <-
""")  # fmt: skip
fault("padding", "zip rows", """
    import torch
    import numpy as np
    import torch.nn.functional as F
    def loss(m, x, y): return F.cross_entropy(m(x).flatten(0, 1), y.flatten(), ignore_index=-100)
    def batch(rows, width, pad):
        out = torch.full((len(rows), width), pad)  # <-
        for dst, ids in zip(out, rows):
            dst[:len(ids)] = torch.tensor(ids)
        return out
""")  # fmt: skip
fault("padding", "ternary", """
    import torch
    import numpy as np
    import torch.nn.functional as F
    def loss(m, x, y): return F.cross_entropy(m(x).flatten(0, 1), y.flatten(), ignore_index=-100)
    def batch(rows):
        n = max(r.shape[0] for r in rows)
        def fill(r): return torch.cat((r, torch.zeros(n - r.shape[0], dtype=r.dtype)))  # <-
        return torch.stack([r if r.shape[0] == n else fill(r) for r in rows])
""")  # fmt: skip
fault("padding", "vmap pad lambda", """
    import torch
    import numpy as np
    import torch.nn.functional as F
    def loss(m, x, y): return F.cross_entropy(m(x).flatten(0, 1), y.flatten(), ignore_index=-100)
    to_width = lambda ids, w: ids + [0] * (w - len(ids))  # <-
    def batch(rows):
        w = max(map(len, rows))
        return torch.tensor([to_width(r, w) for r in rows])
""")  # fmt: skip
fault("padding", "np full fill", """
    import torch
    import numpy as np
    import torch.nn.functional as F
    def loss(m, x, y): return F.cross_entropy(m(x).flatten(0, 1), y.flatten(), ignore_index=-100)
    def batch(rows, width):
        x = np.full((len(rows), width), 0, dtype=np.int64)  # <-
        for k, r in enumerate(rows):
            m = min(len(r), width)
            x[k, :m] = r[:m]
        return torch.from_numpy(x)
""")  # fmt: skip
fault("padding", "collate by dict of keys", """
    import torch
    import numpy as np
    import torch.nn.functional as F
    def loss(m, x, y): return F.cross_entropy(m(x).flatten(0, 1), y.flatten(), ignore_index=-100)
    def collate(items):
        out = {}
        for key, fill in (('input_ids', 0), ('labels', -100)):
            n = max(len(it[key]) for it in items)
            out[key] = torch.tensor([it[key] + [fill] * (n - len(it[key])) for it in items])  # <-
        return out
""")  # fmt: skip
fault("host-sync", "no grad metric", """
    import torch
    def train(model, opt, loader, log):
        for step, (x, y) in enumerate(loader):
            x, y = x.cuda(), y.cuda()
            logits = model(x)
            loss = torch.nn.functional.cross_entropy(logits, y)
            loss.backward()
            opt.step(); opt.zero_grad()
            with torch.no_grad():
                acc = (logits.argmax(-1) == y).float().mean().item()  # <-
            log.push(acc)
""")  # fmt: skip
fault("host-sync", "losses dict", """
    import torch
    def train(model, opt, loader, log):
        for step, (x, y) in enumerate(loader):
            x, y = x.cuda(), y.cuda()
            logits = model(x)
            loss = torch.nn.functional.cross_entropy(logits, y)
            loss.backward()
            opt.step(); opt.zero_grad()
            parts = {'ce': loss, 'z': logits.logsumexp(-1).pow(2).mean()}
            log.push({k: v.detach().mean().item() for k, v in parts.items()})  # <-
""")  # fmt: skip
fault("host-sync", "stacked norms", """
    import torch
    def train(model, opt, loader, log):
        for step, (x, y) in enumerate(loader):
            x, y = x.cuda(), y.cuda()
            logits = model(x)
            loss = torch.nn.functional.cross_entropy(logits, y)
            loss.backward()
            opt.step(); opt.zero_grad()
            norms = torch.stack([p.grad.norm() for p in model.parameters()])
            if norms.max() > 100:  # <-
                log.push('spike')
""")  # fmt: skip
fault("host-sync", "list of token", """
    import torch
    def train(model, opt, loader, log):
        for step, (x, y) in enumerate(loader):
            x, y = x.cuda(), y.cuda()
            logits = model(x)
            loss = torch.nn.functional.cross_entropy(logits, y)
            loss.backward()
            opt.step(); opt.zero_grad()
            log.push([t.item() for t in logits.argmax(-1)])  # <-
""")  # fmt: skip
fault("host-sync", "bool call", """
    import torch
    def train(model, opt, loader, log):
        for step, (x, y) in enumerate(loader):
            x, y = x.cuda(), y.cuda()
            logits = model(x)
            loss = torch.nn.functional.cross_entropy(logits, y)
            loss.backward()
            opt.step(); opt.zero_grad()
            if bool(loss > 10):  # <-
                break
""")  # fmt: skip
fault("host-sync", "nan name", """
    import torch
    def train(model, opt, loader, log):
        for step, (x, y) in enumerate(loader):
            x, y = x.cuda(), y.cuda()
            logits = model(x)
            loss = torch.nn.functional.cross_entropy(logits, y)
            loss.backward()
            opt.step(); opt.zero_grad()
            bad = torch.isnan(loss)
            if bad:  # <-
                continue
""")  # fmt: skip
fault("host-sync", "str concat", """
    import torch
    def train(model, opt, loader, log):
        for step, (x, y) in enumerate(loader):
            x, y = x.cuda(), y.cuda()
            logits = model(x)
            loss = torch.nn.functional.cross_entropy(logits, y)
            loss.backward()
            opt.step(); opt.zero_grad()
            log.push('loss ' + str(loss.item()))  # <-
""")  # fmt: skip
fault("host-sync", "print list", """
    import torch
    def train(model, opt, loader, log):
        for step, (x, y) in enumerate(loader):
            x, y = x.cuda(), y.cuda()
            logits = model(x)
            loss = torch.nn.functional.cross_entropy(logits, y)
            loss.backward()
            opt.step(); opt.zero_grad()
            print(step, [loss, logits.norm()])  # <-
""")  # fmt: skip
right("host-sync", "eval inside", """
    import torch
    def train(model, opt, loader, log):
        for step, (x, y) in enumerate(loader):
            x, y = x.cuda(), y.cuda()
            logits = model(x)
            loss = torch.nn.functional.cross_entropy(logits, y)
            loss.backward()
            opt.step(); opt.zero_grad()
            if step % 100 == 0:
                with torch.no_grad():
                    log.push(sum(model(a.cuda()).sum().item() for a in loader))
""")  # fmt: skip
right("host-sync", "no grad eval block each epoch", """
    import torch
    def train(model, opt, loader, log):
        for step, (x, y) in enumerate(loader):
            x, y = x.cuda(), y.cuda()
            logits = model(x)
            loss = torch.nn.functional.cross_entropy(logits, y)
            loss.backward()
            opt.step(); opt.zero_grad()
            if step == len(loader) - 1 and log.epoch_done:
                with torch.no_grad():
                    for a, b in log.val:
                        log.push((model(a.cuda()).argmax(-1) == b.cuda()).sum().item())
""")  # fmt: skip
fault("host-sync", "hook", """
    import torch
    class Watch:
        def __init__(self, model):
            self.seen = []
            for m in model.modules():
                m.register_forward_hook(self.look)
        def look(self, m, i, out):
            self.seen.append(out.abs().max().item())  # <-
""")  # fmt: skip
fault("host-sync", "stream decode", """
    import torch
    @torch.no_grad()
    def stream(model, tok, x, n, cache):
        for _ in range(n):
            x = model(x, cache)[:, -1:].argmax(-1)
            yield tok.decode(x[0])  # <-
""")  # fmt: skip
fault("host-sync", "while loss", """
    import torch
    def fit(model, opt, x, y):
        loss = torch.tensor(9.0, device='cuda')
        while loss > 0.1:  # <-
            loss = model(x.cuda(), y.cuda())
            loss.backward(); opt.step(); opt.zero_grad()
""")  # fmt: skip
fault("host-sync", "forward range", """
    import torch
    from torch import nn
    class P(nn.Module):
        def forward(self, x, steps):
            for i in range(steps.max()):  # <-
                x = self.cell(x)
            return x
""")  # fmt: skip
fault("device-string", "str parameter", """
    import torch
    def move(t: torch.Tensor, device: str):
        if t.device == device:  # <-
            return t
        return t.to(device)
""")  # fmt: skip
fault("device-string", "settings text", """
    import torch
    WANTED = 'cuda:0'
    class B:
        def __init__(self): self.device = torch.device('cuda', 0)
        def ok(self, wanted=WANTED):
            return self.device == wanted  # <-
""")  # fmt: skip
fault("device-string", "env text", """
    import torch
    import os
    D = torch.device('cuda')
    if D != os.environ.get('DEV', 'cuda'):  # <-
        print('other')
""")  # fmt: skip
right("device-string", "two devices", """
    import torch
    def same(a, b):
        return a.device == b.device
""")  # fmt: skip
right("device-string", "optional device", """
    import torch
    def f(x: torch.Tensor, device: torch.device | None = None):
        device = device or x.device
        if x.device == device:
            return x
        return x.to(device)
""")  # fmt: skip
right("device-string", "either", """
    import torch
    def f(x: torch.Tensor, device: str | torch.device):
        device = torch.device(device)
        return x.device == device
""")  # fmt: skip
fault("recast", "lora merge", """
    import torch
    from torch import nn
    import torch.nn.functional as F
    class L(nn.Linear):
        def forward(self, x):
            w = (self.weight + self.up @ self.down).to(x.dtype)  # <-
            return F.linear(x, w)
""")  # fmt: skip
fault("recast", "expert index", """
    import torch
    from torch import nn
    import torch.nn.functional as F
    class E(nn.Module):
        def __init__(self, n, i, o):
            super().__init__()
            self.w = nn.Parameter(torch.randn(n, o, i))
        def forward(self, x, k):
            return x @ self.w[k].to(x.dtype).t()  # <-
""")  # fmt: skip
fault("recast", "ifexp", """
    import torch
    from torch import nn
    import torch.nn.functional as F
    class L(nn.Linear):
        def forward(self, x):
            w = self.weight if self.weight.dtype == x.dtype else self.weight.to(x.dtype)  # <-
            return F.linear(x, w, self.bias)
""")  # fmt: skip
fault("recast", "nn functional multi arg", """
    import torch
    from torch import nn
    import torch.nn.functional as F
    def loss(model, x, y):
        z = model(x).logits
        z = z.to(y.device, torch.float32)  # <-
        return F.cross_entropy(z.flatten(0, 1), y.flatten())
""")  # fmt: skip
fault("recast", "returned logits", """
    import torch
    from torch import nn
    import torch.nn.functional as F
    class M(nn.Module):
        def forward(self, ids):
            h = self.body(ids)
            logits = self.lm_head(h).float()  # <-
            return logits
    def step(m, x, y):
        logits = m(x)
        return F.cross_entropy(logits.flatten(0, 1), y.flatten())
""")  # fmt: skip
fault("recast", "param data", """
    import torch
    from torch import nn
    import torch.nn.functional as F
    def train(model, opt, loader):
        for b in loader:
            model(b).backward()
            for p in model.parameters():
                p.data = p.data.float()  # <-
            opt.step(); opt.zero_grad()
""")  # fmt: skip
fault("recast", "prompt logits", """
    import torch
    from torch import nn
    import torch.nn.functional as F
    @torch.no_grad()
    def sample(model, ids, n):
        past = None
        for _ in range(n):
            out = model(ids, past_key_values=past, use_cache=True)
            logits = out.logits.float()  # <-
            ids = logits[:, -1].argmax(-1, keepdim=True)
            past = out.past_key_values
""")  # fmt: skip
fault("accumulation", "zero right before step", """
    import torch
    def train(model, opt, loader, accum):
        for i, b in enumerate(loader):
            (model(b) / accum).backward()
            if (i + 1) % accum == 0:
                opt.zero_grad()  # <-
                opt.step()
""")  # fmt: skip
fault("accumulation", "flush method", """
    import torch
    class T:
        def __init__(self, model, opt, n): self.model, self.opt, self.n, self.k = model, opt, n, 0
        def feed(self, b):
            loss = self.model(b)
            loss.backward()  # <-
            self.k += 1
            if self.k < self.n:
                return
            self.opt.step(); self.opt.zero_grad(); self.k = 0
        def run(self, loader):
            for b in loader: self.feed(b)
""")  # fmt: skip
fault("accumulation", "parts of a batch", """
    import torch
    def step(model, opt, x, y, n):
        xs, ys = x.tensor_split(n), y.tensor_split(n)
        opt.zero_grad()
        for a, b in zip(xs, ys):
            model(a, b).backward()  # <-
        opt.step()
    def main(model, opt, loader):
        for x, y in loader: step(model, opt, x, y, 8)
""")  # fmt: skip
fault("accumulation", "cycle count", """
    import torch
    from itertools import islice
    def train(model, opt, it, accum):
        while True:
            batches = list(islice(it, accum))
            if not batches: break
            for b in batches:
                loss = model(b)
                loss.backward()  # <-
            opt.step(); opt.zero_grad()
""")  # fmt: skip
fault("accumulation", "reduce by helper flat", """
    import torch
    import torch.distributed as dist
    def sync(params):
        flat = torch.cat([p.grad.view(-1) for p in params])
        dist.all_reduce(flat)  # <-
    def train(model, opt, loader, accum):
        ps = list(model.parameters())
        for i, b in enumerate(loader):
            (model(b) / accum).backward()
            sync(ps)
            if (i + 1) % accum == 0:
                opt.step(); opt.zero_grad()
""")  # fmt: skip
fault("accumulation", "divided by length of loader", """
    import torch
    def train(model, opt, loader, accum):
        for i, b in enumerate(loader):
            loss = model(b) / len(loader)
            loss.backward()  # <-
            if (i + 1) % accum == 0:
                opt.step(); opt.zero_grad()
""")  # fmt: skip
right("accumulation", "two optimizers", """
    def train(g, d, og, od, loader):
        for x in loader:
            ld = d(g(x))
            od.zero_grad(); ld.backward(); od.step()
            lg = d(g(x))
            og.zero_grad(); lg.backward(); og.step()
""")  # fmt: skip
right("accumulation", "closure of batches", """
    from itertools import islice
    def train(model, opt, it, accum):
        while True:
            batches = list(islice(it, accum))
            if not batches: break
            for b in batches:
                (model(b) / len(batches)).backward()
            opt.step(); opt.zero_grad()
""")  # fmt: skip
fault("checkpoint", "whole model", """
    import torch, os, shutil, json, pickle
    from pathlib import Path
    def keep(net, where):
        torch.save(net, where / 'net.pt')  # <-
""")  # fmt: skip
fault("checkpoint", "safetensors bytes", """
    import torch, os, shutil, json, pickle
    from pathlib import Path
    import safetensors.torch
    def keep(model, path):
        with open(path, 'wb') as f:
            f.write(safetensors.torch.save(model.state_dict()))  # <-
""")  # fmt: skip
fault("checkpoint", "imagenet example", """
    import torch, os, shutil, json, pickle
    from pathlib import Path
    def save_checkpoint(state, is_best, filename='checkpoint.pth.tar'):
        torch.save(state, filename)  # <-
        if is_best:
            shutil.copyfile(filename, 'model_best.pth.tar')
""")  # fmt: skip
fault("checkpoint", "fsspec", """
    import torch, os, shutil, json, pickle
    from pathlib import Path
    import fsspec
    def keep(model, opt, url):
        with fsspec.open(url, 'wb') as f:
            torch.save({'model': model.state_dict(), 'opt': opt.state_dict()}, f)  # <-
""")  # fmt: skip
fault("checkpoint", "executor", """
    import torch, os, shutil, json, pickle
    from pathlib import Path
    from concurrent.futures import ThreadPoolExecutor
    pool = ThreadPoolExecutor(1)
    def keep(model, path):
        pool.submit(torch.save, model.state_dict(), path)  # <-
""")  # fmt: skip
fault("checkpoint", "lambda saver", """
    import torch, os, shutil, json, pickle
    from pathlib import Path
    save = lambda m, p: torch.save(m.state_dict(), p)  # <-
""")  # fmt: skip
fault("checkpoint", "exists then keep name", """
    import torch, os, shutil, json, pickle
    from pathlib import Path
    class K:
        def __init__(self, d): self.path = Path(d) / 'last.pt'
        def __call__(self, step, **mods):
            blob = {k: m.state_dict() for k, m in mods.items()} | {'step': step}
            torch.save(blob, self.path)  # <-
""")  # fmt: skip
right("checkpoint", "keeps two and renames", """
    def keep(model, path):
        new = Path(str(path) + '.tmp')
        torch.save(model.state_dict(), new)
        if path.exists():
            path.rename(str(path) + '.old')
        new.rename(path)
""")  # fmt: skip
fault("packing", "argmax free", """
    import torch, random
    import numpy as np
    def pack(docs, n, cap):
        free = np.full(n, cap)
        rows = [[] for _ in range(n)]
        for d in docs:
            j = free.argmax()  # <-
            rows[j].append(d)
            free[j] -= len(d)
        return rows
""")  # fmt: skip
fault("packing", "starred", """
    import torch, random
    import numpy as np
    def flat(docs, enc):
        ids = []
        for d in docs:
            ids = [*ids, *enc(d)]  # <-
        return ids
""")  # fmt: skip
fault("packing", "fstring", """
    import torch, random
    import numpy as np
    def corpus(files):
        text = ''
        for f in files:
            text = f'{text}{f.read_text()}'  # <-
        return text
""")  # fmt: skip
fault("packing", "join itself", """
    import torch, random
    import numpy as np
    def corpus(docs):
        buf = ''
        for d in docs:
            buf = ''.join([buf, d])  # <-
        return buf
""")  # fmt: skip
fault("packing", "r ", """
    import torch, random
    import numpy as np
    def ids(docs, enc):
        arr = np.empty(0, int)
        for d in docs:
            arr = np.r_[arr, enc(d)]  # <-
        return arr
""")  # fmt: skip
fault("packing", "rows with room flag", """
    import torch, random
    import numpy as np
    def place(docs, cap):
        rows = []
        for doc in sorted(docs, key=len):
            done = False
            for row in rows:  # <-
                if row['room'] >= len(doc):
                    row['docs'].append(doc); row['room'] -= len(doc); done = True; break
            if not done:
                rows.append({'room': cap - len(doc), 'docs': [doc]})
        return rows
""")  # fmt: skip
fault("packing", "heapify each", """
    import torch, random
    import numpy as np
    import heapq
    def place(docs, cap):
        rows = []
        for d in docs:
            rows = sorted(rows, key=lambda r: r[0])  # <-
            if rows and rows[0][0] + len(d) <= cap:
                rows[0] = (rows[0][0] + len(d), rows[0][1] + [d])
            else:
                rows.append((len(d), [d]))
        return rows
""")  # fmt: skip
fault("packing", "converted every time", """
    import torch, random
    import numpy as np
    def lengths(docs, enc):
        ids, ends = [], []
        for d in docs:
            ids.extend(enc(d))
            ends.append(len(torch.tensor(ids)))  # <-
        return ends
""")  # fmt: skip
# --- all -------------------------------------------------------------------------------------------------------------
right("device-string", "a name made of itself", """
    import torch
    def f(steps):
        steps = tuple(steps)
        return 3 in steps, steps[0]
""")  # fmt: skip
right("padding", "a model that widens its bias", """
    import torch
    from torch import nn
    import torch.nn.functional as F
    class M(nn.Module):
        def widen(self, n):
            old = self.bias.shape[-1]
            extra = torch.zeros((1, n - old))
            self.bias = torch.cat([self.bias, extra], 1)
        def forward(self, x, labels):
            return F.cross_entropy(self.f(x), labels, ignore_index=-100)
""")  # fmt: skip
right("packing", "a window of the last ones", """
    def crop(docs, n):
        rows = []
        for doc in docs:
            while len(doc) > n:
                doc = doc[-n:]
            rows.append(doc)
        return rows
""")  # fmt: skip
right("checkpoint", "a processor is no state", """
    def on_epoch_end(model, processing_class, out):
        processing_class.save_pretrained(out)
""")  # fmt: skip
right("device-string", "a function that gives a text by its type", """
    import torch
    def kind(x: torch.device | str) -> str | None:
        if isinstance(x, str):
            return x
        return x.type
    def fast(x: torch.device | str):
        return kind(x) == 'cuda'
    def run(d: torch.device): return fast(d)
""")  # fmt: skip
right("packing", "few lists of names", """
    def names(groups):
        return sum((g.names for g in groups), [])
""")  # fmt: skip
right("packing", "a text that is generated", """
    import torch
    def more(model, rows, n):
        ids = rows
        for batch in range(n):
            next_token = model(ids)
            ids = torch.cat([ids, next_token], 1)
        return ids
""")  # fmt: skip
# --- all -------------------------------------------------------------------------------------------------------------
fault("padding", "vision text batch processor", """
    import torch
    class CaptionCollator:
        def __init__(self, processor): self.processor = processor
        def __call__(self, rows):
            enc = self.processor(images=[r["image"] for r in rows], text=[r["caption"] for r in rows],
                                 return_tensors="pt", padding="longest", truncation=True)  # <-
            enc["labels"] = enc.input_ids.clone()
            return enc
""")  # fmt: skip
fault("padding", "translate pairs", """
    import torch
    from torch import nn
    PAD, BOS, EOS = 0, 1, 2
    def as_batch(pairs, device):
        def block(seqs):
            longest = max(len(s) for s in seqs) + 2
            rows = [[BOS] + list(s) + [EOS] + [PAD] * (longest - len(s) - 2) for s in seqs]  # <-
            return torch.tensor(rows, device=device)
        return block([p[0] for p in pairs]), block([p[1] for p in pairs])
    def epoch(model, opt, pairs, device):
        crit = nn.CrossEntropyLoss(ignore_index=PAD)
        for chunk in pairs:
            src, tgt = as_batch(chunk, device)
            loss = crit(model(src, tgt[:, :-1]).flatten(0, 1), tgt[:, 1:].flatten())
            loss.backward(); opt.step(); opt.zero_grad()
""")  # fmt: skip
fault("padding", "reward pairs", """
    import torch
    def pad_pair(chosen, rejected, pad_id):
        m = max(chosen.shape[1], rejected.shape[1])
        def right(x):
            return torch.nn.functional.pad(x, (0, m - x.shape[1]), value=pad_id)  # <-
        return torch.cat([right(chosen), right(rejected)])
    def step(model, opt, batch, pad_id):
        x = pad_pair(batch["chosen"], batch["rejected"], pad_id)
        r = model(x)
        n = r.size(0) // 2
        loss = -torch.nn.functional.logsigmoid(r[:n] - r[n:]).mean()
        loss.backward(); opt.step(); opt.zero_grad()
""")  # fmt: skip
fault("padding", "memmap rows", """
    import numpy as np
    def build(docs, path, width, eos):
        out = np.memmap(path, dtype=np.uint16, mode="w+", shape=(len(docs), width))
        out[:] = eos
        for i, d in enumerate(docs):
            out[i, :len(d)] = d[:width]  # <-
        out.flush()
""")  # fmt: skip
fault("padding", "dataset map fixed", """
    from datasets import load_from_disk
    from transformers import AutoTokenizer
    tok = AutoTokenizer.from_pretrained("gpt2")
    def prepare(ex):
        return tok(ex["text"], max_length=1024, padding="max_length", truncation=True)  # <-
    ds = load_from_disk("d").map(prepare, batched=True)
    ds = ds.map(lambda e: {"labels": e["input_ids"]})
""")  # fmt: skip
fault("compile", "class builds eager", """
    import torch
    from torch import nn
    class Experiment:
        def __init__(self, cfg):
            self.net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1)).cuda()
            self.optim = torch.optim.SGD(self.net.parameters(), lr=cfg["lr"])
            self.crit = nn.MSELoss()
        def _one_epoch(self, loader):
            for batch in loader:  # <-
                x, y = (t.cuda(non_blocking=True) for t in batch)
                self.optim.zero_grad()
                l = self.crit(self.net(x), y)
                l.backward()
                self.optim.step()
        def run(self, loader, n):
            for _ in range(n):
                self._one_epoch(loader)
""")  # fmt: skip
fault("compile", "diffusion", """
    import torch
    import torch.nn.functional as F
    def train(unet, vae, sched, opt, loader, ema):
        for images in loader:  # <-
            with torch.no_grad():
                z = vae.encode(images).latent_dist.sample()
            noise = torch.randn_like(z)
            t = torch.randint(0, 1000, (z.size(0),), device=z.device)
            pred = unet(sched.add_noise(z, noise, t), t).sample
            loss = F.mse_loss(pred, noise)
            loss.backward()
            opt.step()
            opt.zero_grad(set_to_none=True)
            ema.update(unet)
""")  # fmt: skip
fault("compile", "tokens budget batches", """
    import torch
    def budget(rows, limit):
        batch, width = [], 0
        for r in rows:
            width = max(width, len(r))
            if width * (len(batch) + 1) > limit:
                yield batch
                batch, width = [], len(r)
            batch.append(r)
    def collate(batch):
        n = max(map(len, batch))
        x = torch.zeros(len(batch), n, dtype=torch.long)
        for i, r in enumerate(batch):
            x[i, : len(r)] = torch.tensor(r)
        return x
    def train(model, opt, rows):
        model = torch.compile(model, fullgraph=True)  # <-
        for b in budget(rows, 8192):
            x = collate(b)
            loss = torch.nn.functional.cross_entropy(model(x[:, :-1]).transpose(1, 2), x[:, 1:], ignore_index=0)
            loss.backward(); opt.step(); opt.zero_grad()
""")  # fmt: skip
fault("compile", "random crop height", """
    import random, torch
    def train(net, opt, data):
        net = torch.compile(net, mode="max-autotune")  # <-
        for img, mask in data:
            h = random.randrange(256, 513, 32)
            w = random.randrange(256, 513, 32)
            img, mask = img[..., :h, :w], mask[..., :h, :w]
            loss = torch.nn.functional.cross_entropy(net(img), mask)
            loss.backward(); opt.step(); opt.zero_grad()
""")  # fmt: skip
fault("compile", "compiled copy for export", """
    import torch, copy
    def main(model, loader, opt):
        frozen = torch.compile(copy.deepcopy(model).eval())
        for x, y in loader:  # <-
            loss = torch.nn.functional.cross_entropy(model(x), y)
            loss.backward(); opt.step(); opt.zero_grad()
        return frozen
""")  # fmt: skip
fault("host-sync", "confusion matrix", """
    import torch
    def train(model, opt, loader, cm):
        for x, y in loader:
            x, y = x.to("cuda"), y.to("cuda")
            out = model(x)
            loss = torch.nn.functional.cross_entropy(out, y)
            opt.zero_grad(); loss.backward(); opt.step()
            for p, t in zip(out.argmax(1).cpu().numpy(), y.cpu().numpy()):  # <-
                cm[p, t] += 1
""")  # fmt: skip
fault("host-sync", "rl returns", """
    import torch
    def improve(agent, opt, rollouts, log):
        for obs, act, ret in rollouts:
            logp, value = agent(obs.cuda(), act.cuda())
            adv = ret.cuda() - value
            loss = -(logp * adv.detach()).mean() + adv.pow(2).mean()
            opt.zero_grad()
            loss.backward()
            opt.step()
            log["kl"].append((logp.exp() * logp).mean().detach().cpu().numpy().item())  # <-
""")  # fmt: skip
fault("host-sync", "early exit classifier forward", """
    import torch
    from torch import nn
    class EarlyExit(nn.Module):
        def forward(self, x):
            for block, head in zip(self.blocks, self.heads):
                x = block(x)
                conf = head(x).softmax(-1).amax(-1)
                if torch.all(conf > self.limit):  # <-
                    return head(x)
            return self.final(x)
""")  # fmt: skip
fault("host-sync", "queue put per token", """
    import torch
    class Worker:
        def loop(self, model, req):
            ids = req.ids.cuda()
            cache = None
            while not req.done:
                logits, cache = model(ids, cache)
                ids = torch.multinomial(logits[:, -1].softmax(-1), 1)
                req.queue.put(ids.flatten().tolist())  # <-
                req.done = req.count()
""")  # fmt: skip
fault("host-sync", "dynamic loss weights", """
    import torch
    def train(model, opt, loader):
        weights = [1.0, 1.0]
        for batch in loader:
            a, b = model(batch["x"].cuda())
            loss = weights[0] * a + weights[1] * b
            loss.backward(); opt.step(); opt.zero_grad()
            total = (a + b).item()  # <-
            weights = [a.item() / total, b.item() / total]
""")  # fmt: skip
fault("recast", "value head", """
    import torch
    from torch import nn
    import torch.nn.functional as F
    class Critic(nn.Module):
        def __init__(self, d):
            super().__init__()
            self.score = nn.Linear(d, 1)
        def forward(self, h):
            f32 = torch.float32
            return F.linear(h.to(f32), self.score.weight.to(f32), self.score.bias.to(f32))  # <-
""")  # fmt: skip
fault("recast", "chunk free loss class", """
    import torch
    from torch import nn
    class LMLoss(nn.Module):
        def forward(self, logits, labels):
            logits = logits.to(dtype=torch.float32)  # <-
            lse = torch.logsumexp(logits, -1)
            picked = logits.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
            return (lse - picked).mean()
""")  # fmt: skip
fault("recast", "ema swap each step", """
    import torch
    def train(model, shadow, opt, loader):
        for b in loader:
            model(b).backward()
            opt.step(); opt.zero_grad()
            for s, p in zip(shadow, model.parameters()):
                s.mul_(0.999).add_(p.detach().to(torch.float32), alpha=0.001)  # <-
""")  # fmt: skip
fault("recast", "dequant free half model per request", """
    import torch
    @torch.inference_mode()
    def answer(model, ids, n):
        out = []
        for _ in range(n):
            logits = model.half()(ids)[:, -1]  # <-
            ids = logits.argmax(-1, keepdim=True)
            out.append(ids)
        return torch.cat(out, 1)
""")  # fmt: skip
fault("checkpoint", "rotate by rename", """
    import os, torch
    def save(state, run):
        last = os.path.join(run, "last.pt")
        if os.path.exists(last):
            os.rename(last, os.path.join(run, "previous.pt"))
        torch.save(state, last)  # <-
    class Loop:
        def on_interval(self):
            save({"model": self.model.state_dict(), "opt": self.opt.state_dict()}, self.run)
""")  # fmt: skip
fault("checkpoint", "gzip pickle", """
    import gzip, pickle
    def dump(agent, path):
        with gzip.open(path, "wb") as f:
            pickle.dump(agent.state_dict(), f)  # <-
""")  # fmt: skip
fault("checkpoint", "shard loop", """
    import torch
    from safetensors.torch import save_file
    def save_sharded(model, out, size):
        shard, n = {}, 0
        for k, v in model.state_dict().items():
            shard[k] = v.contiguous()
            if len(shard) == size:
                save_file(shard, f"{out}/part-{n}.safetensors")  # <-
                shard, n = {}, n + 1
        save_file(shard, f"{out}/part-{n}.safetensors")
""")  # fmt: skip
fault("checkpoint", "best model", """
    import torch
    def fit(model, opt, loader, val, path):
        best = 1e9
        for epoch in range(10):
            for b in loader:
                model(b).backward(); opt.step(); opt.zero_grad()
            v = val(model)
            if v < best:
                best = v
                torch.save(model.state_dict(), path)  # <-
""")  # fmt: skip
fault("checkpoint", "optimizer separately", """
    import torch
    class Store:
        def put(self, step, model, optimizer):
            d = self.root / f"{step}"
            d.mkdir()
            torch.save(model.state_dict(), d / "model.pt")  # <-
            torch.save(optimizer.state_dict(), d / "opt.pt")
            (self.root / "LATEST").write_text(str(step))
""")  # fmt: skip
fault("packing", "worst fit", """
    def worst_fit(items, cap):
        space, rows = [], []
        for it in items:
            k = max(range(len(space)), key=space.__getitem__, default=None)  # <-
            if k is None or space[k] < len(it):
                space.append(cap); rows.append([]); k = len(space) - 1
            space[k] -= len(it); rows[k].append(it)
        return rows
""")  # fmt: skip
fault("packing", "scan for the gap", """
    def fill_rows(samples, width):
        pending = sorted(samples, key=len)
        rows = []
        while pending:
            row = pending.pop()
            i = len(pending) - 1
            while i >= 0:  # <-
                if len(row) + len(pending[i]) <= width:
                    row = row + pending.pop(i)
                i -= 1
            rows.append(row)
        return rows
""")  # fmt: skip
fault("packing", "tensor growth class", """
    import torch
    class TokenBuffer:
        def __init__(self): self.ids = torch.empty(0, dtype=torch.long)
        def push(self, doc):
            self.ids = torch.cat((self.ids, torch.as_tensor(doc)))  # <-
    def read(docs):
        b = TokenBuffer()
        for d in docs:
            b.push(d)
        return b.ids
""")  # fmt: skip
fault("packing", "length table each time", """
    def assign(docs, cap):
        rows = []
        for d in docs:
            sizes = [sum(len(x) for x in r) for r in rows]  # <-
            fit = [i for i, s in enumerate(sizes) if s + len(d) <= cap]
            if fit:
                rows[fit[0]].append(d)
            else:
                rows.append([d])
        return rows
""")  # fmt: skip
fault("packing", "shift the ring", """
    class Stream:
        def __init__(self, src, n): self.src, self.n, self.buf = iter(src), n, []
        def __next__(self):
            while len(self.buf) < self.n:
                self.buf.extend(next(self.src))
            out = [self.buf.pop(0) for _ in range(self.n)]  # <-
            return out
""")  # fmt: skip
fault("device-string", "choose kernel", """
    import torch
    KERNELS = {"cuda": "flash", "cpu": "math"}
    class Attn(torch.nn.Module):
        def forward(self, q, k, v):
            kind = KERNELS.get(q.device, "math")  # <-
            return self.run(kind, q, k, v)
""")  # fmt: skip
fault("device-string", "dist backend", """
    import torch
    def init(local_rank):
        device = torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
        backend = "nccl" if device == "cuda" else "gloo"  # <-
        torch.distributed.init_process_group(backend)
        return device
""")  # fmt: skip
fault("accumulation", "divide by world", """
    import torch
    def train(model, opt, loader, accum_steps, world_size):
        for i, b in enumerate(loader):
            loss = model(b) / world_size
            loss.backward()  # <-
            if (i + 1) % accum_steps == 0:
                opt.step(); opt.zero_grad()
""")  # fmt: skip
fault("accumulation", "two levels", """
    import torch
    class T:
        def backward(self, loss):
            (loss / self.accum).backward()
        def micro(self, b):
            loss = self.model(b) / self.accum
            self.backward(loss)  # <-
        def run(self, it):
            for step in range(100):
                for _ in range(self.accum):
                    self.micro(next(it))
                self.opt.step(); self.opt.zero_grad()
""")  # fmt: skip
fault("accumulation", "amp each micro", """
    import torch
    def run(model, opt, scaler, it, n):
        for _ in range(1000):
            for _ in range(n):
                x, y = next(it)
                with torch.autocast("cuda", torch.float16):
                    loss = model(x, y) / n
                scaler.scale(loss).backward()
                scaler.step(opt)  # <-
                scaler.update()
            opt.zero_grad(set_to_none=True)
""")  # fmt: skip
fault("small-batch", "text config", """
    import tomllib
    from torch.utils.data import DataLoader
    C = tomllib.loads('''
    [train]
    rows = 2
    accumulate = 32
    ''')  # <-
    def train(model, opt, ds):
        t = C["train"]
        for i, b in enumerate(DataLoader(ds, t["rows"])):
            (model(b) / t["accumulate"]).backward()
            if (i + 1) % t["accumulate"] == 0:
                opt.step(); opt.zero_grad()
""")  # fmt: skip


@pytest.mark.parametrize("variant", [pytest.param(one, id=f"{one.kind}: {one.name}") for one in WAYS.variants])
def test_each_way_of_writing_a_fault_of_more_is_found_and_what_is_right_is_left_alone(variant: Variant):
    found = variant.found()
    assert bool(found) == variant.fault, found or f"nothing at {variant.place}"
