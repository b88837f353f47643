"""Reward model for control, from human preferences over pairs of 64-step clips."""
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn


@dataclass(frozen=True)
class PrefConfig:
    data: str = "data/prefs.safetensors"
    run: Path = Path("runs/pref")
    updates: int = 8_000
    pairs_per_pass: int = 2
    pairs_per_update: int = 256
    lr: float = 3e-4
    seed: int = 31
    keep_every: int = 500

    @property
    def passes(self):
        return self.pairs_per_update // self.pairs_per_pass


class ClipReward(nn.Module):
    def __init__(self, obs, act, hidden=512):
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(obs + act, hidden), nn.SiLU(),
            nn.Linear(hidden, hidden), nn.SiLU(),
            nn.Linear(hidden, 1),
        )

    def forward(self, clips):
        """clips [..., 64, obs + act] -> summed reward [...]"""
        return self.body(clips).squeeze(-1).sum(-1)


class PreferenceTrainer:
    def __init__(self, cfg: PrefConfig, obs=39, act=4):
        torch.manual_seed(cfg.seed)
        self.cfg = cfg
        self.data = load_file(cfg.data, device="cuda")
        self.net = ClipReward(obs, act).cuda()
        self.score = torch.compile(self.net)
        self.opt = torch.optim.Adam(self.net.parameters(), lr=cfg.lr, fused=True)
        self.update = 0

    def _indices(self):
        g = torch.Generator().manual_seed(self.cfg.seed * 100_003 + self.update)
        n = len(self.data["label"])
        return torch.randint(n, (self.cfg.pairs_per_update,), generator=g).cuda()

    def _one_update(self):
        total = torch.zeros((), device="cuda")
        for idx in self._indices().split(self.cfg.pairs_per_pass):
            left = self.score(self.data["left"][idx])
            right = self.score(self.data["right"][idx])
            loss = F.binary_cross_entropy_with_logits(left - right, self.data["label"][idx])
            loss = loss / self.cfg.passes
            loss.backward()
            total += loss.detach()
        self.opt.step()
        self.opt.zero_grad(set_to_none=True)
        self.update += 1
        return total

    def keep(self):
        folder = self.cfg.run / "latest"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        torch.save(self.net.state_dict(), folder / "net.pt")
        torch.save(self.opt.state_dict(), folder / "opt.pt")
        (folder / "update").write_text(str(self.update))

    def pick_up(self):
        folder = self.cfg.run / "latest"
        if folder.exists():
            self.net.load_state_dict(torch.load(folder / "net.pt", weights_only=True))
            self.opt.load_state_dict(torch.load(folder / "opt.pt", weights_only=True))
            self.update = int((folder / "update").read_text())

    def fit(self):
        self.pick_up()
        while self.update < self.cfg.updates:
            loss = self._one_update()
            if self.update % 100 == 0:
                print(f"update {self.update} loss {loss.item():.4f}")
            if self.update % self.cfg.keep_every == 0:
                self.keep()


if __name__ == "__main__":
    PreferenceTrainer(PrefConfig()).fit()
