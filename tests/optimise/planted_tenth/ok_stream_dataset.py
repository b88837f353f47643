"""Packed rows out of jsonl shards, resumable to the document. Use with torchdata's StatefulDataLoader."""
import json
import random
from collections import deque
from pathlib import Path

import torch
import torch.distributed as dist
from torch.utils.data import IterableDataset, get_worker_info


def place():
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    info = get_worker_info()
    if info is None:
        return rank, world
    return rank * info.num_workers + info.id, world * info.num_workers


class ShardStream(IterableDataset):
    def __init__(self, root, tokenizer, size=4096, seed=0):
        super().__init__()
        self.shards = sorted(Path(root).glob("*.jsonl"))
        self.tokenizer, self.size, self.seed = tokenizer, size, seed
        self.epoch = self.shard_no = self.doc_no = 0
        self.ready = deque()
        self.partial = []

    def state_dict(self):
        return {
            "epoch": self.epoch,
            "shard_no": self.shard_no,
            "doc_no": self.doc_no,
            "ready": [list(row) for row in self.ready],
            "partial": list(self.partial),
        }

    def load_state_dict(self, state):
        self.epoch, self.shard_no, self.doc_no = state["epoch"], state["shard_no"], state["doc_no"]
        self.ready = deque(state["ready"])
        self.partial = list(state["partial"])

    def epoch_shards(self):
        order = list(self.shards)
        random.Random(self.seed * 7919 + self.epoch).shuffle(order)
        me, of = place()
        return order[me::of]

    def absorb(self, text):
        self.partial += self.tokenizer(text, add_special_tokens=False)["input_ids"]
        self.partial.append(self.tokenizer.eos_token_id)
        full = len(self.partial) // self.size
        for i in range(full):
            self.ready.append(self.partial[i * self.size : (i + 1) * self.size])
        self.partial = self.partial[full * self.size :]

    def emit(self):
        while self.ready:
            ids = torch.tensor(self.ready.popleft(), dtype=torch.long)
            yield {"input_ids": ids, "labels": ids.clone()}

    def __iter__(self):
        yield from self.emit()
        while True:
            shards = self.epoch_shards()
            while self.shard_no < len(shards):
                with open(shards[self.shard_no], encoding="utf-8") as fh:
                    for number, line in enumerate(fh):
                        if number < self.doc_no:
                            continue
                        self.doc_no = number + 1
                        self.absorb(json.loads(line)["text"])
                        yield from self.emit()
                self.shard_no, self.doc_no = self.shard_no + 1, 0
            self.epoch, self.shard_no = self.epoch + 1, 0
