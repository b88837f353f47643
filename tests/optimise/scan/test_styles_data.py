"""Faults of data, devices and files as different people write them; every style is found, and nothing that is right."""

import pytest
from tests.optimise.scan.test_styles_generation import STYLES as GENERATION
from tests.optimise.scan.test_styles_training import STYLES as TRAINING
from tests.optimise.scan.variants import Collection

STYLES = Collection()
fault, right = STYLES.fault, STYLES.right

# --- device-string ----------------------------------------------------------------------------------------------------
fault("device-string", "a tuple of names under a constant", """
    import torch
    GPUS = ("cuda", "mps")
    def setup():
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if device in GPUS:  # <-
            torch.backends.cuda.matmul.allow_tf32 = True
        return device
""")  # fmt: skip
fault("device-string", "a table by device", """
    import torch
    DTYPES = {"cuda": torch.bfloat16, "cpu": torch.float32}
    class Runner:
        def __init__(self):
            self.device = torch.device("cuda")
            self.dtype = DTYPES.get(self.device, torch.float32)  # <-
""")  # fmt: skip
fault("device-string", "the accelerator's device", """
    def pin(accelerator, batch):
        if accelerator.device != "cpu":  # <-
            batch = batch.pin_memory()
        return batch
""")  # fmt: skip
fault("device-string", "the device of a module of Lightning", """
    import torch
    import lightning as L
    class Lit(L.LightningModule):
        def on_train_start(self):
            if self.device == "cuda":  # <-
                torch.cuda.reset_peak_memory_stats()
""")  # fmt: skip
fault("device-string", "the device of the first parameter", """
    import time, torch
    def timed(model, x):
        dev = next(model.parameters()).device
        if "cuda" == dev:  # <-
            torch.cuda.synchronize()
        return time.perf_counter()
""")  # fmt: skip
fault("device-string", "a match", """
    import torch
    def dtype_for(device: torch.device):
        match device:  # <-
            case "cuda":
                return torch.bfloat16
            case _:
                return torch.float32
""")  # fmt: skip
right("device-string", "a flag of the command line, then made a device", """
    import argparse, torch
    args = argparse.ArgumentParser().parse_args()
    if args.device == "cuda":
        torch.backends.cudnn.benchmark = True
    device = torch.device(args.device)
    print(device.type == "cuda", str(device) == "cuda")
""")  # fmt: skip

# --- async-copy -------------------------------------------------------------------------------------------------------
fault("async-copy", "each entry of a batch that nobody pinned", """
    import torch
    from torch.utils.data import DataLoader
    def batches(data, device):
        for batch in DataLoader(data, batch_size=8):
            yield {k: v.to(device, non_blocking=True) for k, v in batch.items()}  # <-
""")  # fmt: skip
fault("async-copy", "made on the device, then pinned", """
    import torch
    def make(rows, device):
        x = torch.tensor(rows).cuda()
        x = x.pin_memory()  # <-
        return x
""")  # fmt: skip
fault("async-copy", "device by keyword, read at once", """
    def fetch(logits):
        host = logits.to(device="cpu", non_blocking=True)
        best = host.argmax(-1)  # <-
        return best.tolist()
""")  # fmt: skip
fault("async-copy", "a numpy view of the one pinned buffer", """
    import numpy as np, torch
    def feed(rows, device):
        host = torch.empty(8, 128, dtype=torch.long).pin_memory()
        view = host.numpy()
        for row in rows:
            np.copyto(view, row)
            yield host.to(device, non_blocking=True)  # <-
""")  # fmt: skip
fault("async-copy", "a stream of one's own with nothing to wait for it", """
    import torch
    class Ahead:
        def __init__(self, loader):
            self.loader, self.side = iter(loader), torch.cuda.Stream()
        def next(self):
            x = next(self.loader)
            with torch.cuda.stream(self.side):
                x = x.cuda(non_blocking=True)  # <-
            return x
""")  # fmt: skip
fault("async-copy", "memory of the file mapped in", """
    import numpy as np, torch
    def get_batch(path, device):
        data = np.memmap(path, dtype=np.uint16, mode="r")
        x = torch.from_numpy(data[:128].astype(np.int64))
        return x.to(device, non_blocking=True)  # <-
""")  # fmt: skip
right("async-copy", "pinned here, copied there", """
    import torch
    def get_batch(rows, device):
        x = torch.tensor(rows).pin_memory()
        return x.to(device, non_blocking=True)
""")  # fmt: skip

# --- checkpoint -------------------------------------------------------------------------------------------------------
fault("checkpoint", "keywords", """
    import torch
    def keep(model, opt, path):
        torch.save(obj={"model": model.state_dict(), "opt": opt.state_dict()}, f=path)  # <-
""")  # fmt: skip
fault("checkpoint", "bytes written by pathlib", """
    import io, torch
    from pathlib import Path
    def keep(model, path):
        buffer = io.BytesIO()
        torch.save(model.state_dict(), buffer)
        Path(path).write_bytes(buffer.getvalue())  # <-
""")  # fmt: skip
fault("checkpoint", "numpy arrays of the weights", """
    import numpy as np
    def keep(model, path):
        np.savez(path, **{k: v.cpu().numpy() for k, v in model.state_dict().items()})  # <-
""")  # fmt: skip
fault("checkpoint", "joblib", """
    import joblib
    def keep_checkpoint(net, opt, path):
        joblib.dump({"net": net.state_dict(), "opt": opt.state_dict()}, path)  # <-
""")  # fmt: skip
fault("checkpoint", "a helper under an alias in a trainer", """
    from torch import save as dump
    class Trainer:
        def snapshot(self):
            dump(dict(model=self.model.state_dict(), step=self.step), self.folder / "last.pt")  # <-
""")  # fmt: skip
fault("checkpoint", "an accelerator saves over the last one", """
    def fit(accelerator, model, opt, loader):
        for step, batch in enumerate(loader):
            accelerator.backward(model(batch))
            opt.step()
            opt.zero_grad()
            if step % 100 == 0:
                accelerator.save({"model": model.state_dict(), "optimizer": opt.state_dict()}, "out/last.ckpt")  # <-
""")  # fmt: skip
right("checkpoint", "fabric, which moves a file into place by itself", """
    def keep(fabric, model, opt):
        fabric.save("out/last.ckpt", {"model": model, "optimizer": opt})
""")  # fmt: skip
right("checkpoint", "a template for the name, then moved", """
    import os, torch
    def keep(model, path):
        part = f"{path}.part"
        torch.save(model.state_dict(), part)
        os.replace(part, path)
""")  # fmt: skip

# --- pickle -----------------------------------------------------------------------------------------------------------
fault("pickle", "a table of readers", """
    import json, pickle
    READERS = {".json": json.load, ".pkl": pickle.load}  # <-
    def read(path):
        with open(path, "rb") as f:
            return READERS[path.suffix](f)
""")  # fmt: skip
fault("pickle", "under a name of one's own", """
    import pickle
    load = pickle.loads
    def receive(sock):
        return load(sock.recv(65536))  # <-
""")  # fmt: skip
fault("pickle", "code of a hub", """
    from transformers import AutoModelForCausalLM
    def get(name):
        return AutoModelForCausalLM.from_pretrained(name, trust_remote_code=True)  # <-
""")  # fmt: skip
fault("pickle", "a shelf", """
    import shelve
    def read(path):
        with shelve.open(path) as db:  # <-
            return dict(db)
""")  # fmt: skip
fault("pickle", "YAML with any loader", """
    import yaml
    def config(path):
        with open(path) as f:
            return yaml.load(f, Loader=yaml.UnsafeLoader)  # <-
""")  # fmt: skip
fault("pickle", "a partial of torch.load", """
    import functools, torch
    read = functools.partial(torch.load, map_location="cpu", weights_only=False)  # <-
""")  # fmt: skip
right("pickle", "pickle for dumping only", """
    import pickle
    def keep(stats, path):
        with open(path, "wb") as f:
            pickle.dump(stats, f)
""")  # fmt: skip

# --- packing ----------------------------------------------------------------------------------------------------------
fault("packing", "flags instead of taking out", """
    def pack(docs, width):
        used = [False] * len(docs)
        rows = []
        while not all(used):
            row, room = [], width
            for i, d in enumerate(docs):  # <-
                if not used[i] and len(d) <= room:
                    used[i] = True
                    row += d
                    room -= len(d)
            rows.append(row)
        return rows
""")  # fmt: skip
fault("packing", "deleted from an array of lengths", """
    import numpy as np
    def pack(lengths, width):
        rows = []
        order = np.argsort(lengths)
        lengths = lengths[order]
        while len(lengths):
            at = np.searchsorted(lengths, width, side="right") - 1
            rows.append(lengths[at])
            lengths = np.delete(lengths, at)  # <-
        return rows
""")  # fmt: skip
fault("packing", "row and rest in one assignment", """
    def rows_of(docs, width):
        stream = []
        for doc in docs:
            stream.extend(doc)
            while len(stream) >= width:
                row, stream = stream[:width], stream[width:]  # <-
                yield row
""")  # fmt: skip
fault("packing", "one long tensor that grows", """
    import torch
    def join(files):
        everything = torch.empty(0, dtype=torch.long)
        for f in files:
            everything = torch.cat((everything, torch.load(f, weights_only=True)))  # <-
        return everything
""")  # fmt: skip
fault("packing", "pairs of documents", """
    def best_pairs(docs, width):
        pairs, taken = [], set()
        for i in range(len(docs)):
            if i in taken:
                continue
            best = None
            for j in range(i + 1, len(docs)):  # <-
                if j not in taken and len(docs[i]) + len(docs[j]) <= width:
                    if best is None or len(docs[j]) > len(docs[best]):
                        best = j
            if best is not None:
                taken.add(best)
                pairs.append((i, best))
        return pairs
""")  # fmt: skip
fault("packing", "frames joined one by one", """
    import pandas as pd
    def gather(files):
        table = pd.DataFrame()
        for f in files:
            table = pd.concat([table, pd.read_parquet(f)])  # <-
        return table
""")  # fmt: skip
right("packing", "a carry between documents", """
    def rows_of(docs, width):
        carry = []
        for doc in docs:
            carry.extend(doc)
            full = len(carry) // width * width
            for at in range(0, full, width):
                yield carry[at:at + width]
            carry = carry[full:]
""")  # fmt: skip

# --- data-order -------------------------------------------------------------------------------------------------------
fault("data-order", "places by random.randrange", """
    import random, torch
    class Slices:
        def next(self):
            at = [random.randrange(len(self.ids) - self.width) for _ in range(self.rows)]  # <-
            return torch.stack([self.ids[i:i + self.width] for i in at])
    def main(slices, model, opt, path):
        old = torch.load(path, weights_only=True)
        model.load_state_dict(old["model"])
        opt.load_state_dict(old["opt"])
        for step in range(old["step"], 1000):
            loss = model(slices.next())
            loss.backward()
            opt.step()
            opt.zero_grad()
""")  # fmt: skip
fault("data-order", "only the weights and the step come back", """
    import torch
    from torch.utils.data import DataLoader
    def main(model, data, path):
        state = torch.load(path, weights_only=True)
        model.load_state_dict(state["model"])
        step = state["step"]
        loader = DataLoader(data, batch_size=8, shuffle=True)  # <-
        for x, y in loader:
            loss = model(x, y)
            loss.backward()
            step += 1
""")  # fmt: skip
fault("data-order", "shards read from the beginning after a resume", """
    import torch
    def batches(shards):
        for shard in shards:
            yield from torch.load(shard, weights_only=True)
    def main(model, opt, shards, path):
        state = torch.load(path, weights_only=True)
        model.load_state_dict(state["model"])
        opt.load_state_dict(state["opt"])
        step = state["step"]
        for batch in batches(shards):  # <-
            loss = model(batch)
            loss.backward()
            opt.step()
            opt.zero_grad()
            step += 1
""")  # fmt: skip
fault("data-order", "whichever worker is done first", """
    from multiprocessing import Pool
    def tokens(files, encode, out):
        with Pool() as pool:
            for ids in pool.imap_unordered(encode, files):  # <-
                out.write(ids.tobytes())
""")  # fmt: skip
fault("data-order", "a set of paths", """
    def shards(paths):
        for path in set(paths):  # <-
            with open(path) as f:
                yield from f
""")  # fmt: skip
fault("data-order", "a hash decides which rank reads it", """
    def mine(docs, rank, world):
        return [d for d in docs if hash(d["url"]) % world == rank]  # <-
""")  # fmt: skip
fault("data-order", "pathlib without an order", """
    from pathlib import Path
    class Reader:
        def __init__(self, folder):
            self.files = list(Path(folder).glob("*.bin"))  # <-
        def __iter__(self):
            for f in self.files:
                yield f.read_bytes()
""")  # fmt: skip
fault("data-order", "a stream of a library that is shuffled in a buffer", """
    import torch
    from datasets import load_dataset
    def rows():
        return load_dataset("text", streaming=True, split="train").shuffle(buffer_size=10_000, seed=1)  # <-
    def main(model, opt, path):
        state = torch.load(path, weights_only=True)
        model.load_state_dict(state["model"])
        opt.load_state_dict(state["opt"])
        for row in rows():
            model(row).backward()
            opt.step()
            opt.zero_grad()
""")  # fmt: skip
right("data-order", "the position is saved and skipped to", """
    import itertools, torch
    def main(model, opt, loader, path):
        state = torch.load(path, weights_only=True)
        model.load_state_dict(state["model"])
        opt.load_state_dict(state["opt"])
        for batch in itertools.islice(loader, state["step"], None):
            loss = model(batch)
            loss.backward()
            opt.step()
            opt.zero_grad()
""")  # fmt: skip
right("data-order", "the letters of a text", """
    def vocabulary(text):
        return {c: i for i, c in enumerate(sorted(set(text)))}
""")  # fmt: skip

ALL = [*TRAINING.variants, *GENERATION.variants, *STYLES.variants]


@pytest.mark.parametrize("variant", [pytest.param(one, id=f"{one.kind}: {one.name}") for one in ALL])
def test_a_fault_is_found_in_every_style_and_nothing_is_found_in_code_that_is_right(variant):
    found = variant.found()
    assert bool(found) == variant.fault, found or "missed"
