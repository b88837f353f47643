"""Faults and near misses of the rules about data: padding, packing, order, and going on after a resume."""

import pytest
from tests.optimise.scan.cases import COLLATE, Cases, check_fault, check_right

CASES = Cases()
fault, right = CASES.fault, CASES.right

# --- S23 -------------------------------------------------------------------------------------------------------------
fault("S23", COLLATE)
fault("S23", """
    from torch.nn.utils.rnn import pad_sequence
    def collate(rows):
        ids = pad_sequence([r["input_ids"] for r in rows], batch_first=True)
        labels = pad_sequence([r["labels"] for r in rows], batch_first=True, padding_value=-100)
        return {"input_ids": ids, "labels": labels}
""")  # fmt: skip
fault("S23", """
    def tokenize(rows, tokenizer):
        enc = tokenizer(rows["text"], padding="max_length", truncation=True, max_length=2048)
        enc["labels"] = [[t if t != 0 else -100 for t in row] for row in enc["input_ids"]]
        return enc
""")  # fmt: skip
fault("S23", """
    def collate(rows, pad, max_len):
        ids = [row + [pad] * (max_len - len(row)) for row in rows]
        targets = [row[1:] + [-1] * (max_len + 1 - len(row)) for row in rows]
        return ids, targets
""")  # fmt: skip
right("S23", """
    import torch
    def stack(prompts, pad):
        width = max(len(p) for p in prompts)
        out = torch.full((len(prompts), width), pad)
        return out
""")  # fmt: skip
right("S23", """
    def pack(conversations, capacity, bos):
        rows, targets = [], []
        for _ in range(8):
            row = []
            while len(row) < capacity:
                row.extend(conversations.pop())
                if not conversations:
                    row.extend([bos] * (capacity - len(row)))
                    targets.append(-1)
            rows.append(row)
        return rows
""")  # fmt: skip

# --- S70 -------------------------------------------------------------------------------------------------------------
fault("S70", """
    def pack(buffer, capacity):
        rows = []
        while buffer:
            room = capacity
            row = []
            while buffer:
                best = -1
                for i, doc in enumerate(buffer):
                    if len(doc) <= room:
                        best = i
                if best < 0:
                    break
                doc = buffer.pop(best)
                row += doc
                room -= len(doc)
            rows.append(row)
        return rows
""")  # fmt: skip
fault("S70", """
    def pack(docs, capacity):
        bins = []
        for doc in docs:
            for b in bins:
                if sum(map(len, b)) + len(doc) <= capacity:
                    b.append(doc)
                    break
            else:
                bins.append([doc])
        return bins
""")  # fmt: skip
fault("S70", """
    import torch
    def concat(docs):
        tokens = torch.empty(0)
        for doc in docs:
            tokens = torch.cat([tokens, doc])
        return tokens
""")  # fmt: skip
fault("S70", """
    def batches(docs):
        queue = list(docs)
        while queue:
            yield queue.pop(0)
""")  # fmt: skip
right("S70", """
    from collections import deque
    import torch
    def concat(docs):
        queue, parts = deque(docs), []
        while queue:
            parts.append(queue.popleft())
        return torch.cat(parts)
""")  # fmt: skip
right("S70", """
    def encode(texts, bos):
        out = []
        for row in texts:
            row.insert(0, bos)
            out.append(row)
        return out
""")  # fmt: skip

# --- S75 -------------------------------------------------------------------------------------------------------------
fault("S75", """
    import torch
    from torch.utils.data import DataLoader
    def main(model, optimizer, rows, resume):
        loader = DataLoader(rows, shuffle=True)
        start = 0
        if resume:
            state = torch.load(resume, weights_only=True)
            optimizer.load_state_dict(state["optimizer"])
            start = state["step"]
        return loader, start
""")  # fmt: skip
right("S75", """
    import torch
    from torch.utils.data import DataLoader
    def main(model, optimizer, rows, resume):
        loader = DataLoader(rows, shuffle=True)
        if resume:
            state = torch.load(resume, weights_only=True)
            optimizer.load_state_dict(state["optimizer"])
            torch.set_rng_state(state["rng"])
            iterator = iter(loader)
            for _ in range(state["step"]):
                next(iterator)
        return loader
""")  # fmt: skip

# --- S76 -------------------------------------------------------------------------------------------------------------
fault("S76", """
    import os
    def shards(data_dir):
        for name in os.listdir(data_dir):
            with open(os.path.join(data_dir, name)) as f:
                yield f.read()
""")  # fmt: skip
fault("S76", """
    from pathlib import Path
    class TokenData:
        def __init__(self, folder):
            self.shards = list(Path(folder).glob("*.bin"))
""")  # fmt: skip
fault("S76", """
    from pathlib import Path
    def sources(roots):
        found = set()
        for root in roots:
            for path in Path(root).rglob("*.jsonl"):
                found.add(str(path))
        return list(found)
""")  # fmt: skip
fault("S76", """
    def documents(paths):
        kept = set()
        for path in paths:
            kept.update(open(path).read().splitlines())
        for text in kept:
            yield text
""")  # fmt: skip
right("S76", """
    from pathlib import Path
    def sources(roots):
        found = set()
        for root in roots:
            for path in Path(root).rglob("*.jsonl"):
                found.add(str(path))
        return sorted(found)
""")  # fmt: skip
right("S76", """
    def fresh(lines):
        seen = set()
        for line in lines:
            if line not in seen:
                seen.add(line)
                yield line
""")  # fmt: skip
right("S76", """
    import glob
    def shards(data_dir):
        files = glob.glob(data_dir + "/*.parquet")
        files.sort()
        return files
""")  # fmt: skip
right("S76", "import os\ndef shards(data_dir):\n    return sorted(os.listdir(data_dir))\n")

# --- S77 -------------------------------------------------------------------------------------------------------------
fault("S77", "def is_val(doc):\n    return hash(doc) % 100 == 0\n")
fault("S77", "def rank_of(text, world):\n    return abs(hash(text)) % world\n")
right("S77", "import zlib\ndef is_val(doc):\n    return zlib.crc32(doc.encode()) % 100 == 0\n")

# --- S78 -------------------------------------------------------------------------------------------------------------
fault("S78", """
    from torch.utils.data import DataLoader, DistributedSampler
    def train(rows, epochs):
        loader = DataLoader(rows, sampler=DistributedSampler(rows))
        for epoch in range(epochs):
            for batch in loader:
                pass
""")  # fmt: skip
right("S78", """
    from torch.utils.data import DataLoader, DistributedSampler
    def train(rows, epochs):
        sampler = DistributedSampler(rows)
        loader = DataLoader(rows, sampler=sampler)
        for epoch in range(epochs):
            sampler.set_epoch(epoch)
            for batch in loader:
                pass
""")  # fmt: skip

# --- S79 -------------------------------------------------------------------------------------------------------------
fault("S79", """
    from concurrent.futures import ProcessPoolExecutor, as_completed
    def tokenise(files, encode):
        rows = []
        with ProcessPoolExecutor() as pool:
            for done in as_completed([pool.submit(encode, name) for name in files]):
                rows.extend(done.result())
        return rows
""")  # fmt: skip
right("S79", """
    from concurrent.futures import ProcessPoolExecutor, as_completed
    def tokenise(files, encode):
        rows = {}
        with ProcessPoolExecutor() as pool:
            jobs = {pool.submit(encode, name): name for name in files}
            for done in as_completed(jobs):
                rows[jobs[done]] = done.result()
        return [rows[name] for name in files]
""")  # fmt: skip

# --- S80 -------------------------------------------------------------------------------------------------------------
ORDERED = """
    import os, random
    class Stream:
        def __iter__(self):
            dice = random.Random(SEED)
            files = list(self.files)
            dice.shuffle(files)
            yield from files
"""
fault("S80", ORDERED.replace("SEED", "os.urandom(8)"))
right("S80", ORDERED.replace("SEED", "self.seed + self.epoch"))

# --- S71 -------------------------------------------------------------------------------------------------------------
fault("S71", """
    def flat(docs):
        return sum(docs, [])
""")  # fmt: skip
right("S71", """
    import itertools
    def flat(docs):
        return list(itertools.chain.from_iterable(docs)), sum(map(len, docs))
""")  # fmt: skip

# --- S81 -------------------------------------------------------------------------------------------------------------
WITHIN_EPOCH = """
    import torch
    def fit(model, opt, loader, path):
        state = torch.load(path, weights_only=True)
        opt.load_state_dict(state["opt"])
        for epoch in range(state["epoch"], 9):
            for batch in loader:
                model(batch).backward()
                opt.step()
                opt.zero_grad()
                IN
            AFTER
"""
SAVED = 'torch.save({"opt": opt.state_dict(), "epoch": epoch}, path)'
fault("S81", WITHIN_EPOCH.replace("IN", SAVED).replace("AFTER", "pass"))
right("S81", WITHIN_EPOCH.replace("IN", "pass").replace("AFTER", SAVED))

# --- S82 -------------------------------------------------------------------------------------------------------------
COUNTED = """
    class Rows:
        def __iter__(self):
            for number, row in enumerate(self.rows):
                TEST
                self.given += 1
                yield row
        def state_dict(self):
            return {"given": self.given}
        def load_state_dict(self, state):
            self.given = state["given"]
"""
fault("S82", COUNTED.replace("TEST", "pass"))
right("S82", COUNTED.replace("TEST", "if number < self.given: continue"))
# --- S83 --------------------------------------------------------------------------------------------------------------
fault("S83", """
    from torch.utils.data import DataLoader, IterableDataset
    class Lines(IterableDataset):
        def __iter__(self):
            yield from open(self.path)
    def batches(path):
        return DataLoader(Lines(path), num_workers=4)
""")  # fmt: skip
right("S83", """
    from torch.utils.data import DataLoader, IterableDataset, get_worker_info
    class Lines(IterableDataset):
        def __iter__(self):
            info = get_worker_info()
            for number, line in enumerate(open(self.path)):
                if number % info.num_workers == info.id:
                    yield line
    def batches(path):
        return DataLoader(Lines(path), num_workers=4)
""")  # fmt: skip

# --- S84 --------------------------------------------------------------------------------------------------------------
fault("S84", """
    from torch.utils.data import DataLoader
    def batches(rows):
        return DataLoader(rows, num_workers=4, in_order=False)
""")  # fmt: skip
fault("S84", """
    import multiprocessing as mp
    def read(path, q):
        for line in open(path):
            q.put(encode(line))
    def rows(paths):
        q = mp.Queue()
        for path in paths:
            mp.Process(target=read, args=(path, q)).start()
        while True:
            yield q.get()
""")  # fmt: skip
right("S84", """
    import multiprocessing as mp
    def read(index, path, q):
        q.put((index, encode(open(path).read())))
    def rows(paths):
        q = mp.Queue()
        for index, path in enumerate(paths):
            mp.Process(target=read, args=(index, path, q)).start()
        return [row for _, row in sorted(q.get() for _ in paths)]
""")  # fmt: skip

# --- S85 --------------------------------------------------------------------------------------------------------------
fault("S85", """
    import glob, os
    def shards(root):
        return sorted(glob.glob(root + "/*.bin"), key=os.path.getmtime)
""")  # fmt: skip
right("S85", """
    import glob, os
    def newest_checkpoint(root):
        return sorted(glob.glob(root + "/*.pt"), key=os.path.getmtime)[-1]
""")  # fmt: skip

# --- S86 --------------------------------------------------------------------------------------------------------------
fault("S86", """
    from torch.utils.data import random_split
    def parts(rows):
        return random_split(rows, [0.9, 0.1])
""")  # fmt: skip
right("S86", """
    import torch
    from torch.utils.data import random_split
    def parts(rows):
        return random_split(rows, [0.9, 0.1], generator=torch.Generator().manual_seed(0))
""")  # fmt: skip

# --- S87 --------------------------------------------------------------------------------------------------------------
fault("S87", """
    import random
    class Order:
        def __iter__(self):
            rows = list(range(self.num_rows))
            random.Random(self.seed).shuffle(rows)
            return iter(rows)
""")  # fmt: skip
right("S87", """
    import random
    class Order:
        def __iter__(self):
            rows = list(range(self.num_rows))
            random.Random(self.seed + self.epoch).shuffle(rows)
            self.epoch += 1
            return iter(rows)
""")  # fmt: skip

# --- S88 --------------------------------------------------------------------------------------------------------------
fault("S88", """
    import torch
    def save(path, model, opt, loader):
        torch.save({"model": model.state_dict(), "opt": opt.state_dict(), "loader": loader.state_dict()}, path)
    def load(path, model, opt, loader):
        kept = torch.load(path, weights_only=True)
        model.load_state_dict(kept["model"])
        opt.load_state_dict(kept["opt"])
""")  # fmt: skip
right("S88", """
    import torch
    def save(path, model, opt, loader):
        torch.save({"model": model.state_dict(), "opt": opt.state_dict(), "loader": loader.state_dict()}, path)
    def load(path, model, opt, loader):
        kept = torch.load(path, weights_only=True)
        model.load_state_dict(kept["model"])
        opt.load_state_dict(kept["opt"])
        loader.load_state_dict(kept["loader"])
""")  # fmt: skip

# --- S89 --------------------------------------------------------------------------------------------------------------
SAMPLER = """
    import random
    from torch.utils.data import Sampler
    class Buckets(Sampler):
        def __init__(self, groupsPARAMS):
            self.groups = groupsKEPT
        def __iter__(self):
            order = list(self.groups)
            SHUFFLE
            return iter(order)
"""
fault("S89", SAMPLER.replace("PARAMS", "").replace("KEPT", "").replace(
    "SHUFFLE", "random.shuffle(order)"))  # fmt: skip
right("S89", SAMPLER.replace("PARAMS", ", seed, epoch").replace(
    "KEPT", "; self.seed, self.epoch = seed, epoch").replace(
    "SHUFFLE", "random.Random(self.seed * 9973 + self.epoch).shuffle(order)"))  # fmt: skip

# --- S67 --------------------------------------------------------------------------------------------------------------
STREAM = """
    import gzip, json
    from torch.utils.data import IterableDataset
    class Lines(IterableDataset):
        def __init__(self, files, encode): self.files, self.encode = files, encodeFIELD
        def __iter__(self):
            for path in self.files:
                with gzip.open(path, "rt") as f:
                    for line in f:
                        yield self.encode(json.loads(line)["text"])
"""
fault("S67", STREAM.replace("FIELD", ""))
right("S67", STREAM.replace("FIELD", "; self.start_row = 0"))


@pytest.mark.parametrize(("rule", "code"), CASES.faults())
def test_a_planted_fault_is_found(rule, code):
    check_fault(rule, code)


@pytest.mark.parametrize(("rule", "code"), CASES.near_misses())
def test_code_that_looks_alike_and_is_right_is_left_alone(rule, code):
    check_right(rule, code)
