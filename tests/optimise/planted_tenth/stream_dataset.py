"""Endless stream of packed rows out of jsonl.zst shards."""
import io
import json
import random
from pathlib import Path

import torch
import torch.distributed as dist
import zstandard
from torch.utils.data import IterableDataset, get_worker_info


def rank_and_world():
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def read_shard(path):
    with open(path, "rb") as fh:
        stream = zstandard.ZstdDecompressor().stream_reader(fh)
        for line in io.TextIOWrapper(stream, encoding="utf-8"):
            yield json.loads(line)["text"]


class RowMaker:
    """Cuts a queue of token lists into rows of exactly `size` tokens."""

    def __init__(self, size, eos):
        self.size = size
        self.eos = eos
        self.queue = []
        self.partial = []

    def feed(self, documents):
        self.queue.extend(documents)

    def rows(self):
        while self.queue:
            doc = self.queue.pop(0)
            self.partial.extend(doc)
            self.partial.append(self.eos)
            start = 0
            while len(self.partial) - start >= self.size:
                yield self.partial[start : start + self.size]
                start += self.size
            if start:
                self.partial = self.partial[start:]


class ShardStream(IterableDataset):
    """Stateful: a trainer stores state_dict() in its checkpoints and gives it back on restart.

    Shards hold some 400k documents each; an epoch over all of them takes about nine days.
    """

    def __init__(self, root, tokenizer, size=4096, seed=0):
        super().__init__()
        self.shards = sorted(Path(root).glob("*.jsonl.zst"))
        if not self.shards:
            raise FileNotFoundError(root)
        self.tokenizer = tokenizer
        self.size = size
        self.seed = seed
        self.epoch = 0
        self.shard_no = 0

    def state_dict(self):
        return {"epoch": self.epoch, "seed": self.seed}

    def load_state_dict(self, state):
        self.epoch = state["epoch"]
        self.seed = state["seed"]

    def epoch_shards(self):
        order = list(self.shards)
        random.Random(self.seed * 7919 + self.epoch).shuffle(order)
        rank, world = rank_and_world()
        info = get_worker_info()
        workers = info.num_workers if info else 1
        me = rank * workers + (info.id if info else 0)
        return order[me :: world * workers]

    def tokenize(self, path, chunk=1024):
        batch = []
        for text in read_shard(path):
            batch.append(text)
            if len(batch) == chunk:
                yield from self.tokenizer(batch, add_special_tokens=False)["input_ids"]
                batch = []
        if batch:
            yield from self.tokenizer(batch, add_special_tokens=False)["input_ids"]

    def __iter__(self):
        maker = RowMaker(self.size, self.tokenizer.eos_token_id)
        while True:
            for self.shard_no, path in enumerate(self.epoch_shards()):
                maker.feed(self.tokenize(path))
                for row in maker.rows():
                    ids = torch.tensor(row, dtype=torch.long)
                    yield {"input_ids": ids, "labels": ids.clone()}
            self.epoch += 1
