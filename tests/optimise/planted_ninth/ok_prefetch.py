"""Double-buffered host-to-device prefetch of packed token rows."""
from __future__ import annotations

from typing import Iterator

import numpy as np
import torch


class Slot:
    def __init__(self, rows: int, ctx: int):
        self.host = torch.empty(rows, ctx, dtype=torch.int32, pin_memory=True)
        self.copied = torch.cuda.Event()
        self.used = False


class Prefetcher:
    def __init__(self, source: np.ndarray, rows: int, device: torch.device, slots: int = 2):
        if device.type != "cuda":
            raise ValueError(f"needs a CUDA device, got {device}")
        self.source, self.rows, self.device = source, rows, device
        self.slots = [Slot(rows, source.shape[1]) for _ in range(slots)]
        self.stream = torch.cuda.Stream(device)
        self.cursor = 0
        self.turn = 0

    def state_dict(self) -> dict:
        return {"cursor": self.cursor}

    def load_state_dict(self, state: dict) -> None:
        self.cursor = state["cursor"]

    def _launch(self, start: int):
        slot = self.slots[self.turn % len(self.slots)]
        self.turn += 1
        if slot.used:
            slot.copied.synchronize()
        np.copyto(slot.host.numpy(), self.source[start:start + self.rows])
        with torch.cuda.stream(self.stream):
            dev = slot.host.to(self.device, non_blocking=True)
            slot.copied.record(self.stream)
        slot.used = True
        return dev, slot.copied

    def __iter__(self) -> Iterator[torch.Tensor]:
        last = len(self.source) - self.rows
        at = self.cursor
        pending = self._launch(at) if at <= last else None
        while pending is not None:
            dev, event = pending
            at += self.rows
            pending = self._launch(at) if at <= last else None
            current = torch.cuda.current_stream(self.device)
            current.wait_event(event)
            dev.record_stream(current)
            self.cursor = at
            yield dev
        self.cursor = 0


class LossLog:
    """Copies running losses to the host without stalling the step."""

    def __init__(self):
        self.host = torch.empty(1, pin_memory=True)
        self.event = torch.cuda.Event()
        self.waiting = False

    def push(self, value: torch.Tensor) -> None:
        if self.waiting:
            return
        self.host.copy_(value.detach().float().view(1), non_blocking=True)
        self.event.record()
        self.waiting = True

    def poll(self) -> float | None:
        if not self.waiting or not self.event.query():
            return None
        self.waiting = False
        return self.host.item()
