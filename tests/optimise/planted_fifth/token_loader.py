"""Loads parquet shards, tokenises them and hands out (x, y) batches on the GPU."""
from pathlib import Path

import pyarrow.parquet as pq
import torch


class ShardTokens:
    def __init__(self, tokenizer, column="text"):
        self.tokenizer = tokenizer
        self.column = column
        self.bos = tokenizer.get_bos_token_id()

    def load(self, path):
        table = pq.read_table(path, columns=[self.column])
        tokens = torch.empty(0, dtype=torch.long)
        for text in table[self.column].to_pylist():
            ids = self.tokenizer.encode(text, prepend=self.bos)
            tokens = torch.cat([tokens, torch.tensor(ids, dtype=torch.long)])
        return tokens


class TokenLoader:
    def __init__(self, root, tokenizer, B, T, rank=0, world=1, device="cuda"):
        self.shards = sorted(Path(root).glob("shard_*.parquet"))
        if not self.shards:
            raise FileNotFoundError(root)
        self.source = ShardTokens(tokenizer)
        self.B, self.T = B, T
        self.rank, self.world = rank, world
        self.device = device
        self.host = torch.empty(B, T + 1, dtype=torch.long, pin_memory=True)
        self.shard = 0
        self._open(0)

    def _open(self, shard):
        self.shard = shard % len(self.shards)
        self.tokens = self.source.load(self.shards[self.shard])
        self.pos = self.rank * self.B * self.T

    def state_dict(self):
        return {"shard": self.shard, "pos": self.pos - self.rank * self.B * self.T}

    def load_state_dict(self, state):
        self._open(state["shard"])
        self.pos = state["pos"] + self.rank * self.B * self.T

    def _fill(self):
        n = self.B * self.T
        flat = self.tokens[self.pos : self.pos + n + 1]
        for b in range(self.B):
            self.host[b] = flat[b * self.T : (b + 1) * self.T + 1]

    def next_batch(self):
        span = self.B * self.T * self.world
        if self.pos + self.B * self.T + 1 > self.tokens.numel():
            self._open(self.shard + 1)
        self._fill()
        batch = self.host.to(self.device, non_blocking=True)
        self.pos += span
        return batch[:, :-1], batch[:, 1:]

    def __iter__(self):
        while True:
            yield self.next_batch()


def bytes_per_token(loader, n_batches, token_bytes):
    """Average number of utf-8 bytes per token, to report bits per byte."""
    total = torch.zeros((), device=loader.device)
    for _ in range(n_batches):
        _, y = loader.next_batch()
        total += token_bytes[y].sum()
    return total.item() / (n_batches * loader.B * loader.T)
