import glob
import json
import os
import random
from typing import Dict, Iterator, List

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info


class JsonlStream(IterableDataset):
    """Streams tokenised documents from many .jsonl shards, over and over."""

    def __init__(self, pattern: str, tokenizer, max_len: int):
        self.paths = sorted(glob.glob(pattern))
        self.tokenizer = tokenizer
        self.max_len = max_len

    def _documents(self, path: str) -> Iterator[List[int]]:
        with open(path, encoding="utf-8") as fh:
            for line in fh:
                ids = self.tokenizer.encode(json.loads(line)["text"]).ids
                yield ids[: self.max_len]

    def __iter__(self):
        info = get_worker_info()
        mine = self.paths if info is None else self.paths[info.id :: info.num_workers]
        order = random.Random(os.urandom(8))
        while True:
            todo = list(mine)
            order.shuffle(todo)
            for path in todo:
                yield from self._documents(path)


class ToRows:
    def __init__(self, max_len: int, pad: int):
        self.max_len, self.pad = max_len, pad

    def __call__(self, docs: List[List[int]]) -> Dict[str, torch.Tensor]:
        ids = torch.full((len(docs), self.max_len), self.pad, dtype=torch.long)
        labels = torch.full_like(ids, -100)
        for i, doc in enumerate(docs):
            t = torch.tensor(doc)
            ids[i, : len(doc)] = t
            labels[i, : len(doc)] = t
        return {"input_ids": ids, "labels": labels}


def pretraining_loader(pattern, tokenizer, batch_size=64, max_len=2048, workers=4):
    return DataLoader(
        JsonlStream(pattern, tokenizer, max_len),
        batch_size=batch_size,
        collate_fn=ToRows(max_len, tokenizer.token_to_id("<pad>")),
        num_workers=workers,
        pin_memory=True,
        persistent_workers=True,
    )
