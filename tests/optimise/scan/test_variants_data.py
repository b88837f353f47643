"""Faults of data, devices and files in many spellings: over helpers, methods and files, and code that is right."""

import pytest
from tests.optimise.scan.test_variants_generation import GENERATION
from tests.optimise.scan.test_variants_training import TRAINING
from tests.optimise.scan.variants import Collection

from intone.optimise.scan.finding import CLASSES

DATA = Collection()
fault, right = DATA.fault, DATA.right

# --- host-sync --------------------------------------------------------------------------------------------------------
fault("host-sync", "a meter reads", """
    class Meter:
        def __init__(self):
            self.total, self.n = 0.0, 0
        def add(self, value):
            self.total += value.item()  # <-
            self.n += 1
    def train(model, opt, loader):
        meter = Meter()
        for batch in loader:
            loss = model(batch)
            loss.backward()
            opt.step()
            opt.zero_grad()
            meter.add(loss)
        return meter.total / meter.n
""")  # fmt: skip
fault("host-sync", "a trainer's method returns a number", """
    class Trainer:
        def step(self, x, y):
            loss = self.model(x, y)
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            return float(loss)  # <-
        def fit(self, loader):
            history = []
            for x, y in loader:
                history.append(self.step(x, y))
            return history
""")  # fmt: skip
fault("host-sync", "logged at every step by another file", """
    === report.py
    def report(writer, step, loss):
        writer.add_scalar("loss", loss, step)
    === train.py
    from report import report
    def train(model, opt, loader, writer):
        for step, batch in enumerate(loader):
            loss = model(batch)
            loss.backward()
            opt.step()
            opt.zero_grad()
            report(writer, step, loss)  # <-
""")  # fmt: skip
fault("host-sync", "an interval of one", """
    LOG_EVERY = 1
    def train(model, opt, loader):
        for step, batch in enumerate(loader):
            loss = model(batch)
            loss.backward()
            opt.step()
            opt.zero_grad()
            if step % LOG_EVERY == 0:
                print(step, loss.item())  # <-
""")  # fmt: skip
fault("host-sync", "a test on a tensor", """
    import torch
    def train(model, opt, loader, limit):
        for batch in loader:
            loss = model(batch)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            if norm > limit:  # <-
                opt.zero_grad()
                continue
            opt.step()
            opt.zero_grad()
""")  # fmt: skip
fault("host-sync", "tokens leave one by one", """
    import torch
    def pull(token):
        return token.cpu().tolist()  # <-
    def stream(model, ids, cache, n):
        for _ in range(n):
            logits = model(ids, cache=cache)
            ids = torch.multinomial(logits[:, -1].softmax(-1), 1)
            yield pull(ids)
""")  # fmt: skip
fault("host-sync", "a position is read inside the model, by a property", """
    import torch.nn as nn
    class Cache:
        @property
        def length(self):
            return int(self.used.max().item())  # <-
    class Block(nn.Module):
        def forward(self, x, cache):
            start = cache.length
            return self.mix(x, start)
""")  # fmt: skip
fault("host-sync", "each micro-batch is added up as a number", """
    def accumulate(model, parts, n):
        total = 0.0
        for part in parts:
            loss = model(part) / n
            loss.backward()
            total += loss.detach().cpu().item()  # <-
        return total
    def train(model, opt, loader, n):
        for batch in loader:
            accumulate(model, batch.chunk(n), n)
            opt.step()
            opt.zero_grad()
""")  # fmt: skip
fault("host-sync", "a text is made of the loss at every step", """
    def train(model, opt, bar):
        for batch in bar:
            loss = model(batch)
            loss.backward()
            opt.step()
            opt.zero_grad()
            bar.desc = f"loss {loss:.3f}"  # <-
""")  # fmt: skip
fault("host-sync", "a trainer that is made for a CPU by default", """
    === trainer.py
    class Trainer:
        def __init__(self, model, optim, device="cpu"):
            self.model, self.optim, self.device = model.to(device), optim, device
        def fit(self, loader):
            losses = []
            for x, y in loader:
                loss = self.model(x.to(self.device), y.to(self.device))
                loss.backward()
                self.optim.step()
                self.optim.zero_grad()
                losses.append(loss.item())  # <-
            return losses
    === main.py
    from trainer import Trainer
    def main(model, optim, loader):
        return Trainer(model, optim, device="cuda").fit(loader)
""")  # fmt: skip
right("host-sync", "read behind a counter in a helper", """
    def maybe_log(step, loss, every=100):
        if step % every:
            return
        print(step, loss.item())
    def train(model, opt, loader):
        for step, batch in enumerate(loader):
            loss = model(batch)
            loss.backward()
            opt.step()
            opt.zero_grad()
            maybe_log(step, loss)
""")  # fmt: skip
right("host-sync", "added up on the device", """
    def train(model, opt, loader):
        total = 0
        for batch in loader:
            loss = model(batch)
            loss.backward()
            opt.step()
            opt.zero_grad()
            total = total + loss.detach()
        return total.item()
""")  # fmt: skip
right("host-sync", "numbers of the host", """
    import math, time
    def train(model, opt, loader, lr):
        for step, batch in enumerate(loader):
            begin = time.perf_counter()
            rate = float(lr * math.cos(step))
            if rate < 1e-8:
                break
            model(batch).backward()
            opt.step()
            opt.zero_grad()
            print(step, time.perf_counter() - begin)
""")  # fmt: skip

# --- device-string ----------------------------------------------------------------------------------------------------
fault("device-string", "an attribute", """
    import torch
    class Loader:
        def __init__(self, name):
            self.device = torch.device(name)
        def pin(self):
            return self.device == "cuda"  # <-
""")  # fmt: skip
fault("device-string", "from a function of another file", """
    === devices.py
    import torch
    def best():
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    === train.py
    from devices import best
    device = best()
    use_amp = device == "cuda"  # <-
""")  # fmt: skip
fault("device-string", "handed over as an argument", """
    import torch
    def transfer(x, device):
        return x.pin_memory() if device != "cpu" else x  # <-
    def main(x):
        return transfer(x, torch.device("cuda:0"))
""")  # fmt: skip
fault("device-string", "membership", """
    import torch
    GPUS = ("cuda", "mps")
    def fast(model):
        place = next(model.parameters()).device
        return place in ("cuda", "mps")  # <-
""")  # fmt: skip
fault("device-string", "a dataclass field", """
    from dataclasses import dataclass
    import torch
    @dataclass
    class Place:
        device: torch.device
        def is_gpu(self):
            return self.device == "cuda"  # <-
""")  # fmt: skip
fault("device-string", "one of two results", """
    import torch
    def init():
        device = torch.device("cuda")
        return True, device
    ddp, device = init()
    if device == "cuda":  # <-
        torch.cuda.synchronize()
""")  # fmt: skip
right("device-string", "the type of a device", """
    import torch
    device = torch.device("cuda")
    if device.type == "cuda":
        torch.cuda.synchronize()
""")  # fmt: skip
right("device-string", "a flag that is text", """
    import argparse
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()
    if args.device == "cuda":
        print("GPU")
""")  # fmt: skip

# --- async-copy -------------------------------------------------------------------------------------------------------
fault("async-copy", "a loader whose pinning is switched off", """
    from torch.utils.data import DataLoader
    PIN = False
    def make(rows):
        return DataLoader(rows, batch_size=64, pin_memory=PIN)
    def train(rows, device):
        for x in make(rows):
            x = x.to(device, non_blocking=True)  # <-
""")  # fmt: skip
fault("async-copy", "pageable memory from a helper", """
    import torch
    def stack(rows):
        return torch.stack([torch.tensor(r) for r in rows])
    def batches(rows, device):
        for part in rows:
            yield stack(part).to(device, non_blocking=True)  # <-
""")  # fmt: skip
fault("async-copy", "one pinned buffer of the object", """
    import torch
    class Feeder:
        def __init__(self, rows, width, device):
            self.buffer = torch.empty(rows, width, dtype=torch.long, pin_memory=True)
            self.device = device
        def next(self, data):
            self.buffer.copy_(data)
            return self.buffer.to(self.device, non_blocking=True)  # <-
""")  # fmt: skip
fault("async-copy", "read before it is there, by the caller", """
    import torch
    def to_host(x):
        return x.to("cpu", non_blocking=True)  # <-
    def values(losses):
        host = to_host(losses)
        return host.numpy()
""")  # fmt: skip
fault("async-copy", "a stream that nothing waits for", """
    import torch
    class Prefetcher:
        def __init__(self, loader, device):
            self.it, self.device = iter(loader), device
            self.stream = torch.cuda.Stream()
        def preload(self):
            batch = next(self.it)
            with torch.cuda.stream(self.stream):
                self.next = batch.to(self.device, non_blocking=True)  # <-
        def get(self):
            batch = self.next
            self.preload()
            return batch
""")  # fmt: skip
fault("async-copy", "a pinned buffer that is filled by a helper", """
    import torch
    def fill(out, rows):
        for i, row in enumerate(rows):
            out[i, : len(row)] = row
    def stream(batches, device):
        host = torch.zeros(32, 512, dtype=torch.long).pin_memory()
        for rows in batches:
            fill(host, rows)
            yield host.to(device, non_blocking=True)  # <-
""")  # fmt: skip
fault("async-copy", "pinned after the copy", """
    def put(x, device):
        return x.to(device).pin_memory()  # <-
""")  # fmt: skip
right("async-copy", "pinned, and a new one for each batch", """
    import torch
    def stream(batches, device):
        for rows in batches:
            host = torch.stack(rows).pin_memory()
            yield host.to(device, non_blocking=True)
""")  # fmt: skip
right("async-copy", "the stream is waited for", """
    import torch
    class Prefetcher:
        def __init__(self, loader, device):
            self.it, self.device = iter(loader), device
            self.stream = torch.cuda.Stream()
        def preload(self):
            with torch.cuda.stream(self.stream):
                self.next = next(self.it).to(self.device, non_blocking=True)
        def get(self):
            torch.cuda.current_stream().wait_stream(self.stream)
            batch = self.next
            batch.record_stream(torch.cuda.current_stream())
            self.preload()
            return batch
""")  # fmt: skip
right("async-copy", "an event between copy and reading", """
    import torch
    def values(losses):
        host = losses.to("cpu", non_blocking=True)
        torch.cuda.current_stream().synchronize()
        return host.numpy()
""")  # fmt: skip

# --- checkpoint -------------------------------------------------------------------------------------------------------
fault("checkpoint", "a method", """
    import torch
    class Trainer:
        def state(self):
            return {"model": self.model.state_dict(), "opt": self.opt.state_dict(), "step": self.step}
        def save(self):
            torch.save(self.state(), self.folder / "last.pt")  # <-
""")  # fmt: skip
fault("checkpoint", "an opened file", """
    import pickle
    def keep(model, path):
        with open(path, "wb") as file:
            pickle.dump(model.state_dict(), file)  # <-
""")  # fmt: skip
fault("checkpoint", "safetensors", """
    from safetensors.torch import save_file
    def export(model, folder):
        save_file(model.state_dict(), f"{folder}/model.safetensors")  # <-
""")  # fmt: skip
fault("checkpoint", "best and last", """
    import torch
    def train(model, optimizer, loader, out):
        best = 1e9
        for step, batch in enumerate(loader):
            loss = model(batch)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if step % 1000 == 0:
                checkpoint = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                torch.save(checkpoint, out + "/ckpt.pt")  # <-
""")  # fmt: skip
fault("checkpoint", "under another name", """
    from torch import save as write
    def snapshot(model, path):
        weights = {name: value.cpu() for name, value in model.state_dict().items()}
        write(weights, path)  # <-
""")  # fmt: skip
fault("checkpoint", "each part in a file", """
    import torch
    def save_all(parts, folder):
        for name, part in parts.items():
            torch.save(part.state_dict(), f"{folder}/{name}.pt")  # <-
""")  # fmt: skip
right("checkpoint", "a temporary name first", """
    import os, torch
    def save(model, path):
        torch.save(model.state_dict(), path + ".tmp")
        os.replace(path + ".tmp", path)
""")  # fmt: skip
right("checkpoint", "into memory", """
    import io, torch
    def packed(model):
        buffer = io.BytesIO()
        torch.save(model.state_dict(), buffer)
        return buffer.getvalue()
""")  # fmt: skip

# --- pickle -----------------------------------------------------------------------------------------------------------
fault("pickle", "a tokenizer", """
    import pickle
    def load(path):
        with open(path, "rb") as file:
            return pickle.load(file)  # <-
""")  # fmt: skip
fault("pickle", "under another name", """
    from pickle import loads as unpack
    def read(blob):
        return unpack(blob)  # <-
""")  # fmt: skip
fault("pickle", "weights_only off", """
    import torch
    def load(path):
        return torch.load(path, map_location="cpu", weights_only=False)  # <-
""")  # fmt: skip
fault("pickle", "a setting that is off", """
    import torch
    SAFE = False
    def load(path):
        return torch.load(path, weights_only=SAFE)  # <-
""")  # fmt: skip
fault("pickle", "numpy objects", """
    import numpy as np
    rows = np.load("rows.npy", allow_pickle=True)  # <-
""")  # fmt: skip
fault("pickle", "joblib", """
    import joblib
    def vocabulary(path):
        return joblib.load(path)  # <-
""")  # fmt: skip
right("pickle", "weights only", """
    import torch
    def load(path):
        return torch.load(path, map_location="cpu", weights_only=True)
""")  # fmt: skip
right("pickle", "a copy in memory", """
    import pickle
    def clone(value):
        return pickle.loads(pickle.dumps(value))
""")  # fmt: skip

# --- packing ----------------------------------------------------------------------------------------------------------
fault("packing", "a helper looks for the best row", """
    def best_row(rows, doc, width):
        best, left = None, width + 1
        for row in rows:  # <-
            room = width - sum(len(d) for d in row)
            if len(doc) <= room < left:
                best, left = row, room
        return best
    def pack(docs, width):
        rows = []
        for doc in docs:
            row = best_row(rows, doc, width)
            if row is None:
                rows.append([doc])
            else:
                row.append(doc)
        return rows
""")  # fmt: skip
fault("packing", "the next fitting text by next()", """
    def pack(docs, width):
        waiting = list(docs)
        rows = []
        while waiting:
            row, room = [], width
            while True:
                fit = next((d for d in waiting if len(d) <= room), None)  # <-
                if fit is None:
                    break
                waiting.remove(fit)
                row.append(fit)
                room -= len(fit)
            rows.append(row)
            if not row:
                break
        return rows
""")  # fmt: skip
fault("packing", "max over all bins", """
    class Packer:
        def __init__(self, width):
            self.bins, self.width = [], width
        def place(self, doc):
            fitting = [b for b in self.bins if b.room >= len(doc)]  # <-
            target = min(fitting, key=lambda b: b.room, default=None)
            if target is None:
                self.bins.append(Bin(self.width, doc))
            else:
                target.add(doc)
        def run(self, docs):
            for doc in docs:
                self.place(doc)
""")  # fmt: skip
fault("packing", "a stream that is cut from its front", """
    class Stream:
        def __init__(self, docs):
            self.docs, self.tokens = docs, []
        def row(self, width):
            while len(self.tokens) < width:
                self.tokens.extend(next(self.docs))
            row = self.tokens[:width]
            self.tokens = self.tokens[width:]  # <-
            return row
    def rows(docs, width, n):
        stream = Stream(docs)
        for _ in range(n):
            yield stream.row(width)
""")  # fmt: skip
fault("packing", "concatenated document by document", """
    import torch
    class Corpus:
        def __init__(self):
            self.ids = torch.empty(0, dtype=torch.long)
        def add(self, doc):
            self.ids = torch.cat([self.ids, torch.tensor(doc)])  # <-
    def build(docs, tokenizer):
        corpus = Corpus()
        for doc in docs:
            corpus.add(tokenizer.encode(doc))
        return corpus.ids
""")  # fmt: skip
fault("packing", "membership in a list of placed texts", """
    def pack(docs, width):
        placed, rows = [], []
        for i in range(len(docs)):
            if i in placed:  # <-
                continue
            row, room = [docs[i]], width - len(docs[i])
            placed.append(i)
            for j in range(i + 1, len(docs)):
                if j not in placed and len(docs[j]) <= room:
                    row.append(docs[j])
                    room -= len(docs[j])
                    placed.append(j)
            rows.append(row)
        return rows
""")  # fmt: skip
fault("packing", "sorted again for every text", """
    def pack(docs, width):
        bins = []
        for doc in docs:
            bins.sort(key=lambda b: width - sum(map(len, b)))  # <-
            for b in bins:
                if sum(map(len, b)) + len(doc) <= width:
                    b.append(doc)
                    break
            else:
                bins.append([doc])
        return bins
""")  # fmt: skip
fault("packing", "the rest is made anew for every text", """
    def pack(docs, width):
        waiting, rows = list(docs), []
        while waiting:
            row, room = [], width
            for doc in sorted(waiting, key=len, reverse=True):
                if len(doc) <= room:
                    row.append(doc)
                    room -= len(doc)
                    waiting = [d for d in waiting if d is not doc]  # <-
            rows.append(row)
        return rows
""")  # fmt: skip
fault("packing", "offsets by sums from the beginning", """
    def offsets(docs):
        lengths = [len(doc) for doc in docs]
        starts = []
        for i in range(len(docs)):
            starts.append(sum(lengths[:i]))  # <-
        return starts
""")  # fmt: skip
right("packing", "sorted once, taken from the end", """
    def pack(docs, width):
        docs = sorted(docs, key=len)
        rows, row, room = [], [], width
        while docs:
            doc = docs.pop()
            if len(doc) > room:
                rows.append(row)
                row, room = [], width
            row.append(doc)
            room -= len(doc)
        return rows
""")  # fmt: skip
right("packing", "buckets by length", """
    from collections import defaultdict
    def pack(docs, width):
        buckets = defaultdict(list)
        for doc in docs:
            buckets[len(doc)].append(doc)
        for size in range(width, 0, -1):
            while buckets[size]:
                yield buckets[size].pop()
""")  # fmt: skip
right("packing", "pieces are joined once", """
    import torch
    def build(docs, tokenizer):
        pieces = []
        for doc in docs:
            pieces.append(torch.tensor(tokenizer.encode(doc)))
        return torch.cat(pieces)
""")  # fmt: skip
right("packing", "losses are averaged in a loop", """
    def train(model, opt, loader):
        losses = []
        for batch in loader:
            loss = model(batch)
            loss.backward()
            opt.step()
            losses.append(loss.detach())
            recent = sum(losses[-10:]) / 10
        return recent
""")  # fmt: skip

# --- data-order -------------------------------------------------------------------------------------------------------
fault("data-order", "the loader and the checkpoint in their own files", """
    === data.py
    from torch.utils.data import DataLoader
    def loader(rows):
        return DataLoader(rows, batch_size=32, shuffle=True)  # <-
    === checkpoint.py
    import torch
    def resume(path, model, optimizer):
        saved = torch.load(path, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        return saved["step"]
    === train.py
    from data import loader
    from checkpoint import resume
    def train(model, optimizer, rows, path):
        step = resume(path, model, optimizer)
        for batch in loader(rows):
            step += 1
""")  # fmt: skip
fault("data-order", "rows by chance in a method", """
    import numpy as np
    class Trainer:
        def batch(self):
            at = np.random.randint(0, len(self.data) - 512, 16)  # <-
            return [self.data[i:i + 512] for i in at]
        def restore(self, saved):
            self.model.load_state_dict(saved["model"])
            self.opt.load_state_dict(saved["opt"])
            self.step = saved["step"]
""")  # fmt: skip
fault("data-order", "shards in the order of the folder", """
    import os
    def shards(data_dir):
        names = os.listdir(data_dir)  # <-
        for name in names:
            yield open(os.path.join(data_dir, name)).read()
""")  # fmt: skip
fault("data-order", "a glob that is handed back", """
    from pathlib import Path
    def training_files(folder):
        return list(Path(folder).glob("*.parquet"))  # <-
""")  # fmt: skip
fault("data-order", "a salted split", """
    def is_validation(doc):
        return hash(doc["text"]) % 100 < 5  # <-
""")  # fmt: skip
fault("data-order", "a sampler whose epoch never moves", """
    from torch.utils.data import DataLoader
    from torch.utils.data.distributed import DistributedSampler
    def train(rows, epochs, fit):
        sampler = DistributedSampler(rows)  # <-
        loader = DataLoader(rows, sampler=sampler)
        for epoch in range(epochs):
            for batch in loader:
                fit(batch)
""")  # fmt: skip
right("data-order", "the sampler's state is restored", """
    import torch
    from torch.utils.data import DataLoader
    def resume(saved, optimizer, loader_state):
        optimizer.load_state_dict(saved["optimizer"])
        torch.set_rng_state(saved["rng_state"])
    def loader(rows):
        return DataLoader(rows, shuffle=True)
""")  # fmt: skip
right("data-order", "sorted files", """
    import os
    def shards(data_dir):
        return [os.path.join(data_dir, name) for name in sorted(os.listdir(data_dir)) if name.endswith(".bin")]
""")  # fmt: skip


@pytest.mark.parametrize("variant", DATA.variants, ids=lambda v: f"{v.kind}: {v.name}")
def test_variant_of_a_fault_is_found_and_a_near_miss_is_not(variant):
    assert bool(variant.found()) == variant.fault, variant.found()


def test_every_class_has_six_variants_and_two_near_misses():
    variants = [*GENERATION.variants, *TRAINING.variants, *DATA.variants]
    for kind in CLASSES:
        mine = [variant.fault for variant in variants if variant.kind == kind]
        assert mine.count(True) >= 6 and mine.count(False) >= 2, kind
