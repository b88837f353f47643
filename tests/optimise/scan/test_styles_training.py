"""Faults of training as different people write them: plain scripts, trainers, libraries' loops, comprehensions."""

from tests.optimise.scan.variants import Collection

STYLES = Collection()
fault, right = STYLES.fault, STYLES.right

# --- accumulation -----------------------------------------------------------------------------------------------------
fault("accumulation", "a comprehension over micro-batches whose helper clears", """
    def one(net, opt, part, n):
        opt.zero_grad()  # <-
        loss = net(*part) / n
        loss.backward()
        return loss.detach()
    def update(net, opt, micro_batches):
        losses = [one(net, opt, part, len(micro_batches)) for part in micro_batches]
        opt.step()
        return sum(losses)
""")  # fmt: skip
fault("accumulation", "a helper that does a whole step, in a loop over micro-batches", """
    === steps.py
    def learn(model, opt, batch, scale):
        opt.zero_grad(set_to_none=True)
        loss = model(*batch) * scale
        loss.backward()
        opt.step()
        return loss.detach()
    === main.py
    from steps import learn
    GRAD_ACCUM = 8
    def main(model, opt, stream):
        for _ in range(1000):
            for _ in range(GRAD_ACCUM):
                learn(model, opt, next(stream), 1 / GRAD_ACCUM)  # <-
""")  # fmt: skip
fault("accumulation", "manual optimisation in a module of Lightning", """
    import pytorch_lightning as pl
    class Lit(pl.LightningModule):
        def __init__(self, net, accumulate):
            super().__init__()
            self.automatic_optimization = False
            self.net, self.accumulate = net, accumulate
        def training_step(self, batch, batch_idx):
            opt = self.optimizers()
            loss = self.net(batch) / self.accumulate
            self.manual_backward(loss)
            opt.step()  # <-
            opt.zero_grad()
            return loss
""")  # fmt: skip
fault("accumulation", "a while loop that counts micro-batches", """
    def step(model, opt, stream, micro_steps):
        done = 0
        while done < micro_steps:
            x, y = next(stream)
            loss = model(x, y)
            loss.backward()  # <-
            done += 1
        opt.step()
        opt.zero_grad()
""")  # fmt: skip
fault("accumulation", "the schedule moves on with every micro-batch", """
    def train(model, opt, sched, loader, accum):
        for i, batch in enumerate(loader):
            (model(batch) / accum).backward()
            sched.step()  # <-
            if (i + 1) % accum == 0:
                opt.step()
                opt.zero_grad()
""")  # fmt: skip
fault("accumulation", "gradients are clipped at every micro-batch", """
    import torch
    def train(model, opt, loader, accum):
        for i, batch in enumerate(loader, 1):
            loss = model(batch) / accum
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # <-
            if i % accum == 0:
                opt.step()
                opt.zero_grad()
""")  # fmt: skip
fault("accumulation", "divided by the number of rows of the micro-batch", """
    def train(model, opt, loader, accum_steps):
        for i, (x, y) in enumerate(loader):
            loss = model(x, y) / x.size(0)
            loss.backward()  # <-
            if (i + 1) % accum_steps == 0:
                opt.step()
                opt.zero_grad()
""")  # fmt: skip
fault("accumulation", "an engine's own all_reduce between the micro-batches", """
    import torch.distributed as dist
    class Runner:
        def sync(self):
            for p in self.model.parameters():
                if p.grad is not None:
                    dist.all_reduce(p.grad)  # <-
        def step(self, micros):
            for micro in micros:
                loss = self.model(micro) / len(micros)
                loss.backward()
                self.sync()
            self.optim.step()
            self.optim.zero_grad()
""")  # fmt: skip
right("accumulation", "a scheduler behind the same test as the optimizer", """
    def train(model, opt, sched, loader, accum):
        for i, batch in enumerate(loader):
            (model(batch) / accum).backward()
            if (i + 1) % accum == 0:
                opt.step()
                sched.step()
                opt.zero_grad()
""")  # fmt: skip
right("accumulation", "an accelerator that accumulates by itself", """
    def train(model, optimizer, loader, accelerator, scheduler):
        for batch in loader:
            with accelerator.accumulate(model):
                loss = model(**batch).loss
                accelerator.backward(loss)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
""")  # fmt: skip
right("accumulation", "a comprehension whose helper only adds gradients", """
    def one(net, part, n):
        loss = net(*part) / n
        loss.backward()
        return loss.detach()
    def update(net, opt, micro_batches):
        losses = [one(net, part, len(micro_batches)) for part in micro_batches]
        opt.step()
        opt.zero_grad()
        return sum(losses)
""")  # fmt: skip

# --- small-batch ------------------------------------------------------------------------------------------------------
fault("small-batch", "a settings dict of an engine", """
    SETTINGS = {
        "train_micro_batch_size_per_gpu": 2,  # <-
        "gradient_accumulation_steps": 32,
        "fp16": {"enabled": True},
    }
""")  # fmt: skip
fault("small-batch", "B and T as people write them", """
    import torch
    total_batch_size = 524288
    B, T = 4, 1024  # <-
    grad_accum_steps = total_batch_size // (B * T)
    def train(model, opt, loader):
        for step in range(100):
            for micro in range(grad_accum_steps):
                x, y = loader.next_batch()
                loss = model(x, y) / grad_accum_steps
                loss.backward()
            opt.step()
            opt.zero_grad()
""")  # fmt: skip
fault("small-batch", "rows drawn by a loader's own count", """
    import random, torch
    class Feed:
        def __init__(self, ids, width, rows):
            self.ids, self.width, self.rows = ids, width, rows
        def draw(self):
            at = [random.randrange(len(self.ids) - self.width) for _ in range(self.rows)]
            return torch.stack([self.ids[i:i + self.width] for i in at])
    def main(model, opt, ids, micro=16):
        feed = Feed(ids, 256, 2)  # <-
        for _ in range(1000):
            for _ in range(micro):
                (model(feed.draw()) / micro).backward()
            opt.step()
            opt.zero_grad()
""")  # fmt: skip
fault("small-batch", "a typed command line", """
    import typer
    def main(batch_size: int = typer.Option(2), accumulate: int = 16):  # <-
        for i, batch in enumerate(make(batch_size)):
            loss = model(batch) / accumulate
            loss.backward()
            if (i + 1) % accumulate == 0:
                opt.step()
                opt.zero_grad()
    typer.run(main)
""")  # fmt: skip
fault("small-batch", "rows cut into pieces by a tool", """
    from itertools import batched
    def step(model, opt, rows, collate):
        pieces = list(batched(rows, 4))
        for part in batched(rows, 4):  # <-
            loss = model(collate(part)) / len(pieces)
            loss.backward()
        opt.step()
        opt.zero_grad()
""")  # fmt: skip
fault("small-batch", "a trainer of Lightning", """
    import lightning as L
    from torch.utils.data import DataLoader
    def main(model, data):
        loader = DataLoader(data, batch_size=4, num_workers=2)  # <-
        trainer = L.Trainer(max_epochs=1, accumulate_grad_batches=16)
        trainer.fit(model, loader)
""")  # fmt: skip
right("small-batch", "small rows for a sampler beside training", """
    import argparse
    p = argparse.ArgumentParser()
    p.add_argument("--device-batch-size", type=int, default=64)
    p.add_argument("--grad-accum", type=int, default=8)
    p.add_argument("--sample-rows", type=int, default=4)
""")  # fmt: skip

# --- compile ----------------------------------------------------------------------------------------------------------
fault("compile", "a module of Lightning that nobody compiles", """
    import lightning as L
    import torch
    class Lit(L.LightningModule):
        def __init__(self, net):
            super().__init__()
            self.net = net
        def training_step(self, batch, i):
            x, y = batch
            return torch.nn.functional.cross_entropy(self.net(x).flatten(0, 1), y.flatten())
        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=3e-4)
    def main(net, loader):
        trainer = L.Trainer(max_epochs=1)
        trainer.fit(Lit(net), loader)  # <-
""")  # fmt: skip
fault("compile", "arguments of a trainer without compile", """
    from transformers import AutoModelForCausalLM, Trainer, TrainingArguments
    def main(name, data):
        args = TrainingArguments(output_dir="out", per_device_train_batch_size=32, bf16=True)  # <-
        model = AutoModelForCausalLM.from_pretrained(name)
        Trainer(model=model, args=args, train_dataset=data).train()
""")  # fmt: skip
fault("compile", "a decorated step that gets a longer text at every call", """
    import torch
    @torch.compile
    def next_logits(model, ids):
        return model(ids)[:, -1]
    @torch.inference_mode()
    def write(model, ids, n):
        for _ in range(n):
            logits = next_logits(model, ids)  # <-
            ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], 1)
        return ids
""")  # fmt: skip
fault("compile", "backend eager", """
    import torch
    def train(model, opt, loader):
        model = torch.compile(model, backend="eager")  # <-
        for x, y in loader:
            loss = model(x, y)
            loss.backward()
            opt.step()
            opt.zero_grad()
""")  # fmt: skip
fault("compile", "rows as long as the longest, under another name for labels", """
    import torch
    def collate(rows):
        width = max(map(len, rows))
        a = torch.full((len(rows), width), 0)
        b = torch.full((len(rows), width), -100)
        for i, r in enumerate(rows):
            a[i, :len(r)] = r
            b[i, :len(r)] = r
        return a, b
    def train(model, opt, data):
        step = torch.compile(model, fullgraph=True)  # <-
        for rows in data:
            a, b = collate(rows)
            loss = step(a, b)
            loss.backward()
            opt.step()
            opt.zero_grad()
""")  # fmt: skip
fault("compile", "switched off by the environment", """
    import os
    os.environ["TORCHDYNAMO_DISABLE"] = "1"
    import torch
    def train(model, opt, loader):
        model = torch.compile(model)  # <-
        for x, y in loader:
            loss = model(x, y)
            loss.backward()
            opt.step()
            opt.zero_grad()
""")  # fmt: skip
fault("compile", "another width at every step by chance", """
    import random, torch
    def train(model, opt, get_batch, steps):
        fast = torch.compile(model)  # <-
        for _ in range(steps):
            width = random.choice([128, 192, 256, 384, 512])
            x, y = get_batch(8, width)
            loss = fast(x, y)
            loss.backward()
            opt.step()
            opt.zero_grad()
""")  # fmt: skip
right("compile", "arguments of a trainer with compile", """
    from transformers import Trainer, TrainingArguments
    def main(model, data):
        args = TrainingArguments(output_dir="out", per_device_train_batch_size=32, torch_compile=True)
        Trainer(model=model, args=args, train_dataset=data).train()
""")  # fmt: skip
right("compile", "a module of Lightning that is compiled where it is made", """
    import lightning as L
    import torch
    class Lit(L.LightningModule):
        def training_step(self, batch, i):
            return self.net(batch)
    def main(loader):
        model = torch.compile(Lit())
        L.Trainer(max_epochs=1).fit(model, loader)
""")  # fmt: skip

# --- padding ----------------------------------------------------------------------------------------------------------
fault("padding", "a tokenizer called with padding and labels copied from it", """
    def collate(rows, tok):
        batch = tok([r["text"] for r in rows], padding="longest", return_tensors="pt")  # <-
        batch["labels"] = batch["input_ids"].clone()
        batch["labels"][batch["attention_mask"] == 0] = -100
        return batch
""")  # fmt: skip
fault("padding", "numpy rows of one width", """
    import numpy as np
    def to_rows(examples, width):
        x = np.zeros((len(examples), width), dtype=np.int64)  # <-
        y = np.full((len(examples), width), -100)
        for i, e in enumerate(examples):
            n = min(len(e), width)
            x[i, :n] = e[:n]
            y[i, :n] = e[:n]
        return x, y
""")  # fmt: skip
fault("padding", "a library told not to pack", """
    from trl import SFTConfig, SFTTrainer
    def main(model, data):
        config = SFTConfig(output_dir="out", max_length=4096, packing=False)  # <-
        SFTTrainer(model, args=config, train_dataset=data).train()
""")  # fmt: skip
fault("padding", "a dataset that pads each item to the maximum", """
    import torch
    from torch.utils.data import Dataset
    class Chats(Dataset):
        def __getitem__(self, i):
            ids = self.rows[i][: self.max_len]
            pad = self.max_len - len(ids)
            x = torch.tensor(ids + [self.pad_id] * pad)  # <-
            labels = torch.tensor(ids + [-100] * pad)
            return x, labels
""")  # fmt: skip
right("padding", "prompts of a server, padded on the left", """
    import torch
    def batch_prompts(prompts, pad):
        width = max(len(p) for p in prompts)
        return torch.tensor([[pad] * (width - len(p)) + p for p in prompts])
""")  # fmt: skip

# --- host-sync --------------------------------------------------------------------------------------------------------
fault("host-sync", "a meter that takes keywords", """
    class Curve:
        def __init__(self):
            self.rows = {}
        def put(self, **numbers):
            for name, value in numbers.items():
                self.rows.setdefault(name, []).append(float(value))
    def train(model, opt, loader):
        curve = Curve()
        for batch in loader:
            loss = model(batch)
            loss.backward()
            opt.step()
            opt.zero_grad()
            curve.put(loss=loss.detach())  # <-
        return curve
""")  # fmt: skip
fault("host-sync", "a number helper in another file", """
    === tools.py
    def number(t):
        return t.detach().cpu().item()
    === train.py
    from tools import number
    def train(model, opt, loader):
        seen = []
        for batch in loader:
            loss = model(batch)
            loss.backward()
            opt.step()
            opt.zero_grad()
            seen.append(number(loss))  # <-
""")  # fmt: skip
fault("host-sync", "hits are counted at every batch", """
    def train(model, opt, loader, criterion):
        hits = 0
        for x, y in loader:
            out = model(x)
            loss = criterion(out, y)
            loss.backward()
            opt.step()
            opt.zero_grad()
            hits += (out.argmax(-1) == y).sum().item()  # <-
""")  # fmt: skip
fault("host-sync", "tokens of a batch that was copied to the device", """
    def train(model, opt, loader, device):
        tokens = 0
        for x, y in loader:
            x, y = x.to(device), y.to(device)
            loss = model(x, y)
            loss.backward()
            opt.step()
            opt.zero_grad()
            tokens += (y != -100).sum().item()  # <-
""")  # fmt: skip
fault("host-sync", "the norm of every parameter's gradient", """
    def train(model, opt, loader):
        for batch in loader:
            loss = model(batch)
            loss.backward()
            total = 0.0
            for p in model.parameters():
                if p.grad is not None:
                    total += p.grad.norm().item() ** 2  # <-
            opt.step()
            opt.zero_grad()
""")  # fmt: skip
fault("host-sync", "the best loss so far by min()", """
    import torch.nn.functional as F
    def train(model, opt, loader):
        best = float("inf")
        for x, y in loader:
            loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten())
            loss.backward()
            opt.step()
            opt.zero_grad()
            best = min(best, loss)  # <-
""")  # fmt: skip
fault("host-sync", "a percent sign", """
    import sys
    def train(model, opt, loader):
        for n, batch in enumerate(loader):
            loss = model(batch)
            loss.backward()
            opt.step()
            opt.zero_grad()
            sys.stderr.write("%d %.4f\\n" % (n, loss))  # <-
""")  # fmt: skip
fault("host-sync", "a step of a library's trainer", """
    import pytorch_lightning as pl
    class Lit(pl.LightningModule):
        def training_step(self, batch, i):
            loss = self.model(batch)
            self.history.append(loss.item())  # <-
            return loss
""")  # fmt: skip
fault("host-sync", "one step in a function that somebody else calls", """
    def train_step(model, opt, batch):
        loss = model(batch)
        loss.backward()
        opt.step()
        opt.zero_grad()
        return loss.item()  # <-
""")  # fmt: skip
fault("host-sync", "emptied at every step", """
    import torch
    def train(model, opt, loader):
        for batch in loader:
            loss = model(batch)
            loss.backward()
            opt.step()
            opt.zero_grad()
            torch.cuda.empty_cache()  # <-
""")  # fmt: skip
fault("host-sync", "once for each update of an accumulating trainer", """
    class Trainer:
        def update(self):
            for _ in range(self.cfg.micro_steps):
                loss = self.net(*next(self.stream)) / self.cfg.micro_steps
                loss.backward()
            self.opt.step()
            self.opt.zero_grad()
            return loss.detach()
        def fit(self):
            for n in range(self.cfg.updates):
                self.curve.append(self.update().item())  # <-
""")  # fmt: skip
fault("host-sync", "a stop test on the device at every token", """
    import torch
    @torch.no_grad()
    def generate(model, ids, eos, n):
        past = None
        tok = ids
        for _ in range(n):
            logits, past = model(tok, past=past)
            tok = logits[:, -1].argmax(-1, keepdim=True)
            ids = torch.cat([ids, tok], 1)
            if (tok == eos).all():  # <-
                break
        return ids
""")  # fmt: skip
fault("host-sync", "a look at the mask inside a layer", """
    import torch
    from torch import nn
    class Block(nn.Module):
        def forward(self, x, mask):
            if mask.any():  # <-
                x = x.masked_fill(mask, 0)
            return x
""")  # fmt: skip
right("host-sync", "the shape of a batch", """
    def train(model, opt, loader, device):
        tokens = 0
        for x, y in loader:
            x = x.to(device)
            loss = model(x, y.to(device))
            loss.backward()
            opt.step()
            opt.zero_grad()
            tokens += int(x.shape[0]) * int(x.size(1))
""")  # fmt: skip
right("host-sync", "a dict of numbers of the host", """
    import time
    def train(model, opt, loader, log):
        for n, batch in enumerate(loader):
            begin = time.time()
            loss = model(batch)
            loss.backward()
            opt.step()
            opt.zero_grad()
            stats = {"loss": loss.detach(), "n": n, "seconds": time.time() - begin}
            print(f"{stats['n']} {stats['seconds']:.3f}")
""")  # fmt: skip

# --- eval-mode --------------------------------------------------------------------------------------------------------
fault("eval-mode", "a service that scores", """
    import torch
    from torch import nn
    class Head(nn.Module):
        def __init__(self, trunk):
            super().__init__()
            self.trunk, self.drop, self.out = trunk, nn.Dropout(0.1), nn.Linear(8, 1)
        def forward(self, x):
            return self.out(self.drop(self.trunk(x)))
    class Judge:
        def __init__(self, trunk):
            self.head = Head(trunk)
        def rate(self, x):
            return self.head(x).detach().cpu().tolist()  # <-
""")  # fmt: skip
fault("eval-mode", "measured between eval and train, with gradients on", """
    import torch
    import torch.nn.functional as F
    def loss_of(net, b):
        return F.cross_entropy(net(b[0]).flatten(0, 1), b[1].flatten())
    def check(net, batches):
        net.eval()
        losses = torch.stack([loss_of(net, b) for b in batches])  # <-
        net.train()
        return losses.mean()
""")  # fmt: skip
fault("eval-mode", "a script that predicts", """
    import sys, torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    tok = AutoTokenizer.from_pretrained(sys.argv[1])
    model = AutoModelForSequenceClassification.from_pretrained(sys.argv[1])
    model.eval()
    for line in sys.stdin:
        out = model(**tok(line, return_tensors="pt"))  # <-
        print(out.logits.argmax(-1).item())
""")  # fmt: skip
fault("eval-mode", "accuracy without eval", """
    import torch
    def accuracy(classifier, batches):
        hits, n = 0, 0
        with torch.no_grad():
            for x, y in batches:
                hits += (classifier(x).argmax(-1) == y).sum().item()  # <-
                n += len(y)
        return hits / n
    def fit(classifier, train, held, opt, loss_fn):
        for x, y in train:
            loss_fn(classifier(x), y).backward()
            opt.step()
            opt.zero_grad()
        print(accuracy(classifier, held))
""")  # fmt: skip
fault("eval-mode", "stays in eval after samples are shown", """
    import torch
    @torch.no_grad()
    def show(model, ids):
        model.eval()  # <-
        print(model.generate(ids))
    def train(model, loader, opt, ids):
        model.train()
        for step, batch in enumerate(loader):
            loss = model(batch)
            loss.backward()
            opt.step()
            opt.zero_grad()
            if step % 500 == 0:
                show(model, ids)
""")  # fmt: skip
fault("eval-mode", "losses are added up with their graphs", """
    def validation_loss(model, loader):
        model.eval()
        total = 0
        for x, y in loader:
            total += model(x, y)  # <-
        model.train()
        return total / len(loader)
""")  # fmt: skip
fault("eval-mode", "eval without a call", """
    import torch
    @torch.no_grad()
    def score(model, batches):
        model.eval  # <-
        return [model(b).mean().item() for b in batches]
""")  # fmt: skip
fault("eval-mode", "only the outermost flag", """
    import torch
    @torch.no_grad()
    def score(model, batches):
        model.training = False  # <-
        return [model(b).mean().item() for b in batches]
""")  # fmt: skip
right("eval-mode", "a block of the project's own that switches both", """
    import contextlib, torch
    @contextlib.contextmanager
    def inference(model):
        was = model.training
        model.eval()
        with torch.no_grad():
            yield
        model.train(was)
    def check(model, batches):
        with inference(model):
            return [model(b).argmax(-1).tolist() for b in batches]
""")  # fmt: skip
right("eval-mode", "a decorator of the project's own", """
    import functools, torch
    def frozen(fn):
        @functools.wraps(fn)
        def run(*args, **kwargs):
            with torch.inference_mode():
                return fn(*args, **kwargs)
        return run
    @frozen
    def predict(model, x):
        return model(x).argmax(-1).tolist()
""")  # fmt: skip

# --- recast -----------------------------------------------------------------------------------------------------------
fault("recast", "log-probabilities of all positions in fp32", """
    import torch
    def logprobs(model, ids):
        logits = model(ids[:, :-1])
        lp = torch.log_softmax(logits.to(torch.float32), -1)  # <-
        return lp.gather(-1, ids[:, 1:, None]).squeeze(-1)
""")  # fmt: skip
fault("recast", "the head in fp32 at every pass", """
    import torch.nn as nn
    import torch.nn.functional as F
    class LM(nn.Module):
        def forward(self, x):
            h = self.trunk(x)
            return F.linear(h.float(), self.head.weight.float())  # <-
""")  # fmt: skip
fault("recast", "autocast that keeps no casts", """
    import torch
    def train(model, opt, loader):
        for batch in loader:
            with torch.autocast("cuda", dtype=torch.bfloat16, cache_enabled=False):  # <-
                loss = model(batch)
            loss.backward()
            opt.step()
            opt.zero_grad()
""")  # fmt: skip
fault("recast", "logits cast by keyword of the softmax", """
    import torch
    def token_logps(model, ids):
        logits = model(ids).logits
        return torch.log_softmax(logits, dim=-1, dtype=torch.float32).gather(2, ids.unsqueeze(2))  # <-
""")  # fmt: skip
right("recast", "a norm in fp32", """
    import torch
    import torch.nn as nn
    class Norm(nn.Module):
        def forward(self, x):
            y = x.float()
            y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6)
            return (y * self.weight.float()).type_as(x)
""")  # fmt: skip
