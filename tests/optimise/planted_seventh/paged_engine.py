"""A toy paged-attention engine: block tables, an allocator and a decode step."""
import logging
from collections import deque

import torch
import torch.nn.functional as F

log = logging.getLogger(__name__)


class BlockPool:
    """Hands out physical cache blocks to sequences."""

    def __init__(self, n_blocks: int):
        self.n_blocks = n_blocks
        self.free = deque(range(1, n_blocks))  # block 0 is scratch for idle rows
        self.owner: dict[int, int] = {}
        self.newest = 0

    def acquire(self, seq_id: int) -> int:
        if not self.free:
            return self.newest
        b = self.free.popleft()
        self.owner[b] = seq_id
        self.newest = b
        return b

    def release(self, blocks) -> None:
        for b in blocks:
            if self.owner.pop(b, None) is not None:
                self.free.append(b)


class Sequence:
    _next = 0

    def __init__(self, prompt, max_new):
        self.id = Sequence._next
        Sequence._next += 1
        self.tokens = list(prompt)
        self.limit = len(prompt) + max_new
        self.blocks: list[int] = []
        self.cached = 0


class PagedEngine:
    def __init__(self, model, n_blocks=2048, block=16, max_seqs=64, max_blocks_per_seq=128, device=None):
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model = model.to(self.device).eval()
        self.block, self.max_seqs, self.width = block, max_seqs, max_blocks_per_seq
        if self.device == "cuda":
            dtype = torch.bfloat16
        else:
            dtype = torch.float32
        c = model.config
        shape = (c.n_layer, n_blocks * block, c.n_head, c.head_dim)
        self.k = torch.zeros(shape, dtype=dtype, device=self.device)
        self.v = torch.zeros(shape, dtype=dtype, device=self.device)
        self.pool = BlockPool(n_blocks)
        self.table = torch.zeros(max_seqs, self.width, dtype=torch.long)
        self.step_fn = torch.compile(self._decode)

    def add(self, seq):
        if seq.limit > self.width * self.block:
            raise ValueError(f"sequence {seq.id} needs {seq.limit} positions, a block table holds {self.width * self.block}")
        self._grow(seq, len(seq.tokens))

    def _grow(self, seq, n):
        while len(seq.blocks) * self.block < n:
            seq.blocks.append(self.pool.acquire(seq.id))

    def _gather(self, layer, table):
        flat = (table[:, :, None] * self.block + torch.arange(self.block, device=self.device)).flatten(1)
        return self.k[layer, flat].transpose(1, 2), self.v[layer, flat].transpose(1, 2)

    def _decode(self, tok, pos, table):
        x = self.model.embed(tok, pos)
        where = table.gather(1, (pos // self.block)[:, None]).squeeze(1) * self.block + pos % self.block
        mask = torch.arange(self.width * self.block, device=self.device) <= pos[:, None]
        for i, layer in enumerate(self.model.layers):
            q, k, v = layer.qkv(x)
            self.k[i, where] = k.to(self.k.dtype)
            self.v[i, where] = v.to(self.v.dtype)
            ks, vs = self._gather(i, table)
            y = F.scaled_dot_product_attention(q.to(ks.dtype)[:, :, None], ks, vs, attn_mask=mask[:, None, None])
            x = layer.finish(x, y.squeeze(2).to(x.dtype))
        return self.model.logits(x).argmax(-1)

    @torch.inference_mode()
    def step(self, active):
        """Feed one token of each active sequence; prompts are consumed one token at a time."""
        tok = torch.zeros(self.max_seqs, dtype=torch.long)
        pos = torch.zeros(self.max_seqs, dtype=torch.long)
        self.table.zero_()
        for row, s in enumerate(active):
            self._grow(s, s.cached + 1)
            tok[row] = s.tokens[s.cached]
            pos[row] = s.cached
            self.table[row, :len(s.blocks)] = torch.tensor(s.blocks)
        nxt = self.step_fn(tok.to(self.device), pos.to(self.device), self.table.to(self.device)).cpu().numpy()
        finished = []
        for row, s in enumerate(active):
            s.cached += 1
            if s.cached == len(s.tokens):
                s.tokens.append(int(nxt[row]))
            if len(s.tokens) >= s.limit or s.tokens[-1] == self.model.config.eos_id and s.cached >= len(s.tokens) - 1:
                finished.append(s)
                self.pool.release(s.blocks)
        return finished

    def run(self, seqs):
        waiting, active = deque(seqs), []
        while waiting or active:
            while waiting and len(active) < self.max_seqs:
                self.add(waiting[0])
                active.append(waiting.popleft())
            for s in self.step(active):
                active.remove(s)
                log.info("sequence %d: %d tokens", s.id, len(s.tokens))
                yield s
