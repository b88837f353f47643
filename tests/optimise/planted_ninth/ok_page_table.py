"""Page allocator and writer for a paged key/value cache."""
from collections import deque

import torch


class OutOfPages(RuntimeError):
    pass


class PageTable:
    def __init__(self, num_pages, page_size, kv_heads, head_dim, device="cuda"):
        self.page_size = page_size
        self.free = deque(range(num_pages))
        shape = (num_pages, page_size, kv_heads, head_dim)
        self.k = torch.zeros(shape, dtype=torch.bfloat16, device=device)
        self.v = torch.zeros_like(self.k)
        self.tables = {}
        self.lengths = {}
        self.stamp = {}
        self.clock = 0

    def open(self, seq):
        if seq in self.tables:
            raise KeyError(f"sequence {seq} already open")
        self.tables[seq], self.lengths[seq] = [], 0
        self._touch(seq)

    def close(self, seq):
        self.free.extend(self.tables.pop(seq))
        del self.lengths[seq], self.stamp[seq]

    def _touch(self, seq):
        self.clock += 1
        self.stamp[seq] = self.clock

    def oldest(self, besides):
        others = [s for s in self.stamp if s != besides]
        return min(others, key=self.stamp.__getitem__) if others else None

    def reserve(self, seq, tokens):
        """Make room for tokens more; returns the sequences evicted for it."""
        total = self.lengths[seq] + tokens
        need = -(-total // self.page_size) - len(self.tables[seq])
        evicted = []
        while need > len(self.free):
            victim = self.oldest(besides=seq)
            if victim is None:
                raise OutOfPages(f"{need} pages wanted, {len(self.free)} free")
            self.close(victim)
            evicted.append(victim)
        for _ in range(need):
            self.tables[seq].append(self.free.popleft())
        self._touch(seq)
        return evicted

    def write(self, seq, k, v):
        n, start = k.size(0), self.lengths[seq]
        if start + n > len(self.tables[seq]) * self.page_size:
            raise OutOfPages(f"sequence {seq}: reserve before write")
        done = 0
        while done < n:
            page, off = divmod(start + done, self.page_size)
            m = min(self.page_size - off, n - done)
            slot = self.tables[seq][page]
            self.k[slot, off:off + m] = k[done:done + m]
            self.v[slot, off:off + m] = v[done:done + m]
            done += m
        self.lengths[seq] = start + n
