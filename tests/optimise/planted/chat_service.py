"""Tiny batch server: requests join a running batch, each with its own settings."""
import queue
import threading
from dataclasses import dataclass

import torch


@dataclass
class Request:
    ids: list
    seed: int = 0
    temperature: float = 1.0
    max_new: int = 64
    slot: int = -1


class Service:
    def __init__(self, model, slots=16, device="cuda"):
        self.model = model.eval()
        self.slots = slots
        self.inbox = queue.Queue()
        self.dice = torch.Generator(device=device)
        self.active = {}
        self.lock = threading.Lock()

    def admit(self, req):
        with self.lock:
            req.slot = len(self.active)
            # requests with the same seed give the same text
            self.dice.manual_seed(req.seed)
            self.active[req.slot] = req
            self.model.load_slot(req.slot, req.ids)

    @torch.inference_mode()
    def tick(self):
        rows = sorted(self.active)
        logits = self.model.step(rows)
        temps = torch.tensor([self.active[r].temperature for r in rows], device=logits.device)
        probs = torch.softmax(logits / temps[:, None], -1)
        chosen = torch.multinomial(probs, 1, generator=self.dice)
        return rows, chosen

    def loop(self):
        while True:
            while not self.inbox.empty() and len(self.active) < self.slots:
                self.admit(self.inbox.get())
            if not self.active:
                self.admit(self.inbox.get())
            rows, chosen = self.tick()
            self.model.push(rows, chosen)
