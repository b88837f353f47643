"""Block-table KV store and the token outbox of the batch engine."""
import collections
import dataclasses
import typing as t

import torch

BLOCK = 32


class OutOfBlocks(RuntimeError):
    """The scheduler answers this by preempting a sequence and trying again."""


@dataclasses.dataclass
class Sequence:
    uid: int
    length: int = 0
    table: t.List[int] = dataclasses.field(default_factory=list)


class PagedStore:
    def __init__(self, layers: int, kv_heads: int, head_dim: int, blocks: int, device: torch.device):
        self.free = collections.deque(range(blocks))
        shape = (layers, blocks, BLOCK, kv_heads, head_dim)
        self.k = torch.zeros(shape, dtype=torch.bfloat16, device=device)
        self.v = torch.zeros(shape, dtype=torch.bfloat16, device=device)
        self.live: t.Dict[int, Sequence] = {}

    def open(self, uid: int) -> Sequence:
        seq = self.live[uid] = Sequence(uid)
        return seq

    def append(self, seq: Sequence, k: torch.Tensor, v: torch.Tensor) -> None:
        """k, v: (layers, kv_heads, head_dim) of one new token."""
        block, offset = divmod(seq.length, BLOCK)
        if offset == 0:
            if not self.free:
                raise OutOfBlocks(f"no block for token {seq.length} of sequence {seq.uid}")
            seq.table.append(self.free.popleft())
        page = seq.table[block]
        self.k[:, page, offset] = k
        self.v[:, page, offset] = v
        seq.length += 1

    def close(self, uid: int) -> None:
        self.free.extend(self.live.pop(uid).table)


class Outbox:
    """Collects sampled ids on the device; hands them to the detokenizer in bulk."""

    def __init__(self, slots: int, depth: int, device: torch.device):
        self.depth, self.filled = depth, 0
        self.ids = torch.zeros(depth, slots, dtype=torch.int64, device=device)
        self.host = torch.zeros(depth, slots, dtype=torch.int64, pin_memory=True)
        self.copied = torch.cuda.Event()

    def push(self, row: torch.Tensor) -> bool:
        self.ids[self.filled].copy_(row)
        self.filled += 1
        return self.filled == self.depth

    def drain(self) -> t.List[t.List[int]]:
        n, self.filled = self.filled, 0
        self.host[:n].copy_(self.ids[:n], non_blocking=True)
        self.copied.record()
        self.copied.synchronize()
        return self.host[:n].t().tolist()
