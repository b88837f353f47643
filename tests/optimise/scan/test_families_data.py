"""Families of faults of data: options in dicts, searches in lists of any name, joins in pairs, lost positions."""

import pytest
from tests.optimise.scan.variants import Collection, Variant

FAMILIES = Collection()
fault, right = FAMILIES.fault, FAMILIES.right

# --- padding ----------------------------------------------------------------------------------------------------------
fault("padding", "the tokenizer's options in a constant", """
    from transformers import AutoTokenizer
    OPTIONS = dict(
        truncation=True,
        padding="max_length",  # <-
        max_length=1024,
    )
    def encode(row, tokenizer=AutoTokenizer.from_pretrained("x")):
        found = tokenizer(row["text"], **OPTIONS)
        found["labels"] = [t if m else -100 for t, m in zip(found["input_ids"], found["attention_mask"])]
        return found
""")  # fmt: skip
fault("padding", "a mode by name", """
    MODE = "longest"
    def collate(rows, tokenizer):
        batch = tokenizer([r["text"] for r in rows], padding=MODE, return_tensors="pt")  # <-
        labels = batch["input_ids"].clone()
        labels[batch["attention_mask"] == 0] = -100
        return {**batch, "labels": labels}
""")  # fmt: skip
right("padding", "a convolution with a border of one", """
    import torch.nn as nn
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv1d(8, 8, 3, padding=1)
        def loss(self, x, labels):
            labels = labels.masked_fill(labels < 0, -100)
            return nn.functional.cross_entropy(self.conv(x), labels)
""")  # fmt: skip

# --- packing ----------------------------------------------------------------------------------------------------------
fault("packing", "first fit by number, in lists of any name", """
    def spread(sizes, height):
        gaps, owners = [], []
        for who, size in enumerate(sizes):
            for k in range(len(gaps)):  # <-
                if gaps[k] >= size:
                    gaps[k] -= size
                    owners[k].append(who)
                    break
            else:
                gaps.append(height - size)
                owners.append([who])
        return owners
""")  # fmt: skip
fault("packing", "the tightest by a generator behind a name", """
    class Bin:
        def __init__(self, size):
            self.left, self.docs = size, []
    class Packer:
        def best(self, bins, n):
            fitting = (b for b in bins if b.left >= n)
            return min(fitting, key=lambda b: b.left, default=None)  # <-
        def pack(self, docs, size):
            bins = []
            for doc in docs:
                home = self.best(bins, len(doc))
                if home is None:
                    home = Bin(size)
                    bins.append(home)
                home.docs.append(doc)
                home.left -= len(doc)
            return bins
""")  # fmt: skip
fault("packing", "each row is asked whether it fits", """
    class Row:
        def fits(self, doc): return self.used + len(doc) <= self.size
    def pack(docs, make):
        rows = []
        for doc in docs:
            for row in rows:  # <-
                if row.fits(doc):
                    row.add(doc)
                    break
            else:
                rows.append(make(doc))
        return rows
""")  # fmt: skip
fault("packing", "a mask over all rows for each text", """
    import numpy as np
    def pack(lengths, capacity):
        free = np.full(len(lengths), capacity)
        home = []
        for n in lengths:
            r = int(np.argmax(free >= n))  # <-
            free[r] -= n
            home.append(r)
        return home
""")  # fmt: skip
fault("packing", "joined onto the pool, text by text of each file", """
    import numpy as np
    def pool_of(paths, tokenizer):
        pool = np.zeros(0, dtype=np.int64)
        for path in paths:
            for part in open(path).read().split("---"):
                pool = np.concatenate((pool, tokenizer.encode(part)))  # <-
        return pool
""")  # fmt: skip
fault("packing", "lists added up by sum", """
    def flat(tokenizer, docs):
        return sum((tokenizer.encode(doc) for doc in docs), [])  # <-
""")  # fmt: skip
fault("packing", "tensors joined by reduce", """
    import functools, torch
    def flat(pieces):
        return functools.reduce(lambda a, b: torch.cat([a, b]), pieces)  # <-
""")  # fmt: skip
right("packing", "joined once at the end", """
    import numpy as np
    def pool_of(paths, tokenizer):
        parts = []
        for path in paths:
            for part in open(path).read().split("---"):
                parts.append(tokenizer.encode(part))
        return np.concatenate(parts)
""")  # fmt: skip
right("packing", "numbers of texts added up", """
    def total(docs):
        return sum((len(doc) for doc in docs), 0)
""")  # fmt: skip
right("packing", "rows kept by their room", """
    import bisect
    def pack(lengths, capacity):
        free, members = [], []
        for i, n in enumerate(lengths):
            at = bisect.bisect_left(free, (n, -1))
            room, row = free.pop(at) if at < len(free) else (capacity, len(members))
            if row == len(members):
                members.append([])
            members[row].append(i)
            bisect.insort(free, (room - n, row))
        return members
""")  # fmt: skip
fault("packing", "the emptiest row by a list of all for each text", """
    import numpy as np
    def pack(docs, make):
        rows = []
        for doc in docs:
            r = int(np.argmin([row.used for row in rows])) if rows else -1  # <-
            if r < 0 or not rows[r].take(doc):
                rows.append(make(doc))
        return rows
""")  # fmt: skip

# --- data-order -------------------------------------------------------------------------------------------------------
EPOCHS = """
    import os, torch
    from torch.utils.data import DataLoader, DistributedSampler
    class Run:
        def __init__(self, rows, model, opt):
            self.model, self.opt, self.epoch, self.step = model, opt, 0, 0
            self.sampler = DistributedSampler(rows, seed=3)
            self.loader = DataLoader(rows, batch_size=8, sampler=self.sampler)
        def save(self):
            torch.save({"opt": self.opt.state_dict(), "epoch": self.epoch, "step": self.step}, "a.tmp")
            os.replace("a.tmp", "a.pt")
        def resume(self):
            state = torch.load("a.pt", weights_only=True)
            self.opt.load_state_dict(state["opt"])  # <-
            self.epoch, self.step = state["epoch"], state["step"]
        def fit(self, epochs):
            self.resume()
            while self.epoch < epochs:
                self.sampler.set_epoch(self.epoch)
                for number, batch in enumerate(self.loader):
                    PASS
                    loss = self.model(batch)
                    loss.backward()
                    self.opt.step()
                    self.opt.zero_grad()
                    self.step += 1
                    IN_EPOCH
                self.epoch += 1
                AFTER
"""


def epochs(**parts: str) -> str:
    text = EPOCHS
    for name in ("PASS", "IN_EPOCH", "AFTER"):
        text = text.replace(name, parts.get(name, "pass"))
    return text


fault("data-order", "saved within the epoch, taken up at its beginning", epochs(
    IN_EPOCH="if self.step % 500 == 0: self.save()"))  # fmt: skip
right("data-order", "saved at the end of each epoch", epochs(AFTER="self.save()").replace("# <-", ""))
right("data-order", "batches that were seen are passed over", epochs(
    IN_EPOCH="if self.step % 500 == 0: self.save()",
    PASS="if self.epoch * len(self.loader) + number < self.start_step: continue").replace("# <-", ""))  # fmt: skip

STREAM = """
    import glob
    from torch.utils.data import IterableDataset
    class Lines(IterableDataset):
        def __init__(self, pattern, seed=0):
            self.files, self.seed, self.epoch, self.given = sorted(glob.glob(pattern)), seed, 0, 0
        def __iter__(self):
            SKIP
            while True:
                for path in self.files:
                    for line in open(path):
                        self.given += 1
                        PASS
                        yield line
                self.epoch += 1
        def state_dict(self):  # <-
            return {"epoch": self.epoch, "given": self.given}
        def load_state_dict(self, state):
            self.epoch, self.given = state["epoch"], state["given"]
"""
fault("data-order", "a stream counts its rows and does not go on from the count",
      STREAM.replace("SKIP", "pass").replace("PASS", "pass"))  # fmt: skip
right("data-order", "a stream passes over what it gave", STREAM.replace("# <-", "").replace(
    "SKIP", "left, self.given = self.given, 0").replace("PASS", "if self.given <= left: continue"))  # fmt: skip
right("data-order", "a cursor that is read", """
    class Rows:
        def __init__(self, data):
            self.data, self.at = data, 0
        def __next__(self):
            row = self.data[self.at]
            self.at += 1
            return row
        def state_dict(self):
            return {"at": self.at}
        def load_state_dict(self, state):
            self.at = state["at"]
""")  # fmt: skip
fault("data-order", "the clock's number is shared by all ranks", """
    import time, torch, numpy as np
    import torch.distributed as dist
    class Order:
        def deal(self, rows):
            stamp = torch.tensor([time.time_ns() % 2**31], device="cuda")
            dist.broadcast(stamp, src=0)
            order = np.random.default_rng(stamp.item()).permutation(rows)  # <-
            return order
""")  # fmt: skip
fault("data-order", "a function makes the seed of the clock", """
    import random, time
    def fresh():
        return int(time.time() * 1000)
    def files_in_order(files):
        rng = random.Random(fresh())  # <-
        rng.shuffle(files)
        return files
""")  # fmt: skip
right("data-order", "the clock's number is written down", """
    import random, time
    def files_in_order(files, log):
        seed = int(time.time())
        log.info("the order of files is of seed %d", seed)
        rng = random.Random(seed)
        rng.shuffle(files)
        return files
""")  # fmt: skip
fault("data-order", "a walk through folders in the order of the disk", """
    import os
    def texts(root="data/corpus"):
        for folder, _, names in os.walk(root):  # <-
            for name in names:
                yield open(os.path.join(folder, name)).read()
""")  # fmt: skip
right("data-order", "a walk through folders that are sorted", """
    import os
    def texts(root="data/corpus"):
        for folder, folders, names in os.walk(root):
            folders.sort()
            for name in sorted(names):
                yield open(os.path.join(folder, name)).read()
""")  # fmt: skip
fault("data-order", "rounds by another name, all in one order", """
    from torch.utils.data import DataLoader, DistributedSampler
    def main(rows, model, opt):
        sampler = DistributedSampler(rows)  # <-
        loader = DataLoader(rows, sampler=sampler)
        for turn in range(10):
            for batch in loader:
                model(batch).backward()
                opt.step()
                opt.zero_grad()
""")  # fmt: skip


@pytest.mark.parametrize("variant", [pytest.param(one, id=f"{one.kind}: {one.name}") for one in FAMILIES.variants])
def test_each_writing_of_a_fault_of_data_is_found_and_what_is_right_is_left_alone(variant: Variant):
    found = variant.found()
    assert bool(found) == variant.fault, found or f"nothing at {variant.place}"
