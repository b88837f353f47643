"""Block-table KV store and the token outbox of the batch engine."""
import collections
import dataclasses
import typing as t

import torch

BLOCK = 32


@dataclasses.dataclass
class Sequence:
    uid: int
    length: int = 0
    table: t.List[int] = dataclasses.field(default_factory=list)


class BlockPool:
    def __init__(self, total: int):
        self._free = collections.deque(range(total))

    def take(self) -> t.Optional[int]:
        return self._free.popleft() if self._free else None

    def give(self, blocks: t.Iterable[int]) -> None:
        self._free.extend(blocks)

    @property
    def available(self) -> int:
        return len(self._free)


class PagedStore:
    def __init__(self, layers: int, kv_heads: int, head_dim: int, blocks: int, device: torch.device):
        self.pool = BlockPool(blocks)
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
            fresh = self.pool.take()
            if fresh is None:
                return
            seq.table.append(fresh)
        page = seq.table[block]
        self.k[:, page, offset] = k
        self.v[:, page, offset] = v
        seq.length += 1

    def view(self, seq: Sequence, layer: int) -> t.Tuple[torch.Tensor, torch.Tensor]:
        k = self.k[layer, seq.table].flatten(0, 1)[: seq.length]
        v = self.v[layer, seq.table].flatten(0, 1)[: seq.length]
        return k, v

    def close(self, uid: int) -> None:
        seq = self.live.pop(uid)
        self.pool.give(seq.table)


class Outbox:
    """Collects sampled ids on the device; hands them to the detokenizer in bulk."""

    def __init__(self, slots: int, depth: int, device: torch.device):
        self.depth = depth
        self.filled = 0
        self.ids = torch.zeros(depth, slots, dtype=torch.int64, device=device)
        self.host = torch.zeros(depth, slots, dtype=torch.int64, pin_memory=True)

    def push(self, row: torch.Tensor) -> bool:
        self.ids[self.filled].copy_(row)
        self.filled += 1
        return self.filled == self.depth

    def drain(self) -> t.List[t.List[int]]:
        n, self.filled = self.filled, 0
        self.host[:n].copy_(self.ids[:n], non_blocking=True)
        return self.host[:n].t().tolist()


def usage(store: PagedStore) -> t.Dict[str, float]:
    total = store.k.size(1)
    held = total - store.pool.available
    tokens = sum(s.length for s in store.live.values())
    return {
        "blocks_held": held,
        "fill": tokens / max(1, held * BLOCK),
        "occupancy": held / total,
    }
