import math
from collections import defaultdict
from pathlib import Path

import torch


class PagePool:
    """GPU page pool shared by all running sequences of one layer group.

    Layout: [pages, 2, page_size, kv_heads, head_dim] in fp16.
    """

    def __init__(self, num_pages, page_size, kv_heads, head_dim, spill_dir, device="cuda"):
        self.num_pages = num_pages
        self.page_size = page_size
        self.data = torch.zeros(
            num_pages, 2, page_size, kv_heads, head_dim, dtype=torch.float16, device=device
        )
        self.tables = defaultdict(list)
        self.lengths = defaultdict(int)
        self.issued = 0
        self.spill_dir = Path(spill_dir)
        self.spill_dir.mkdir(parents=True, exist_ok=True)

    # -- allocation ---------------------------------------------------------

    def _grab(self):
        page = self.issued % self.num_pages
        self.issued += 1
        return page

    def reserve(self, seq, tokens):
        need = math.ceil((self.lengths[seq] + tokens) / self.page_size)
        table = self.tables[seq]
        while len(table) < need:
            table.append(self._grab())

    def drop(self, seq):
        self.tables.pop(seq, None)
        self.lengths.pop(seq, None)

    # -- data path ----------------------------------------------------------

    def append(self, seq, k, v):
        """k, v: [tokens, kv_heads, head_dim]"""
        n = k.size(0)
        self.reserve(seq, n)
        start = self.lengths[seq]
        table = torch.tensor(self.tables[seq], device=self.data.device)
        pos = torch.arange(start, start + n, device=self.data.device)
        page, off = table[pos // self.page_size], pos % self.page_size
        self.data[page, 0, off] = k
        self.data[page, 1, off] = v
        self.lengths[seq] = start + n

    def gather(self, seq):
        n = self.lengths[seq]
        flat = self.data[self.tables[seq]]
        k = flat[:, 0].flatten(0, 1)[:n]
        v = flat[:, 1].flatten(0, 1)[:n]
        return k, v

    # -- preemption ---------------------------------------------------------

    def _file(self, seq):
        return self.spill_dir / f"{seq}.kv"

    def swap_out(self, seq):
        pages = self.data[self.tables[seq]]
        host = torch.empty(pages.shape, dtype=pages.dtype, pin_memory=True)
        host.copy_(pages, non_blocking=True)
        self._file(seq).write_bytes(host.numpy().tobytes())
        length = self.lengths[seq]
        self.drop(seq)
        return length

    def swap_in(self, seq, length):
        raw = bytearray(self._file(seq).read_bytes())
        pages = torch.frombuffer(raw, dtype=torch.float16).view(-1, *self.data.shape[1:])
        self.reserve(seq, length)
        self.data[self.tables[seq]] = pages.to(self.data.device)
        self.lengths[seq] = length
        self._file(seq).unlink()
