"""KV storage of one session: grows on demand up to a limit, can move to the host."""
from __future__ import annotations

from dataclasses import dataclass

import torch


class CacheFull(RuntimeError):
    pass


@dataclass(frozen=True)
class KVSpec:
    layers: int
    kv_heads: int
    head_dim: int
    limit: int = 4096
    page: int = 256
    dtype: torch.dtype = torch.bfloat16

    def shape(self, length):
        return (self.layers, 2, self.kv_heads, length, self.head_dim)


class Session:
    def __init__(self, spec: KVSpec, device="cuda"):
        self.spec = spec
        self.device = torch.device(device)
        self.buf = torch.zeros(spec.shape(spec.page), dtype=spec.dtype, device=self.device)
        self.length = 0

    def _reserve(self, needed):
        if needed > self.spec.limit:
            raise CacheFull(f"{needed} positions needed, limit is {self.spec.limit}")
        have = self.buf.size(3)
        if needed <= have:
            return
        size = min(self.spec.limit, max(2 * have, needed))
        bigger = torch.zeros(self.spec.shape(size), dtype=self.spec.dtype, device=self.device)
        bigger[..., : self.length, :] = self.buf[..., : self.length, :]
        self.buf = bigger

    def append(self, layer, k, v):
        end = self.length + k.size(1)
        self._reserve(end)
        self.buf[layer, 0, :, self.length : end] = k
        self.buf[layer, 1, :, self.length : end] = v
        if layer == self.spec.layers - 1:
            self.length = end
        return self.buf[layer, 0, :, :end], self.buf[layer, 1, :, :end]


class HostCopy:
    """Contents of a session in pinned memory; wait() before the bytes are read."""

    def __init__(self, session: Session):
        src = session.buf[..., : session.length, :].contiguous()
        on_gpu = src.device.type == "cuda"
        self.length = session.length
        self.host = torch.empty(src.shape, dtype=src.dtype, pin_memory=on_gpu)
        self.host.copy_(src, non_blocking=on_gpu)
        self.done = None
        if on_gpu:
            self.done = torch.cuda.Event()
            self.done.record()

    def wait(self):
        if self.done is not None:
            self.done.synchronize()
        return self.host

    def restore(self, session: Session):
        host = self.wait()
        session.length = 0
        session._reserve(self.length)
        session.buf[..., : self.length, :].copy_(host, non_blocking=host.is_pinned())
        session.length = self.length


class SessionPool:
    def __init__(self, spec: KVSpec, slots: int, device="cuda"):
        self.spec, self.slots, self.device = spec, slots, device
        self.live: dict[str, Session] = {}
        self.parked: dict[str, HostCopy] = {}

    def get(self, key: str) -> Session:
        if key in self.live:
            self.live[key] = self.live.pop(key)
            return self.live[key]
        if len(self.live) >= self.slots:
            oldest = next(iter(self.live))
            self.parked[oldest] = HostCopy(self.live.pop(oldest))
        session = Session(self.spec, self.device)
        if key in self.parked:
            self.parked.pop(key).restore(session)
        self.live[key] = session
        return session
