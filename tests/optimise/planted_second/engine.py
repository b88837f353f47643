import json
import os
from dataclasses import asdict, dataclass

import torch
from safetensors.torch import load_file, save_file


@dataclass
class Progress:
    step: int = 0
    tokens: int = 0


class Engine:
    def __init__(self, model, optimizer, scheduler, make_loader, run_dir, accumulate=8, save_every=1000):
        self.raw_model = model
        self.model = torch.compile(model)
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.make_loader = make_loader
        self.run_dir = run_dir
        self.accumulate = accumulate
        self.save_every = save_every
        self.progress = Progress()

    @property
    def _weights(self):
        return os.path.join(self.run_dir, "model.safetensors")

    @property
    def _trainer(self):
        return os.path.join(self.run_dir, "trainer.pt")

    def save(self):
        os.makedirs(self.run_dir, exist_ok=True)
        save_file(self.raw_model.state_dict(), self._weights)
        with open(self._trainer, "wb") as handle:
            torch.save(
                {"optimizer": self.optimizer.state_dict(), "scheduler": self.scheduler.state_dict()}, handle
            )
        with open(os.path.join(self.run_dir, "progress.json"), "w") as handle:
            json.dump(asdict(self.progress), handle)

    def resume(self):
        if not os.path.exists(self._weights):
            return
        self.raw_model.load_state_dict(load_file(self._weights))
        extra = torch.load(self._trainer, map_location="cpu", weights_only=True)
        self.optimizer.load_state_dict(extra["optimizer"])
        self.scheduler.load_state_dict(extra["scheduler"])
        with open(os.path.join(self.run_dir, "progress.json")) as handle:
            self.progress = Progress(**json.load(handle))

    def _micro(self, batch):
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = self.model(batch["input_ids"], labels=batch["labels"])
        return loss / self.accumulate

    def train(self, max_steps):
        self.resume()
        loader = iter(self.make_loader(seed=0))
        self.model.train()
        while self.progress.step < max_steps:
            for _ in range(self.accumulate):
                batch = next(loader)
                self._micro(batch).backward()
                self.optimizer.step()
                self.progress.tokens += batch["input_ids"].numel()
            self.optimizer.zero_grad(set_to_none=True)
            self.scheduler.step()
            self.progress.step += 1
            if self.progress.step % self.save_every == 0:
                self.save()
