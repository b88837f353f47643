"""Faults in a program of many files: settings, model, data, trainer, hooks, engine; each is found at its place."""

import textwrap

import pytest
from tests.optimise.scan.variants import MARK, NEAR

from intone.optimise.scan.run import scan_texts

PROGRAM = {
    "lm/__init__.py": "from .engine import Engine\nfrom .trainer import Trainer\n",
    "lm/settings.py": """
        from dataclasses import dataclass, field
        @dataclass
        class Batching:
            sequences: int = 4
            micro_batch: int = 2  # <- small-batch
            tokens: int = 262144
        @dataclass
        class Settings:
            seed: int = 11
            log_every: int = 1
            fused: bool = False
            batching: Batching = field(default_factory=Batching)
        def passes(settings, width):
            per_pass = settings.batching.micro_batch * width
            return settings.batching.tokens // per_pass
    """,
    "lm/model.py": """
        import torch
        import torch.nn as nn
        import torch.nn.functional as F
        from .layers import Block
        class LanguageModel(nn.Module):
            def __init__(self, depth, width, vocab):
                super().__init__()
                self.embed = nn.Embedding(vocab, width)
                self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
                self.drop = nn.Dropout(0.1)
            def forward(self, ids, targets=None):
                x = self.drop(self.embed(ids))
                for block in self.blocks:
                    x = block(x)
                logits = x @ self.embed.weight.T
                if targets is None:
                    return logits
                return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)
            def scores(self, ids):
                return self(ids)[:, -1]
        def build(depth=4, width=256, vocab=4096):
            return LanguageModel(depth, width, vocab)
    """,
    "lm/layers.py": """
        import torch.nn as nn
        from .kv import Slots
        class Attention(nn.Module):
            def __init__(self, width):
                super().__init__()
                self.slots = Slots(width)
            def forward(self, q, k, v, at):
                k, v = self.slots.write(at, k, v)
                return q @ k.transpose(-1, -2) @ v
        class Block(nn.Module):
            def __init__(self, width):
                super().__init__()
                self.attention = Attention(width)
            def forward(self, x):
                n = count_real(x)
                return x[:, :n]
        def count_real(x):
            return x.ne(0).any(-1).sum(-1).max().item()  # <- host-sync
    """,
    "lm/kv.py": """
        import torch
        class Slots:
            '''Keys and values of earlier tokens: generation's memory, a KV cache.'''
            def __init__(self, width, length=1024):
                self.k_cache = torch.zeros(1, length, width)
                self.v_cache = torch.zeros(1, length, width)
            def span(self, at, n):
                return at, min(at + n, self.k_cache.size(1))
            def write(self, at, k, v):
                begin, end = self.span(at, k.size(1))
                self.k_cache[:, begin:end] = k[:, :end - begin]  # <- cache-overflow
                self.v_cache[:, begin:end] = v[:, :end - begin]
                return self.k_cache[:, :end], self.v_cache[:, :end]
    """,
    "lm/draw.py": """
        import torch
        class Sampler:
            def __init__(self, temperature, seed):
                self.temperature, self.seed = temperature, seed
            def __call__(self, scores):
                stream = torch.Generator().manual_seed(self.seed)  # <- rng
                return torch.multinomial((scores / self.temperature).softmax(-1), 1, generator=stream)
    """,
    "lm/engine.py": """
        import torch
        from .draw import Sampler
        class Engine:
            def __init__(self, model, sampler: Sampler):
                self.model, self.sampler = model, sampler
            @torch.inference_mode()
            def _advance(self, ids):
                return self.sampler(self.model.scores(ids))
            def write(self, ids, limit):
                for _ in range(limit):
                    token = self._advance(ids)
                    ids = torch.cat([ids, token], dim=1)
                return ids
            def many(self, ids, rows):
                first = self._advance(ids)
                return first.expand(rows, -1)  # <- copied-token
    """,
    "lm/chat.py": """
        from . import tools
        class Session:
            def __init__(self, engine, tokenizer):
                self.engine, self.tokenizer, self.history = engine, tokenizer, []
            def turn(self, text):
                self.history.append(text)
                ids = self.tokenizer.encode("".join(self.history))
                reply = self.tokenizer.decode(self.engine.write(ids, 100)[0].tolist())
                return tools.expand(reply)
    """,
    "lm/tools.py": """
        import re
        def expand(text):
            return re.sub(r"<<(.*?)>>", lambda m: str(calculate(m.group(1))), text)
        def calculate(expression):
            return eval(expression)  # <- eval-output
    """,
    "lm/data.py": """
        import torch
        from torch.utils.data import DataLoader
        def collate(rows):
            longest = max(len(row) for row in rows)
            ids = torch.zeros(len(rows), longest, dtype=torch.long)
            labels = torch.full((len(rows), longest), -1)  # <- padding
            for number, row in enumerate(rows):
                ids[number, : len(row)] = torch.tensor(row)
                labels[number, : len(row)] = torch.tensor(row)
            return ids, labels
        class Feed:
            def __init__(self, rows, settings):
                self.rows, self.settings = rows, settings
            def loader(self):
                size = self.settings.batching.micro_batch
                return DataLoader(self.rows, batch_size=size, shuffle=True, collate_fn=collate)  # <- data-order
            def __iter__(self):
                yield from self.loader()
    """,
    "lm/keep.py": """
        import torch
        class Keeper:
            def __init__(self, folder):
                self.folder = folder
            def save(self, trainer):
                torch.save({"model": trainer.model.state_dict(), "optim": trainer.optim.state_dict()},  # <- checkpoint
                           self.folder / "latest.pt")
            def restore(self, trainer):
                saved = torch.load(self.folder / "latest.pt", weights_only=False)  # <- pickle
                trainer.model.load_state_dict(saved["model"])
                trainer.optim.load_state_dict(saved["optim"])
    """,
    "lm/hooks.py": """
        class Hook:
            def after_step(self, trainer, step, loss):
                pass
        class Curve(Hook):
            def __init__(self, settings):
                self.settings, self.points = settings, []
            def after_step(self, trainer, step, loss):
                if step % self.settings.log_every == 0:
                    self.points.append(loss.item())  # <- host-sync
        class HeldOut(Hook):
            def __init__(self, rows):
                self.rows = rows
            def after_step(self, trainer, step, loss):
                if step % 500 == 0:
                    trainer.measure(self.rows)
    """,
    "lm/trainer.py": """
        import torch
        from .settings import passes
        class Trainer:
            def __init__(self, model, optim, feed, settings, hooks=(), device="cuda"):
                self.device = torch.device(device)
                self.model = torch.compile(model) if settings.fused else model
                self.optim, self.feed, self.settings, self.hooks = optim, feed, settings, hooks
                self.count = passes(settings, 512)
            def put(self, batch):
                if self.device == "cuda":  # <- device-string
                    batch = [part.pin_memory() for part in batch]
                return [part.to(self.device) for part in batch]
            def loss(self, batch):
                ids, labels = self.put(batch)
                return self.model(ids, labels)
            def one_pass(self, batch):
                loss = self.loss(batch)
                loss.backward()  # <- accumulation
                return loss.detach()
            def step(self, stream):
                total = 0
                for _ in range(self.count):
                    total = total + self.one_pass(next(stream))
                self.optim.step()
                self.optim.zero_grad()
                return total / self.count
            def measure(self, rows):
                return sum(self.loss(batch) for batch in rows) / len(rows)  # <- eval-mode
            def fit(self, steps):
                stream = iter(self.feed)
                for step in range(steps):
                    loss = self.step(stream)
                    for hook in self.hooks:
                        hook.after_step(self, step, loss)
    """,
    "train.py": """
        from pathlib import Path
        import torch
        from lm.data import Feed
        from lm.hooks import Curve, HeldOut
        from lm.keep import Keeper
        from lm.model import build
        from lm.settings import Settings
        from lm.trainer import Trainer
        def main(rows, held_out):
            settings = Settings()
            torch.manual_seed(settings.seed)
            model = build()
            optim = torch.optim.AdamW(model.parameters(), lr=3e-4)
            trainer = Trainer(model, optim, Feed(rows, settings), settings, [Curve(settings), HeldOut(held_out)])
            Keeper(Path("out")).restore(trainer)
            trainer.fit(1000)
    """,
}
# faults whose place is a choice between the loop and what it calls: (kind, file, function)
ELSEWHERE = [("no-kv-cache", "lm/engine.py", "Engine.write"), ("compile", "lm/trainer.py", "Trainer.__init__")]

TEXTS = {name: textwrap.dedent(text) for name, text in PROGRAM.items()}
MARKS = [
    (line.rpartition("# <- ")[2], name, number)
    for name, text in TEXTS.items() for number, line in enumerate(text.splitlines(), 1) if MARK.search(line)
]  # fmt: skip


@pytest.fixture(scope="module")
def findings():
    return scan_texts(TEXTS).findings


@pytest.mark.parametrize(("kind", "path", "line"), MARKS)
def test_a_fault_over_files_is_found_at_its_place(findings, kind, path, line):
    mine = [one for one in findings if one.kind == kind]
    assert any(one.path == path and abs(one.line - line) <= NEAR for one in mine), mine


@pytest.mark.parametrize(("kind", "path", "function"), ELSEWHERE)
def test_a_fault_over_files_is_found_in_its_function(findings, kind, path, function):
    mine = [one for one in findings if one.kind == kind]
    assert any((one.path, one.function) == (path, function) for one in mine), mine


def test_the_way_from_the_loop_is_told(findings):
    sync = next(one for one in findings if one.path == "lm/hooks.py" and one.kind == "host-sync")
    assert any("reached by the call at lm/trainer.py" in words for words in sync.evidence)
    assert any("interval is 1" in words for words in sync.evidence)
