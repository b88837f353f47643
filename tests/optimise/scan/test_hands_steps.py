"""Faults of steps and batches as further hands wrote them, cut down to the way of writing, and right code beside."""

import pytest
from tests.optimise.scan.variants import Collection, Variant

HANDS = Collection()
fault, right = HANDS.fault, HANDS.right

# --- padding ----------------------------------------------------------------------------------------------------------
PAIRS = """
    import torch
    from torch.utils.data import DataLoader
    WIDTH, PAD = 256, 0
    def fill(rows):
        out = torch.full((len(rows), WIDTH), PAD)  # <-
        for i, ids in enumerate(rows):
            out[i, : len(ids)] = torch.tensor(ids)
        return out
    def join(pairs):
        src, tgt = zip(*pairs)
        return fill(src), fill(tgt)
    def make(rows, sampler):
        return DataLoader(rows, collate_fn=join, HOW)
"""
fault("padding", "a loader that draws its rows", PAIRS.replace("HOW", "batch_sampler=sampler"))
right("padding", "a loader that only reads on", PAIRS.replace("  # <-", "").replace("HOW", "batch_size=32"))
fault("padding", "rows of a data set", """
    import torch
    from torch.utils.data import Dataset
    class One:
        def __init__(self, width, pad): self.width, self.pad = width, pad
        def rows(self, docs):
            for ids in docs:
                gap = self.width - len(ids)
                yield torch.tensor(ids + [self.pad] * gap)  # <-
    class Rows(Dataset):
        def __init__(self, docs): self.items = list(One(512, 0).rows(docs))
        def __getitem__(self, i): return self.items[i]
""")  # fmt: skip
right("padding", "the rest of rows that were packed", """
    import numpy as np, torch
    import torch.nn.functional as F
    def write(rows, width, path):
        out = np.full((len(rows), width), 0)
        for i, row in enumerate(rows):
            out[i, : len(row)] = row
        np.save(path, out)
    def main(docs):
        packer = Packer(512)
        for doc in docs:
            packer.add(doc)
        write(packer.rows, 512, "rows.npy")
""")  # fmt: skip

# --- waiting for the device -------------------------------------------------------------------------------------------
fault("host-sync", "a number that keeps its name", """
    class Averages:
        def add(self, name, value):
            value = value.detach().cpu().item()  # <-
            self.values[name] = 0.9 * self.values.get(name, value) + 0.1 * value
    def train(model, opt, loader):
        kept = Averages()
        for x, y in loader:
            loss = model(x, y)
            loss.backward()
            opt.step(); opt.zero_grad()
            kept.add("loss", loss)
""")  # fmt: skip
fault("host-sync", "gathered and printed", """
    def train(model, opt, loader, acc):
        for batch in loader:
            loss = model(**batch).loss
            acc.backward(loss)
            opt.step(); opt.zero_grad()
            mean = acc.gather(loss.detach()).mean()
            acc.print(f"loss {mean:.3f}")  # <-
""")  # fmt: skip
fault("host-sync", "what a step computes itself", """
    class Trainer:
        def loss(self, batch):
            loss = self.model(batch)
            return loss, {"loss": loss.detach()}
        def step(self, batch):
            loss, stats = self.loss(batch)
            loss.backward()
            self.opt.step(); self.opt.zero_grad()
            self.history.append({k: v.item() for k, v in stats.items()})  # <-
    def main(loader):
        trainer = Trainer()
        for number, batch in enumerate(loader):
            trainer.step(batch)
            for _ in ():
                pass
            print(number)
""")  # fmt: skip
fault("host-sync", "a draw that is made a number", """
    import torch
    def pick(logits):
        return int(torch.multinomial(torch.softmax(logits, -1), 1))  # <-




    def write(model, ids, cache, n):
        for _ in range(n):
            token = pick(model(ids, cache)[0, -1])
            ids = torch.full((1, 1), token)
        return ids
""")  # fmt: skip

# --- copies -----------------------------------------------------------------------------------------------------------
FEED = """
    import torch
    class Feed:
        def __init__(self, rows, width):
            self.buf = torch.empty(rows, width, dtype=torch.int64, pin_memory=True)
            self.view = self.buf.numpy()
        def __call__(self, data, starts):
            WAIT
            for r, s in enumerate(starts):
                self.view[r] = data[s : s + 64]
            return self.buf.to("cuda", non_blocking=True)  # <-
"""
fault("async-copy", "a view that another method keeps", FEED.replace("WAIT", "pass"))
right("async-copy", "the last copy is waited for", FEED.replace("  # <-", "").replace(
    "WAIT", "self.done.synchronize()"))  # fmt: skip
HOST = """
    import torch
    class Host:
        def __init__(self): self.parts = []
        def push(self, t):
            host = torch.empty(t.shape, pin_memory=True)
            host.copy_(t, non_blocking=True)  # <-
            self.parts.append(host)
        def array(self):
            WAIT
            return torch.cat(self.parts).numpy()
"""
fault("async-copy", "collected and read", HOST.replace("WAIT", "pass"))
right("async-copy", "collected, waited for and read", HOST.replace("  # <-", "").replace(
    "WAIT", "torch.cuda.synchronize()"))  # fmt: skip
fault("async-copy", "a pinned copy thrown away", """
    class Batch:
        def pin(self):
            self.ids.pin_memory()  # <-
            return self
""")  # fmt: skip
fault("async-copy", "two comprehensions with one variable", """
    from torch.utils.data import DataLoader
    def step(model, batch):
        batch = {k: v.to("cuda", non_blocking=True) for k, v in batch.items()}  # <-
        stats = model(batch)
        return {k: v.mean() for k, v in stats.items()}
    def main(rows, model):
        for batch in DataLoader(rows, 8, num_workers=2):
            step(model, batch)
""")  # fmt: skip

# --- modes ------------------------------------------------------------------------------------------------------------
EARLY = """
    import torch
    class Runner:
        @torch.no_grad()
        def score(self, prompts, least):
            self.net.eval()
            FIRST
            for p in prompts:
                if self.run(p) < least:
                    return None  # <-
            LAST
            return 1.0
        def fit(self, loader):
            for x in loader:
                self.net(x).backward()
                self.opt.step(); self.opt.zero_grad()
"""
fault("eval-mode", "an early way out", EARLY.replace("FIRST", "pass").replace("LAST", "self.net.train()"))
MODES = """
    import contextlib, torch
    @contextlib.contextmanager
    def evaluating(*parts):
        modes = [m.training for m in parts]
        try:
            for m in parts:
                m.eval()
            with torch.no_grad():
                yield
        finally:
            for m, mode in zip(parts, modes):
                m.train(mode)
    def validate(net, loader):
        with evaluating(net):
            return [net(x).mean() for x in loader]
    def fit(net, opt, loader, test):
        for step, x in enumerate(loader):
            net(x).backward()
            opt.step(); opt.zero_grad()
            if step % 100 == 0:
                validate(net, test)
"""
right("eval-mode", "modes put back by a block", MODES)
TEACH = """
    import torch
    def distil(student, teacher, x, y):
        s = student(x)
        t = TEACHER  # <-
        return (s - t).square().mean()
    def main(student, teacher, loader):
        print(next(teacher.parameters()).device)
        opt = torch.optim.AdamW(student.parameters())
        step = torch.compile(distil)
        for x, y in loader:
            step(student, teacher, x, y).backward()
            opt.step(); opt.zero_grad()
"""
fault("eval-mode", "a teacher that is only asked for its device", TEACH.replace("TEACHER", "teacher(x)"))
right("eval-mode", "a teacher without a graph", TEACH.replace("  # <-", "").replace("TEACHER", "teacher(x).detach()"))

# --- compiling --------------------------------------------------------------------------------------------------------
ROWS = """
    import torch
    def join(rows):
        width = max(len(a) for a, b in rows)
        ids, labels = torch.full((len(rows), width), 0), torch.full((len(rows), width), -100)
        for r, (a, b) in enumerate(rows):
            ids[r, : len(a)] = torch.tensor(a)
            labels[r, : len(b)] = torch.tensor(b)
        return ids, labels
"""
fault("compile", "a base under another name", ROWS + """
    def main(loader):
        base = AutoModelForCausalLM.from_pretrained("gpt2").cuda()
        model = torch.compile(base, mode="reduce-overhead")  # <-
        opt = torch.optim.AdamW(base.parameters())
        for ids, labels in loader:
            model(ids, labels=labels).loss.backward()
            opt.step(); opt.zero_grad()
""")  # fmt: skip
fault("compile", "a part compiled in place", ROWS + """
    import lightning as L
    class Net(L.LightningModule):
        def configure_model(self):
            self.trunk.compile(dynamic=False)  # <-
        def training_step(self, batch, _):
            ids, labels = batch
            return torch.nn.functional.cross_entropy(self(ids), labels)
""")  # fmt: skip
PROMPT = """
    import torch
    class Engine:
        def __init__(self, path, tok):
            self.tok, self.model = tok, load_model(path).eval()
            self.prefill = torch.compile(self.model.forward, HOW)  # <-
        @torch.inference_mode()
        def answer(self, text):
            ids = torch.tensor([self.tok.encode(text)], device="cuda")
            return self.prefill(ids)[:, -1].argmax(-1)
"""
fault("compile", "prompts of any length", PROMPT.replace("HOW", "dynamic=False"))
right("compile", "prompts of any length, as told", PROMPT.replace("  # <-", "").replace("HOW", "dynamic=True"))
CACHED = """
    import torch
    class Cache:
        def __init__(self, most):
            self.k, self.at = torch.zeros(1, 8, most, 64), 0
        def add(self, k):
            end = self.at + k.size(2)
            if end > self.k.size(2):
                raise ValueError("full")
            self.k[:, :, self.at : end] = k
            self.at = end
            return RETURNED
    class Writer:
        def __init__(self, model):
            self.model = model.eval()
            self.step = torch.compile(model, mode="reduce-overhead")  # <-
        @torch.inference_mode()
        def write(self, ids, n):
            caches = [Cache(512) for _ in range(4)]
            for _ in range(n):
                ids = self.step(ids, caches)[:, -1].argmax(-1, keepdim=True)
            return ids
"""
fault("compile", "longer keys at every token", CACHED.replace("RETURNED", "self.k[:, :, :end]"))
right("compile", "all keys at every token", CACHED.replace("  # <-", "").replace("RETURNED", "self.k"))
fault("compile", "reset at every epoch", """
    import torch
    def train(net, opt, loader):
        model = torch.compile(net)
        for epoch in range(9):
            for x, y in loader:
                model(x, y).backward()
                opt.step(); opt.zero_grad()
            torch._dynamo.reset()  # <-
""")  # fmt: skip
right("compile", "compiled by accelerate", """
    from accelerate import Accelerator
    def train(model, opt, loader):
        acc = Accelerator(dynamo_backend="inductor")
        model, opt, loader = acc.prepare(model, opt, loader)
        for batch in loader:
            acc.backward(model(**batch).loss)
            opt.step(); opt.zero_grad()
""")  # fmt: skip

# --- accumulation -----------------------------------------------------------------------------------------------------
SUMMED = """
    import torch.nn.functional as F
    def compare(s, t, tau, alpha):
        soft = F.kl_div(F.log_softmax(s / tau, -1), F.softmax(t / tau, -1)) * tau * tau
        return alpha * soft + 0.1 * s.mean()
    def train(net, teacher, opt, loader, n):
        for i, x in enumerate(loader):
            loss = compare(net(x), teacher(x).detach(), 2.0, 0.5)
            SCALED.backward()  # <-
            if (i + 1) % n == 0:
                opt.step(); opt.zero_grad()
"""
fault("accumulation", "weighed, not divided", SUMMED.replace("SCALED", "loss"))
right("accumulation", "weighed and divided", SUMMED.replace("  # <-", "").replace("SCALED", "(loss / n)"))
GROUPS = """
    def train(net, opt, stream, cfg):
        for step in range(500):
            opt.zero_grad()
            for problem in stream.take(cfg.groups):
                loss = net(problem) / cfg.groups
                loss.backward()
            STEP
"""
fault("accumulation", "a step after each group", GROUPS.replace("STEP", "    opt.step()  # <-"))
right("accumulation", "a step after all groups", GROUPS.replace("STEP", "opt.step()"))
right("accumulation", "a library that steps seldom", """
    def train(model, opt, loader, accelerator, n):
        for batch in loader:
            with accelerator.accumulate(model):
                loss = model(**batch).loss
                accelerator.backward(loss)
                opt.step(); opt.zero_grad()
""")  # fmt: skip

# --- small batches and model text -------------------------------------------------------------------------------------
MICRO = """
    class Config:
        REMARK
        micro_batch: int = 1  # <-
        accum: int = 64
    def train(cfg, net, opt, rows):
        for step in range(100):
            for m in range(cfg.accum):
                (net(rows.take(cfg.micro_batch)) / cfg.accum).backward()
            opt.step(); opt.zero_grad()
"""
fault("small-batch", "one row", MICRO.replace("REMARK", "# rows at once"))
right("small-batch", "one long row", MICRO.replace("  # <-", "").replace(
    "REMARK", "# a row has 131072 tokens, there is no room for a second one"))  # fmt: skip
fault("eval-output", "a named function for re.sub", """
    import re
    SUM = re.compile(r"<<(.+?)=.*?>>")
    def answer(model, tok, prompt):
        text = tok.decode(model.generate(prompt)[0])
        def work_out(m):
            return str(eval(m.group(1)))  # <-
        return SUM.sub(work_out, text)
""")  # fmt: skip

# --- casts, packing, settings -----------------------------------------------------------------------------------------
fault("recast", "logits of an output", """
    import torch.nn.functional as F
    def loss_of(model, batch):
        out = model(input_ids=batch["ids"])
        logits = out.logits.float()  # <-
        return F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())
""")  # fmt: skip
fault("recast", "masters made anew at each step", """
    import torch
    class MixedAdam:
        def __init__(self, params): self.params = list(params)
        @torch.no_grad()
        def step(self):
            for p in self.params:
                master = p.data.float()  # <-
                master.sub_(p.grad.float())
                p.data.copy_(master)
""")  # fmt: skip
PUBLISH = """
    import torch
    class Masters:
        def __init__(self, params):
            self.work = list(params)
            self.full = [p.detach().float() for p in self.work]
            self.opt = torch.optim.AdamW(self.full)
        def publish(self):
            for w, m in zip(self.work, self.full):
                w.copy_(m)
    def train(net, masters, rows, n):
        for step in range(1000):
            for m in range(n):
                IN
                (net(next(rows)) / n).backward()
            masters.opt.step()
            OUT
"""
fault("recast", "masters copied for each micro-batch", PUBLISH.replace("IN", "masters.publish()  # <-").replace(
    "OUT", "net.zero_grad()"))  # fmt: skip
right("recast", "masters copied once a step", PUBLISH.replace("IN", "pass").replace(
    "OUT", "masters.publish(); net.zero_grad()"))  # fmt: skip
fault("packing", "the front of a list that never grows", """
    def rows(docs, n):
        queue = [t for d in docs for t in d]
        out = []
        while len(queue) >= n:
            out.append([queue.pop(0) for _ in range(n)])  # <-
        return out
""")  # fmt: skip
fault("compile", "only the loss", """
    import torch
    def train(model, loss_fn, opt, loader):
        loss_fn = torch.compile(loss_fn)
        for x, y in loader:  # <-
            loss_fn(model(x), y).backward()
            opt.step(); opt.zero_grad()
""")  # fmt: skip
fault("compile", "a lambda at every epoch", """
    import torch
    def fit(model, opt, loader):
        for epoch in range(9):
            step = torch.compile(lambda b: model(**b).loss)  # <-
            for b in loader:
                step(b).backward()
                opt.step(); opt.zero_grad()
""")  # fmt: skip
fault("async-copy", "pinned buffers in a dict", """
    import torch
    class Feeder:
        def __init__(self, b, t):
            self.host = {k: torch.empty(b, t, dtype=torch.long).pin_memory() for k in ("x", "y")}
        def load(self, rows):
            for k, v in rows.items():
                self.host[k].copy_(v)
            return {k: v.to("cuda", non_blocking=True) for k, v in self.host.items()}  # <-
""")  # fmt: skip
fault("host-sync", "a property that reads", """
    class Stats:
        def __init__(self): self.total, self.n = 0, 0
        def add(self, x): self.total = self.total + x.detach(); self.n += 1
        @property
        def mean(self): return (self.total / self.n).item()
    def train(model, opt, loader, bar):
        stats = Stats()
        for b in loader:
            loss = model(b)
            loss.backward(); opt.step(); opt.zero_grad()
            stats.add(loss)
            bar.set_description(f"{stats.mean:.3f}")  # <-
""")  # fmt: skip
fault("compile", "prompts into a step of a pair", """
    import torch
    class Gen:
        def __init__(self, model, tok):
            self.tok, self.step = tok, torch.compile(model, mode="max-autotune")  # <-
        def answers(self, prompts):
            for p in prompts:
                ids = self.tok(p, return_tensors="pt")["input_ids"].cuda()
                yield self.step(ids).logits[:, -1].argmax(-1)
""")  # fmt: skip


@pytest.mark.parametrize("variant", [pytest.param(one, id=f"{one.kind}: {one.name}") for one in HANDS.variants])
def test_what_further_hands_wrote_of_steps_is_found_and_what_is_right_is_left_alone(variant: Variant):
    found = variant.found()
    assert bool(found) == variant.fault, found
