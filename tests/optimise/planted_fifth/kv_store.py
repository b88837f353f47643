"""Per-session KV storage for the decode server, with swap to host memory."""
from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class KVSpec:
    layers: int
    kv_heads: int
    head_dim: int
    capacity: int = 4096
    dtype: torch.dtype = torch.float16

    def shape(self):
        return (self.layers, 2, self.kv_heads, self.capacity, self.head_dim)


class Session:
    def __init__(self, spec: KVSpec, device: str = "cuda"):
        self.spec = spec
        self.device = device
        self.buf = torch.zeros(spec.shape(), dtype=spec.dtype, device=device)
        self.length = 0

    def _room(self, wanted):
        return min(wanted, self.spec.capacity - self.length)

    def append(self, layer, k, v):
        """k, v: (kv_heads, t, head_dim). Returns the keys and values so far."""
        n = self._room(k.size(1))
        end = self.length + n
        self.buf[layer, 0, :, self.length : end] = k[:, :n]
        self.buf[layer, 1, :, self.length : end] = v[:, :n]
        if layer == self.spec.layers - 1:
            self.length = end
        return self.buf[layer, 0, :, :end], self.buf[layer, 1, :, :end]

    def reset(self):
        self.length = 0

    @property
    def nbytes(self):
        return self.buf.numel() * self.buf.element_size()


class SwapSpace:
    """Keeps idle sessions as bytes, so the device memory can be given to others."""

    def __init__(self, spec: KVSpec):
        self.spec = spec
        self.staging = torch.empty(spec.shape(), dtype=spec.dtype, pin_memory=True)
        self.saved: dict[str, tuple[bytes, int]] = {}

    def swap_out(self, key: str, session: Session):
        self.staging.copy_(session.buf, non_blocking=True)
        payload = self.staging[..., : session.length, :].contiguous().numpy().tobytes()
        self.saved[key] = (payload, session.length)
        session.reset()

    def swap_in(self, key: str, session: Session):
        payload, length = self.saved.pop(key)
        shape = list(self.spec.shape())
        shape[3] = length
        host = torch.frombuffer(bytearray(payload), dtype=self.spec.dtype).view(shape)
        session.buf[..., :length, :].copy_(host)
        session.length = length


class SessionPool:
    def __init__(self, spec: KVSpec, slots: int, device: str = "cuda"):
        self.free = [Session(spec, device) for _ in range(slots)]
        self.live: dict[str, Session] = {}
        self.swap = SwapSpace(spec)

    def get(self, key: str) -> Session:
        if key in self.live:
            self.live[key] = self.live.pop(key)
            return self.live[key]
        if not self.free:
            oldest = next(iter(self.live))
            victim = self.live.pop(oldest)
            self.swap.swap_out(oldest, victim)
            self.free.append(victim)
        session = self.free.pop()
        if key in self.swap.saved:
            self.swap.swap_in(key, session)
        self.live[key] = session
        return session

    def close(self, key: str):
        session = self.live.pop(key, None)
        self.swap.saved.pop(key, None)
        if session is not None:
            session.reset()
            self.free.append(session)
