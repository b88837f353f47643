"""Bradley-Terry reward model on preference pairs."""
import json
import os
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.data import DataLoader
from transformers import AutoModel, AutoTokenizer


@dataclass
class RewardConfig:
    backbone: str = "microsoft/deberta-v3-base"
    pairs: str = "data/hh_pairs.jsonl"
    max_len: int = 512
    batch_size: int = 64
    accum: int = 4
    lr: float = 1e-5
    epochs: int = 2
    seed: int = 17
    out: str = "reward-model"
    gpu: int = 0

    @property
    def device(self):
        if torch.cuda.is_available():
            return torch.device("cuda", self.gpu)
        return torch.device("cpu")

    @property
    def use_amp(self):
        return self.device in ("cuda", "cuda:0")


class RewardModel(nn.Module):
    def __init__(self, name):
        super().__init__()
        self.body = AutoModel.from_pretrained(name)
        self.head = nn.Linear(self.body.config.hidden_size, 1)

    def forward(self, input_ids, attention_mask):
        h = self.body(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return self.head(h[:, 0]).squeeze(-1)


class Accumulator:
    """Sums gradients over `every` calls and then steps the optimizer."""

    def __init__(self, opt, params, every, clip=1.0):
        self.opt = opt
        self.params = list(params)
        self.every = every
        self.clip = clip
        self.calls = 0

    def __call__(self, loss):
        self.opt.zero_grad(set_to_none=True)
        (loss / self.every).backward()
        self.calls += 1
        if self.calls % self.every == 0:
            nn.utils.clip_grad_norm_(self.params, self.clip)
            self.opt.step()


class PairCollate:
    def __init__(self, tok, max_len):
        self.tok = tok
        self.max_len = max_len

    def __call__(self, rows):
        texts = [r["chosen"] for r in rows] + [r["rejected"] for r in rows]
        enc = self.tok(texts, truncation=True, max_length=self.max_len, padding="longest", return_tensors="pt")
        return enc["input_ids"], enc["attention_mask"]


def load_pairs(path):
    with open(path) as f:
        return [json.loads(line) for line in f]


def train(cfg):
    os.makedirs(cfg.out, exist_ok=False)
    torch.manual_seed(cfg.seed)
    tok = AutoTokenizer.from_pretrained(cfg.backbone)
    net = RewardModel(cfg.backbone).to(cfg.device)
    model = torch.compile(net, dynamic=True)
    opt = torch.optim.AdamW(net.parameters(), lr=cfg.lr)
    accumulate = Accumulator(opt, net.parameters(), cfg.accum)
    loader = DataLoader(
        load_pairs(cfg.pairs), cfg.batch_size, shuffle=True, drop_last=True, pin_memory=True,
        generator=torch.Generator().manual_seed(cfg.seed), collate_fn=PairCollate(tok, cfg.max_len),
    )
    net.train()
    for epoch in range(cfg.epochs):
        hits = torch.zeros((), device=cfg.device)
        for i, (ids, mask) in enumerate(loader, 1):
            ids = ids.to(cfg.device, non_blocking=True)
            mask = mask.to(cfg.device, non_blocking=True)
            with torch.autocast(cfg.device.type, dtype=torch.bfloat16, enabled=cfg.use_amp):
                chosen, rejected = model(ids, mask).chunk(2)
                loss = -F.logsigmoid(chosen - rejected).mean()
            accumulate(loss)
            hits += (chosen > rejected).sum()
            if i % 100 == 0:
                print(f"epoch {epoch} it {i} loss {loss.item():.4f} acc {hits.item() / (i * cfg.batch_size):.3f}")
    net.body.save_pretrained(cfg.out)
    torch.save(net.head.state_dict(), os.path.join(cfg.out, "head.pt"))


if __name__ == "__main__":
    train(RewardConfig())
