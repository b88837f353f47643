"""TinyStories: fetch pre-tokenised shards, build training tensors, train a small LM.

The shards are object arrays (one int list for each story, 60 to 400 tokens).
"""
import os
import urllib.request

import numpy as np
import torch
import torch.nn.functional as F
from transformers import GPT2Config, GPT2LMHeadModel

MIRROR = "https://tinystories-mirror.example.org/v2/"
SHARDS = [f"stories_{i:02d}.npy" for i in range(20)]
CACHE = os.path.expanduser("~/.cache/tinystories")
CTX = 1024
PAD = 50257
EOT = 50256


def download(name: str) -> str:
    os.makedirs(CACHE, exist_ok=True)
    path = os.path.join(CACHE, name)
    if not os.path.isfile(path):
        urllib.request.urlretrieve(MIRROR + name, path + ".part")
        os.replace(path + ".part", path)
    return path


def stories(name: str):
    arr = np.load(download(name), allow_pickle=True)
    for s in arr:
        yield np.asarray(s[: CTX - 1], dtype=np.int64)


def as_matrix(name: str) -> torch.Tensor:
    """Every story ends up in a row of CTX tokens."""
    rows = list(stories(name))
    out = torch.full((len(rows), CTX), PAD, dtype=torch.long)
    for r, s in enumerate(rows):
        out[r, : len(s)] = torch.from_numpy(s)
        out[r, len(s)] = EOT
    return out


class StoryTrainer:
    def __init__(self, lr=5e-4, bs=80, seed=1):
        torch.manual_seed(seed)
        torch.set_float32_matmul_precision("high")
        self.dev = torch.device("cuda")
        self.bs = bs
        self.seed = seed
        self.net = GPT2LMHeadModel(GPT2Config(vocab_size=50304, n_positions=CTX, n_embd=512, n_layer=8, n_head=8)).to(self.dev)
        self.f = torch.compile(self.net)
        self.opt = torch.optim.AdamW(self.net.parameters(), lr=lr, betas=(0.9, 0.95), fused=True)
        self.seen = 0

    def loss(self, x):
        logits = self.f(input_ids=x[:, :-1], use_cache=False).logits
        return F.cross_entropy(logits.flatten(0, 1), x[:, 1:].flatten(), ignore_index=PAD)

    def shard(self, epoch, k):
        m = as_matrix(SHARDS[k])
        g = torch.Generator().manual_seed(self.seed * 100_003 + epoch * 101 + k)
        m = m[torch.randperm(len(m), generator=g)].pin_memory()
        for lo in range(0, len(m) - self.bs + 1, self.bs):
            yield m[lo:lo + self.bs].to(self.dev, non_blocking=True)

    def fit(self, epochs=3):
        self.net.train()
        for e in range(epochs):
            for k in range(len(SHARDS) - 1):
                for x in self.shard(e, k):
                    with torch.autocast("cuda", dtype=torch.bfloat16):
                        loss = self.loss(x)
                    loss.backward()
                    torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
                    self.opt.step()
                    self.opt.zero_grad(set_to_none=True)
                    self.seen += 1
                    if self.seen % 50 == 0:
                        print(f"epoch {e} shard {k} step {self.seen} loss {loss.item():.3f}")
            print(f"epoch {e} held-out {self.held_out().item():.3f}")

    @torch.no_grad()
    def held_out(self):
        self.net.eval()
        total, n = torch.zeros((), device=self.dev), 0
        for x in self.shard(0, len(SHARDS) - 1):
            with torch.autocast("cuda", dtype=torch.bfloat16):
                total += self.loss(x)
            n += 1
        self.net.train()
        return total / n

    def save(self, path):
        torch.save(self.net.state_dict(), path + ".tmp")
        os.replace(path + ".tmp", path)


if __name__ == "__main__":
    t = StoryTrainer()
    t.fit()
    t.save("tinystories.pt")
