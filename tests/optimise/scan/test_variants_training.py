"""Faults of training in many spellings: over helpers, methods and files, and code that looks alike and is right."""

import pytest
from tests.optimise.scan.variants import Collection

TRAINING = Collection()
fault, right = TRAINING.fault, TRAINING.right

# --- accumulation -----------------------------------------------------------------------------------------------------
fault("accumulation", "the trainer's method steps each time", """
    class Trainer:
        def __init__(self, model, optimizer, accum_steps):
            self.model, self.optimizer, self.accum_steps = model, optimizer, accum_steps
        def update(self):
            self.optimizer.step()  # <-
            self.optimizer.zero_grad()
        def micro(self, batch):
            loss = self.model(batch) / self.accum_steps
            loss.backward()
            self.update()
        def run(self, loader):
            for batch in loader:
                self.micro(batch)
""")  # fmt: skip
fault("accumulation", "a helper computes the loss undivided", """
    import torch.nn.functional as F
    def loss_of(model, x, y):
        logits = model(x)
        return F.cross_entropy(logits.flatten(0, 1), y.flatten())
    def train(model, opt, loader, every):
        for i, (x, y) in enumerate(loader):
            loss = loss_of(model, x, y)
            loss.backward()  # <-
            if (i + 1) % every == 0:
                opt.step()
                opt.zero_grad()
""")  # fmt: skip
fault("accumulation", "divided in the helper and again outside", """
    def loss_of(model, batch, micro_steps):
        return model(batch) / micro_steps
    def step(model, opt, stream, micro_steps):
        opt.zero_grad()
        for _ in range(micro_steps):
            loss = loss_of(model, next(stream), micro_steps)
            (loss / micro_steps).backward()  # <-
        opt.step()
""")  # fmt: skip
fault("accumulation", "another number than that of the loop", """
    MICRO = 8
    def step(model, opt, stream):
        for _ in range(MICRO):
            loss = model(next(stream)) / 4
            loss.backward()  # <-
        opt.step()
        opt.zero_grad()
""")  # fmt: skip
fault("accumulation", "cleared by what runs forward and backward", """
    def forward_backward(model, opt, batch, n):
        opt.zero_grad(set_to_none=True)  # <-
        loss = model(batch) / n
        loss.backward()
        return loss.detach()
    def train(model, opt, batches, n):
        while True:
            for _ in range(n):
                forward_backward(model, opt, next(batches), n)
            opt.step()
""")  # fmt: skip
fault("accumulation", "pieces of a batch, a step after each", """
    def train(model, opt, loader, pieces):
        for batch in loader:
            for part in batch.chunk(pieces):
                loss = model(part) / pieces
                loss.backward()
                opt.step()  # <-
                opt.zero_grad()
""")  # fmt: skip
fault("accumulation", "gradients averaged over ranks for every piece", """
    import torch.distributed as dist
    def average(model, world):
        for p in model.parameters():
            dist.all_reduce(p.grad)  # <-
            p.grad /= world
    def step(model, opt, parts, world):
        opt.zero_grad()
        for micro in parts.split(4):
            (model(micro) / len(parts.split(4))).backward()
            average(model, world)
        opt.step()
""")  # fmt: skip
fault("accumulation", "wrapped in another file and never without exchange", """
    === wrap.py
    from torch.nn.parallel import DistributedDataParallel as DDP
    def wrap(model, device):
        return DDP(model.to(device), device_ids=[device])
    === train.py
    from wrap import wrap
    def train(model, opt, loader, accum, device):
        model = wrap(model, device)
        for i, batch in enumerate(loader):
            loss = model(batch) / accum
            loss.backward()  # <-
            if (i + 1) % accum == 0:
                opt.step()
                opt.zero_grad()
""")  # fmt: skip
fault("accumulation", "a counter kept by the object, the loss in full", """
    class Loop:
        def __init__(self, model, optim, window):
            self.model, self.optim, self.window, self.seen = model, optim, window, 0
        def feed(self, x, y):
            loss = self.model(x, y)
            loss.backward()  # <-
            self.seen += 1
            if self.seen == self.window:
                self.optim.step()
                self.optim.zero_grad()
                self.seen = 0
        def run(self, loader):
            for x, y in loader:
                self.feed(x, y)
""")  # fmt: skip
fault("accumulation", "clipped in a helper before it is unscaled", """
    import torch
    def clip(model):
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # <-
    def train(model, opt, loader, scaler):
        for batch in loader:
            scaler.scale(model(batch)).backward()
            clip(model)
            scaler.step(opt)
            scaler.update()
            opt.zero_grad()
""")  # fmt: skip
fault("accumulation", "nothing is named as it usually is", """
    import torch.nn.functional as F
    class Run:
        def __init__(self, f, o, every):
            self.f, self.o, self.every = f, o, every
        def one(self, x, y):
            z = self.f(x)
            F.cross_entropy(z.flatten(0, 1), y.flatten()).backward()  # <-
        def go(self, feed):
            for n, (x, y) in enumerate(feed):
                self.one(x, y)
                if (n + 1) % self.every == 0:
                    self.o.step()
                    self.o.zero_grad()
""")  # fmt: skip
fault("accumulation", "the counter is handed over", """
    class Run:
        def one(self, batch, last):
            loss = self.model(batch)
            loss.backward()  # <-
            if last:
                self.optimizer.step()
                self.optimizer.zero_grad()
        def go(self, loader, n):
            for i, batch in enumerate(loader):
                self.one(batch, last=(i + 1) % n == 0)
""")  # fmt: skip
fault("accumulation", "divided by the batches of an epoch", """
    def train(model, opt, loader, accum):
        for i, batch in enumerate(loader):
            (model(batch) / len(loader)).backward()  # <-
            if (i + 1) % accum == 0:
                opt.step()
                opt.zero_grad()
""")  # fmt: skip
right("accumulation", "divided by the number of pieces that the loop walks over", """
    def step(model, opt, parts):
        opt.zero_grad()
        for micro in parts:
            (model(micro) / len(parts)).backward()
        opt.step()
""")  # fmt: skip
right("accumulation", "a plain loop", """
    def train(model, opt, loader):
        for batch in loader:
            loss = model(batch)
            loss.backward()
            opt.step()
            opt.zero_grad()
""")  # fmt: skip
right("accumulation", "divided in the helper, stepped by a method behind a counter", """
    class Trainer:
        def __init__(self, model, opt, accum):
            self.model, self.opt, self.accum, self.micro = model, opt, accum, 0
        def loss(self, batch):
            return self.model(batch) / self.accum
        def maybe_step(self):
            self.micro += 1
            if self.micro % self.accum:
                return
            self.opt.step()
            self.opt.zero_grad()
        def run(self, loader):
            for batch in loader:
                self.loss(batch).backward()
                self.maybe_step()
""")  # fmt: skip
right("accumulation", "epochs around batches", """
    def one_epoch(model, opt, loader):
        for batch in loader:
            model(batch).backward()
            opt.step()
            opt.zero_grad()
    def train(model, opt, loader, epochs):
        for epoch in range(epochs):
            one_epoch(model, opt, loader)
""")  # fmt: skip
right("accumulation", "constants that agree", """
    MICRO = 4
    def step(model, opt, stream):
        opt.zero_grad()
        for _ in range(MICRO):
            (model(next(stream)) / MICRO).backward()
        opt.step()
""")  # fmt: skip

# --- small-batch ------------------------------------------------------------------------------------------------------
fault("small-batch", "settings in one file, accumulation in another", """
    === settings.py
    from dataclasses import dataclass
    @dataclass
    class Train:
        rows_per_pass: int = 2  # <-
        tokens_per_step: int = 524288
        width: int = 1024
    === train.py
    from settings import Train
    def plan(cfg: Train):
        accumulation = cfg.tokens_per_step // (cfg.rows_per_pass * cfg.width)
        return accumulation
""")  # fmt: skip
fault("small-batch", "a flag", """
    import argparse
    def flags():
        parser = argparse.ArgumentParser()
        parser.add_argument("--micro-batch-size", type=int, default=4)  # <-
        parser.add_argument("--grad-accum", type=int, default=16)
        return parser.parse_args()
""")  # fmt: skip
fault("small-batch", "a dict of settings", """
    CONFIG = {
        "optim": {"lr": 3e-4},
        "device_batch": 4,  # <-
        "accumulate": 32,
    }
""")  # fmt: skip
fault("small-batch", "a constant with a name of its own goes into the loader", """
    from torch.utils.data import DataLoader
    AT_ONCE = 3
    def train(model, opt, rows):
        loader = DataLoader(rows, batch_size=AT_ONCE, shuffle=True)  # <-
        for i, batch in enumerate(loader):
            loss = model(batch) / 20
            loss.backward()
            if (i + 1) % 20 == 0:
                opt.step()
                opt.zero_grad()
""")  # fmt: skip
fault("small-batch", "a large batch is cut into pieces of four", """
    PIECE = 4  # <-
    def step(model, opt, batch):
        opt.zero_grad()
        for begin in range(0, len(batch), PIECE):
            part = batch[begin:begin + PIECE]
            (model(part) * len(part) / len(batch)).backward()
        opt.step()
    def train(model, opt, loader):
        for batch in loader:
            step(model, opt, batch)
""")  # fmt: skip
fault("small-batch", "an argument at the call", """
    def batches(rows, batch_size, width):
        for begin in range(0, len(rows), batch_size):
            yield rows[begin:begin + batch_size]
    def train(model, opt, rows, accumulation_steps=64):
        for i, batch in enumerate(batches(rows, 2, 512)):  # <-
            (model(batch) / accumulation_steps).backward()
            if (i + 1) % accumulation_steps == 0:
                opt.step()
                opt.zero_grad()
""")  # fmt: skip
fault("small-batch", "from the environment with a default", """
    import os
    batch_size = int(os.environ.get("BATCH_SIZE", "4"))  # <-
    global_batch = 512
    accum_steps = global_batch // batch_size
""")  # fmt: skip
fault("small-batch", "settings with names of their own, handed to the loader", """
    === conf.py
    class Conf:
        at_once = 4  # <-
        passes = 32
    === train.py
    from torch.utils.data import DataLoader
    from conf import Conf
    class Run:
        def __init__(self, core, o, rows):
            self.core, self.o, self.conf = core, o, Conf()
            self.feed = DataLoader(rows, batch_size=self.conf.at_once, shuffle=True)
        def go(self):
            for n, (x, y) in enumerate(self.feed):
                (self.core(x, y) / self.conf.passes).backward()
                if (n + 1) % self.conf.passes == 0:
                    self.o.step()
                    self.o.zero_grad()
""")  # fmt: skip
right("small-batch", "a large micro-batch", """
    device_batch_size = 32
    total_batch_size = 524288
    accum = total_batch_size // (device_batch_size * 2048)
""")  # fmt: skip
right("small-batch", "no accumulation", """
    from torch.utils.data import DataLoader
    def train(model, opt, rows):
        for batch in DataLoader(rows, batch_size=4):
            model(batch).backward()
            opt.step()
            opt.zero_grad()
""")  # fmt: skip
right("small-batch", "an evaluation with few rows beside a training that accumulates", """
    === evaluate.py
    def evaluate(model, rows, batch_size=4):
        return [model(rows[i:i + batch_size]) for i in range(0, len(rows), batch_size)]
    === train.py
    from evaluate import evaluate
    accum_steps = 8
    device_batch_size = 64
""")  # fmt: skip

# --- compile ----------------------------------------------------------------------------------------------------------
fault("compile", "a trainer in parts, nowhere compiled", """
    === model.py
    import torch.nn as nn
    class TinyGPT(nn.Module):
        def forward(self, x, y):
            return self.loss(self.body(x), y)
    === trainer.py
    class Trainer:
        def __init__(self, model, opt):
            self.model, self.opt = model, opt
        def one(self, x, y):
            loss = self.model(x, y)
            loss.backward()
            self.opt.step()
            self.opt.zero_grad()
        def fit(self, loader):
            for x, y in loader:  # <-
                self.one(x, y)
    === main.py
    from model import TinyGPT
    from trainer import Trainer
    def main(loader, make_opt):
        model = TinyGPT()
        Trainer(model, make_opt(model)).fit(loader)
""")  # fmt: skip
fault("compile", "a network and an optimizer by other names", """
    import torch.nn.functional as F
    def go(f, o, feed):
        for x, y in feed:  # <-
            z = f(x)
            F.cross_entropy(z.flatten(0, 1), y.flatten()).backward()
            o.step()
            o.zero_grad()
""")  # fmt: skip
fault("compile", "the switch is off", """
    from dataclasses import dataclass
    import torch
    @dataclass
    class Config:
        compile: bool = False
    def train(model, opt, loader, cfg: Config):
        if cfg.compile:
            model = torch.compile(model)  # <-
        for batch in loader:
            model(batch).backward()
            opt.step()
            opt.zero_grad()
""")  # fmt: skip
fault("compile", "the result is thrown away", """
    import torch
    def train(model, opt, loader):
        torch.compile(model)  # <-
        for batch in loader:
            model(batch).backward()
            opt.step()
            opt.zero_grad()
""")  # fmt: skip
fault("compile", "the result is not what is trained", """
    import torch
    def train(model, opt, loader):
        fast = torch.compile(model)  # <-
        for batch in loader:
            loss = model(batch)
            loss.backward()
            opt.step()
            opt.zero_grad()
""")  # fmt: skip
fault("compile", "compiled again by what runs each step", """
    import torch
    def run(model, batch):
        step = torch.compile(model)  # <-
        return step(batch)
    def train(model, opt, loader):
        for batch in loader:
            run(model, batch).backward()
            opt.step()
            opt.zero_grad()
""")  # fmt: skip
fault("compile", "fixed shapes, and a collate in another file that pads", """
    === data.py
    from torch.nn.utils.rnn import pad_sequence
    def collate(rows):
        ids = pad_sequence([r["ids"] for r in rows], batch_first=True)
        labels = pad_sequence([r["labels"] for r in rows], batch_first=True, padding_value=-100)
        return ids, labels
    === train.py
    import torch
    from torch.utils.data import DataLoader
    from data import collate
    def train(model, opt, rows):
        model = torch.compile(model, dynamic=False)  # <-
        for ids, labels in DataLoader(rows, collate_fn=collate):
            model(ids, labels).backward()
            opt.step()
            opt.zero_grad()
""")  # fmt: skip
fault("compile", "cut to a width by chance", """
    import random
    import torch
    def train(model, opt, loader):
        model = torch.compile(model)  # <-
        for x, y in loader:
            width = random.randint(64, 512)
            loss = model(x[:, :width], y[:, :width])
            loss.backward()
            opt.step()
            opt.zero_grad()
""")  # fmt: skip
fault("compile", "a width that grows with the step", """
    import torch
    def train(model, opt, loader):
        model = torch.compile(model)  # <-
        for step, (x, y) in enumerate(loader):
            width = min(1024, 64 + step // 10)
            model(x[:, :width], y[:, :width]).backward()
            opt.step()
            opt.zero_grad()
""")  # fmt: skip
right("compile", "compiled by what builds the model", """
    === build.py
    import torch
    def build(config):
        model = make(config)
        return torch.compile(model)
    === train.py
    from build import build
    def train(config, opt, loader):
        model = build(config)
        for batch in loader:
            model(batch).backward()
            opt.step()
            opt.zero_grad()
""")  # fmt: skip
right("compile", "the step is compiled", """
    import torch
    def loss_of(model, batch):
        return model(batch)
    compiled = torch.compile(loss_of)
    def train(model, opt, loader):
        for batch in loader:
            compiled(model, batch).backward()
            opt.step()
            opt.zero_grad()
""")  # fmt: skip
right("compile", "compiled at the first use", """
    import torch
    class Trainer:
        def __init__(self, model, opt):
            self.model, self.opt, self.fast = model, opt, None
        def one(self, batch):
            if self.fast is None:
                self.fast = torch.compile(self.model)
            self.fast(batch).backward()
            self.opt.step()
            self.opt.zero_grad()
        def fit(self, loader):
            for batch in loader:
                self.one(batch)
""")  # fmt: skip

# --- padding ----------------------------------------------------------------------------------------------------------
fault("padding", "a helper fills one row", """
    import torch
    IGNORE = -100
    def widen(row, width, filler):
        return row + [filler] * (width - len(row))  # <-
    def collate(rows):
        width = max(len(r["ids"]) for r in rows)
        ids = torch.tensor([widen(r["ids"], width, 0) for r in rows])
        labels = torch.tensor([widen(r["labels"], width, IGNORE) for r in rows])
        return ids, labels
""")  # fmt: skip
fault("padding", "a collator class", """
    import torch
    class Collate:
        def __init__(self, pad_id):
            self.pad_id = pad_id
        def width(self, rows):
            return max(r.size(0) for r in rows)
        def __call__(self, rows):
            out = torch.full((len(rows), self.width(rows)), self.pad_id)  # <-
            labels = torch.full_like(out, -100)
            for i, row in enumerate(rows):
                out[i, : len(row)] = row
                labels[i, : len(row)] = row
            return out, labels
""")  # fmt: skip
fault("padding", "rows are extended one token at a time", """
    def fit(row, length, pad_token):
        while len(row) < length:  # <-
            row.append(pad_token)
        return row
    def encode(example, tokenizer, length):
        ids = fit(tokenizer.encode(example["text"]), length, 0)
        labels = [t if t != 0 else -100 for t in ids]
        return {"input_ids": ids, "labels": labels}
""")  # fmt: skip
fault("padding", "the tokenizer pads, labels are made elsewhere", """
    === encode.py
    def encode(tokenizer, texts):
        return tokenizer(texts, padding="longest", truncation=True, return_tensors="pt")  # <-
    === sft.py
    from encode import encode
    def batch(tokenizer, texts):
        enc = encode(tokenizer, texts)
        labels = enc["input_ids"].clone()
        labels[enc["attention_mask"] == 0] = -100
        return enc, labels
""")  # fmt: skip
fault("padding", "zip_longest over the rows", """
    from itertools import zip_longest
    import torch
    def collate(rows):
        ids = list(zip(*zip_longest(*[r.ids for r in rows], fillvalue=0)))  # <-
        labels = list(zip(*zip_longest(*[r.labels for r in rows], fillvalue=-100)))
        return torch.tensor(ids), torch.tensor(labels)
""")  # fmt: skip
fault("padding", "F.pad with a gap computed before", """
    import torch
    import torch.nn.functional as F
    def batch(rows, longest):
        ids, labels = [], []
        for row in rows:
            gap = longest - row.size(0)
            ids.append(F.pad(row, (0, gap)))  # <-
            labels.append(F.pad(row, (0, gap), value=-100))
        return torch.stack(ids), torch.stack(labels)
""")  # fmt: skip
fault("padding", "a buffer of fixed width that is filled in part", """
    import numpy as np
    class Rows:
        def __getitem__(self, i):
            ids = self.rows[i]
            x = np.zeros(self.width, dtype=np.int64)  # <-
            y = np.full(self.width, -100)
            x[: len(ids)] = ids
            y[: len(ids)] = ids
            return {"input_ids": x, "labels": y}
""")  # fmt: skip
fault("padding", "a library's collator", """
    from transformers import DataCollatorForSeq2Seq
    from torch.utils.data import DataLoader
    def loader(rows, tokenizer):
        collate = DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=-100)  # <-
        return DataLoader(rows, batch_size=32, collate_fn=collate)
""")  # fmt: skip
right("padding", "prompts are padded to generate together", """
    import torch
    def left_pad(prompts, pad_id):
        width = max(len(p) for p in prompts)
        return torch.tensor([[pad_id] * (width - len(p)) + p for p in prompts])
""")  # fmt: skip
right("padding", "rows are cut from one stream", """
    import torch
    def rows(stream, width):
        targets = stream[1:]
        labels = torch.where(targets == 0, -100, targets)
        n = len(labels) // width
        return stream[: n * width].view(n, width), labels[: n * width].view(n, width)
""")  # fmt: skip

# --- eval-mode --------------------------------------------------------------------------------------------------------
MODEL = """
    === net.py
    import torch.nn as nn
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop = nn.Dropout(0.1)
        def forward(self, x, y=None):
            return self.head(self.drop(self.body(x)))
"""
fault("eval-mode", "a helper runs the model", """
    def batch_loss(model, x, y, criterion):
        return criterion(model(x), y)
    def validate(model, loader, criterion):
        model.eval()
        total = 0.0
        for x, y in loader:
            total += batch_loss(model, x, y, criterion)  # <-
        model.train()
        return total / len(loader)
""")  # fmt: skip
fault("eval-mode", "by the rows and not by the name", """
    class Trainer:
        def measure(self):
            self.model.eval()
            total = 0
            for x, y in self.val_loader:
                total += self.model(x, y)  # <-
            self.model.train()
            return total / len(self.val_loader)
""")  # fmt: skip
fault("eval-mode", "no_grad is called and not entered", """
    import torch
    def evaluate(model, loader):
        torch.no_grad()
        losses = []
        for x, y in loader:
            losses.append(model(x, y))  # <-
        return torch.stack(losses).mean()
""")  # fmt: skip
fault("eval-mode", "left in eval mode by a method", """
    import torch
    class Trainer:
        @torch.no_grad()
        def check(self):
            self.model.eval()  # <-
            return self.model(self.rows).mean()
        def run(self, loader, opt):
            self.model.train()
            for step, batch in enumerate(loader):
                loss = self.model(batch)
                loss.backward()
                opt.step()
                opt.zero_grad()
                if step % 500 == 0:
                    self.check()
""")  # fmt: skip
fault("eval-mode", "a generation with gradients on", """
    import torch
    class Engine:
        def __init__(self, model):
            self.model = model
        def tokens(self, ids, cache, n):
            for _ in range(n):
                logits = self.model(ids, cache=cache)  # <-
                ids = torch.multinomial(logits[:, -1].softmax(-1), 1)
                yield ids
""")  # fmt: skip
fault("eval-mode", "a probe of held-out text in another file", """
    === held_out.py
    def bits_per_byte(model, rows):
        total, count = 0.0, 0
        for x, y, size in rows:
            total = total + model(x, y)  # <-
            count += size
        return total / count
    === train.py
    from held_out import bits_per_byte
    def train(model, opt, loader, rows):
        for step, (x, y) in enumerate(loader):
            model(x, y).backward()
            opt.step()
            opt.zero_grad()
            if step % 50 == 0:
                print(bits_per_byte(model, rows))
""")  # fmt: skip
right("eval-mode", "gradients are off at the caller", """
    import torch
    def batch_loss(model, x, y):
        return model(x, y)
    @torch.no_grad()
    def validate(model, loader):
        model.eval()
        out = sum(batch_loss(model, x, y) for x, y in loader)
        model.train()
        return out
""")  # fmt: skip
right("eval-mode", "a mode that is put back", MODEL + """
    === train.py
    import torch
    from net import Net
    @torch.inference_mode()
    def validate(model, rows):
        was = model.training
        model.eval()
        loss = sum(model(x, y).mean() for x, y in rows)
        model.train(was)
        return loss
    def train(opt, loader, rows):
        model = Net()
        for x, y in loader:
            model(x, y).mean().backward()
            opt.step()
            opt.zero_grad()
        return validate(model, rows)
""")  # fmt: skip
right("eval-mode", "a loss that is trained on", """
    def score(model, x, y):
        return model(x, y)
    def train(model, opt, loader):
        for x, y in loader:
            loss = score(model, x, y)
            loss.backward()
            opt.step()
            opt.zero_grad()
""")  # fmt: skip

# --- recast -----------------------------------------------------------------------------------------------------------
fault("recast", "a helper casts the weight that it is handed", """
    import torch.nn as nn
    import torch.nn.functional as F
    def product(x, weight):
        return F.linear(x, weight.to(x.dtype))  # <-
    class Head(nn.Module):
        def forward(self, x):
            return product(x, self.weight)
""")  # fmt: skip
fault("recast", "a parameter under its own name", """
    import torch
    import torch.nn as nn
    class Projection(nn.Module):
        def __init__(self, a, b):
            super().__init__()
            self.table = nn.Parameter(torch.empty(a, b))
        def forward(self, x):
            return x @ self.table.to(torch.bfloat16)  # <-
""")  # fmt: skip
fault("recast", "masters are copied down at every micro-batch", """
    import torch
    def refresh(model, masters):
        for p, master in zip(model.parameters(), masters):
            p.data.copy_(master.to(torch.bfloat16))  # <-
    def train(model, masters, opt, loader):
        for batch in loader:
            refresh(model, masters)
            loss = model(batch)
            loss.backward()
            opt.step()
""")  # fmt: skip
fault("recast", "the model is cast for each token", """
    import torch
    def decode(model, ids, cache, n):
        for _ in range(n):
            model = model.half()  # <-
            ids = torch.multinomial(model(ids, cache=cache)[:, -1].softmax(-1), 1)
        return ids
""")  # fmt: skip
fault("recast", "the loss takes all logits in fp32, in a helper", """
    import torch.nn.functional as F
    def token_loss(logits, targets):
        logits = logits.float()  # <-
        return F.cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1))
    class LM:
        def forward(self, x, y):
            return token_loss(self.lm_head(self.trunk(x)), y)
""")  # fmt: skip
fault("recast", "a state dict in another format for every step", """
    import torch
    from torch.func import functional_call
    def forward(model, batch):
        low = {name: value.bfloat16() for name, value in model.state_dict().items()}  # <-
        return functional_call(model, low, (batch,))
    def train(model, opt, loader):
        for batch in loader:
            forward(model, batch).backward()
            opt.step()
            opt.zero_grad()
""")  # fmt: skip
right("recast", "cast once before the loop", """
    import torch
    def decode(model, ids, cache, n):
        model = model.to(torch.bfloat16)
        for _ in range(n):
            ids = model(ids, cache=cache)[:, -1].argmax(-1, keepdim=True)
        return ids
""")  # fmt: skip
right("recast", "the last position only", """
    import torch.nn.functional as F
    def next_logprobs(logits):
        return F.log_softmax(logits[:, -1].float(), -1)
""")  # fmt: skip
right("recast", "an input is cast, not a weight", """
    import torch.nn as nn
    import torch.nn.functional as F
    class Norm(nn.Module):
        def forward(self, x):
            return F.rms_norm(x.float(), (x.size(-1),)).to(x.dtype) * self.weight
""")  # fmt: skip


@pytest.mark.parametrize("variant", TRAINING.variants, ids=lambda v: f"{v.kind}: {v.name}")
def test_variant_of_a_fault_is_found_and_a_near_miss_is_not(variant):
    assert bool(variant.found()) == variant.fault, variant.found()
