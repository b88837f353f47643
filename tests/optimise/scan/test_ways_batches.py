"""Faults of batches in many people's ways of writing: micro-batches, padding, packing."""

import pytest
from tests.optimise.scan.variants import Collection, Variant

WAYS = Collection()
fault, right = WAYS.fault, WAYS.right

# --- small-batch -----------------------------------------------------------------------------------------------------
fault("small-batch", "hf args", """
    from transformers import Trainer, TrainingArguments
    def build(model, ds):
        args = TrainingArguments(
            output_dir="out",
            per_device_train_batch_size=1,  # <-
            gradient_accumulation_steps=32,
            learning_rate=2e-5,
            torch_compile=True,
        )
        return Trainer(model=model, args=args, train_dataset=ds)
""")  # fmt: skip
fault("small-batch", "hf args dict", """
    from transformers import Trainer, TrainingArguments
    HYPER = {
        "output_dir": "out",
        "per_device_train_batch_size": 2,  # <-
        "gradient_accumulation_steps": 16,
    }
    def build(model, ds):
        return Trainer(model=model, args=TrainingArguments(**HYPER), train_dataset=ds)
""")  # fmt: skip
fault("small-batch", "argparse bs", """
    import argparse, torch
    def main():
        p = argparse.ArgumentParser()
        p.add_argument("--bs", type=int, default=2)  # <-
        p.add_argument("--ga", type=int, default=16)
        a = p.parse_args()
        model, opt, loader = make(a.bs)
        for i, (x, y) in enumerate(loader):
            loss = model(x, y) / a.ga
            loss.backward()
            if (i + 1) % a.ga == 0:
                opt.step()
                opt.zero_grad()
""")  # fmt: skip
fault("small-batch", "dataclass", """
    from dataclasses import dataclass
    import torch
    @dataclass
    class Recipe:
        rows: int = 4  # <-
        width: int = 1024
        tokens_per_update: int = 262144
    def run(model, opt, data, r=Recipe()):
        n = r.tokens_per_update // (r.rows * r.width)
        for step in range(1000):
            for _ in range(n):
                ix = torch.randint(len(data) - r.width, (r.rows,))
                x = torch.stack([data[i:i + r.width] for i in ix])
                y = torch.stack([data[i + 1:i + 1 + r.width] for i in ix])
                (model(x, y) / n).backward()
            opt.step()
            opt.zero_grad()
""")  # fmt: skip
fault("small-batch", "yaml text", '''
    import yaml, torch
    from torch.utils.data import DataLoader
    CONFIG = yaml.safe_load("""
    lr: 3e-4
    batch_size: 2
    grad_accum: 16
    """)  # <-
    def train(model, opt, ds):
        loader = DataLoader(ds, batch_size=CONFIG["batch_size"])
        for i, (x, y) in enumerate(loader):
            (model(x, y) / CONFIG["grad_accum"]).backward()
            if (i + 1) % CONFIG["grad_accum"] == 0:
                opt.step(); opt.zero_grad()
''')  # fmt: skip
fault("small-batch", "lightning", """
    import lightning as L
    from torch.utils.data import DataLoader
    def main(module, ds):
        loader = DataLoader(ds, batch_size=2, shuffle=True)  # <-
        trainer = L.Trainer(max_epochs=3, accumulate_grad_batches=16, precision="bf16-mixed")
        trainer.fit(module, loader)
""")  # fmt: skip
fault("small-batch", "accelerate", """
    from accelerate import Accelerator
    from torch.utils.data import DataLoader
    def main(model, opt, ds):
        acc = Accelerator(gradient_accumulation_steps=8)
        loader = DataLoader(ds, 4, shuffle=True, drop_last=True)  # <-
        model, opt, loader = acc.prepare(model, opt, loader)
        for batch in loader:
            with acc.accumulate(model):
                loss = model(**batch).loss
                acc.backward(loss)
                opt.step()
                opt.zero_grad()
""")  # fmt: skip
fault("small-batch", "omegaconf", """
    from omegaconf import OmegaConf
    from torch.utils.data import DataLoader
    CFG = OmegaConf.create({"data": {"batch_size": 2, "workers": 4},  # <-
                            "optim": {"lr": 1e-4, "accumulate": 16}})
    def fit(model, opt, ds):
        loader = DataLoader(ds, batch_size=CFG.data.batch_size)
        for i, (x, y) in enumerate(loader):
            loss = model(x, y) / CFG.optim.accumulate
            loss.backward()
            if (i + 1) % CFG.optim.accumulate == 0:
                opt.step()
                opt.zero_grad()
""")  # fmt: skip
fault("small-batch", "namespace", """
    from types import SimpleNamespace
    import torch
    hp = SimpleNamespace(lr=1e-3, bsz=4, every=8)  # <-
    def loop(model, optim, sampler):
        k = 0
        while k < 1000:
            x, y = sampler.draw(hp.bsz)
            loss = model(x, y) / hp.every
            loss.backward()
            k += 1
            if k % hp.every == 0:
                optim.step()
                optim.zero_grad()
""")  # fmt: skip
fault("small-batch", "deepspeed", """
    import deepspeed
    ds_config = {
        "train_micro_batch_size_per_gpu": 1,  # <-
        "gradient_accumulation_steps": 64,
        "bf16": {"enabled": True},
    }
    def main(model, loader):
        engine, _, _, _ = deepspeed.initialize(model=model, config=ds_config)
        for x, y in loader:
            loss = engine(x, y)
            engine.backward(loss)
            engine.step()
""")  # fmt: skip
fault("small-batch", "deepspeed json", '''
    import json, deepspeed
    DS = json.loads("""{"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 64}""")  # <-
    def main(model, loader):
        engine, *_ = deepspeed.initialize(model=model, config=DS)
        for x, y in loader:
            loss = engine(x, y)
            engine.backward(loss)
            engine.step()
''')  # fmt: skip
fault("small-batch", "environ", """
    import os, torch
    BATCH = int(os.environ.get("BATCH", "4"))  # <-
    STEPS_PER_UPDATE = int(os.environ.get("STEPS_PER_UPDATE", "8"))
    def main(model, opt, stream):
        for n, (x, y) in enumerate(stream(BATCH), start=1):
            loss = model(x, y)
            (loss / STEPS_PER_UPDATE).backward()
            if n % STEPS_PER_UPDATE == 0:
                opt.step()
                opt.zero_grad()
""")  # fmt: skip
fault("small-batch", "click", """
    import click
    @click.command()
    @click.option("--batch", default=2, type=int)  # <-
    @click.option("--accumulate", default=32, type=int)
    def main(batch, accumulate):
        model, opt, loader = setup(batch)
        for i, b in enumerate(loader):
            loss = model(b) / accumulate
            loss.backward()
            if (i + 1) % accumulate == 0:
                opt.step()
                opt.zero_grad(set_to_none=True)
""")  # fmt: skip
fault("small-batch", "BT", """
    import torch
    B, T = 4, 1024  # <-
    total_tokens = 524288
    passes = total_tokens // (B * T)
    def train(model, opt, loader):
        for step in range(100):
            for k in range(passes):
                x, y = loader.next_batch()
                _, loss = model(x, y)
                (loss / passes).backward()
            opt.step()
            opt.zero_grad()
""")  # fmt: skip
fault("small-batch", "presets", """
    import sys
    PRESETS = {
        "tiny": dict(layers=4, batch=2, accum=32),  # <-
        "base": dict(layers=12, batch=2, accum=32),
    }
    def main(model, opt, loader_for):
        cfg = PRESETS[sys.argv[1]]
        for i, (x, y) in enumerate(loader_for(cfg["batch"])):
            loss = model(x, y) / cfg["accum"]
            loss.backward()
            if i % cfg["accum"] == cfg["accum"] - 1:
                opt.step(); opt.zero_grad()
""")  # fmt: skip
fault("small-batch", "update every", """
    from torch.utils.data import DataLoader
    ROWS_AT_ONCE = 4  # <-
    UPDATE_EVERY = 16
    def epoch(net, opt, ds, crit):
        for i, (x, y) in enumerate(DataLoader(ds, batch_size=ROWS_AT_ONCE, shuffle=True)):
            out = net(x)
            loss = crit(out, y) / UPDATE_EVERY
            loss.backward()
            if (i + 1) % UPDATE_EVERY == 0:
                opt.step()
                opt.zero_grad()
""")  # fmt: skip
fault("small-batch", "range cut", """
    import random
    def epoch(net, opt, rows, collate, every=16):
        order = list(range(len(rows)))
        random.shuffle(order)
        done = 0
        for i in range(0, len(order), 4):  # <-
            x, y = collate([rows[j] for j in order[i:i + 4]])
            loss = net(x, y) / every
            loss.backward()
            done += 1
            if done == every:
                opt.step(); opt.zero_grad(); done = 0
""")  # fmt: skip
fault("small-batch", "class attrs", """
    from torch.utils.data import DataLoader
    class Config:
        LR = 1e-4
        BS = 2  # <-
        ACC_STEPS = 16
    class Trainer:
        def __init__(self, model, opt, ds):
            self.model, self.opt = model, opt
            self.loader = DataLoader(ds, batch_size=Config.BS)
        def fit(self):
            for i, batch in enumerate(self.loader):
                loss = self.model(batch) / Config.ACC_STEPS
                loss.backward()
                if (i + 1) % Config.ACC_STEPS == 0:
                    self.opt.step()
                    self.opt.zero_grad()
""")  # fmt: skip
fault("small-batch", "function default", """
    def finetune(model, opt, dataset, epochs=3, bsz=2, k=8):  # <-
        for _ in range(epochs):
            batches = make_batches(dataset, bsz)
            for j, b in enumerate(batches):
                loss = model(**b).loss / k
                loss.backward()
                if (j + 1) % k == 0 or j + 1 == len(batches):
                    opt.step()
                    opt.zero_grad()
""")  # fmt: skip
fault("small-batch", "trl", """
    from trl import SFTConfig, SFTTrainer
    def main(model, ds):
        cfg = SFTConfig(output_dir="o", packing=True, torch_compile=True,
                        per_device_train_batch_size=1, gradient_accumulation_steps=16)  # <-
        SFTTrainer(model, args=cfg, train_dataset=ds).train()
""")  # fmt: skip
fault("small-batch", "typer", """
    import typer
    app = typer.Typer()
    @app.command()
    def train(rows: int = typer.Option(4, help="rows per forward"), accum: int = typer.Option(8)):  # <-
        model, opt, loader = prepare(rows)
        for i, batch in enumerate(loader):
            (model(batch) / accum).backward()
            if (i + 1) % accum == 0:
                opt.step()
                opt.zero_grad()
""")  # fmt: skip
fault("small-batch", "absl", """
    from absl import app, flags
    FLAGS = flags.FLAGS
    flags.DEFINE_integer("batch", 4, "rows")  # <-
    flags.DEFINE_integer("accum", 16, "micro batches per step")
    def main(_):
        model, opt, loader = setup(FLAGS.batch)
        for i, (x, y) in enumerate(loader):
            loss = model(x, y) / FLAGS.accum
            loss.backward()
            if (i + 1) % FLAGS.accum == 0:
                opt.step(); opt.zero_grad()
""")  # fmt: skip
fault("small-batch", "pydantic", """
    from pydantic import BaseModel, Field
    class TrainSettings(BaseModel):
        lr: float = 1e-4
        batch_size: int = Field(2, ge=1)  # <-
        grad_accumulation: int = Field(16, ge=1)
""")  # fmt: skip
fault("small-batch", "batched", """
    from itertools import batched
    def step(model, opt, rows, collate):
        opt.zero_grad()
        groups = list(batched(rows, 2))  # <-
        for g in groups:
            x, y = collate(g)
            (model(x, y) / len(groups)).backward()
        opt.step()
    def train(model, opt, source, collate):
        for rows in source:
            step(model, opt, rows, collate)
""")  # fmt: skip
fault("small-batch", "torch split", """
    import torch
    MICRO = 2  # <-
    def step(model, opt, x, y):
        opt.zero_grad(set_to_none=True)
        n = x.size(0) // MICRO
        for xs, ys in zip(torch.split(x, MICRO), torch.split(y, MICRO)):
            loss = model(xs, ys) / n
            loss.backward()
        opt.step()
    def train(model, opt, loader):
        for x, y in loader:
            step(model, opt, x, y)
""")  # fmt: skip
fault("small-batch", "global div micro", """
    import torch
    from torch.utils.data import DataLoader
    GLOBAL = 256
    def main(model, opt, ds, world):
        per_gpu = 4  # <-
        n_acc = GLOBAL // (per_gpu * world)
        it = iter(DataLoader(ds, batch_size=per_gpu))
        for step in range(1000):
            for m in range(n_acc):
                loss = model(next(it)) / n_acc
                loss.backward()
            opt.step(); opt.zero_grad()
""")  # fmt: skip
fault("small-batch", "namedtuple", """
    from typing import NamedTuple
    from torch.utils.data import DataLoader
    class Hyper(NamedTuple):
        lr: float = 1e-4
        n_seq: int = 4  # <-
        n_accum: int = 16
    def train(model, opt, ds, h=Hyper()):
        dl = DataLoader(ds, batch_size=h.n_seq)
        for i, b in enumerate(dl):
            loss = model(b) / h.n_accum
            loss.backward()
            if (i + 1) % h.n_accum == 0:
                opt.step(); opt.zero_grad()
""")  # fmt: skip
fault("small-batch", "kwargs fit", """
    from torch.utils.data import DataLoader
    def fit(model, opt, ds, *, loader_kwargs, accumulate):
        for i, b in enumerate(DataLoader(ds, **loader_kwargs)):
            (model(b) / accumulate).backward()
            if (i + 1) % accumulate == 0:
                opt.step(); opt.zero_grad()
    def main(model, opt, ds):
        fit(model, opt, ds, loader_kwargs={"batch_size": 2, "num_workers": 2}, accumulate=16)  # <-
""")  # fmt: skip
right("small-batch", "big", """
    from transformers import TrainingArguments
    args = TrainingArguments(output_dir="o", per_device_train_batch_size=32, gradient_accumulation_steps=4)
""")  # fmt: skip
right("small-batch", "no accumulation", """
    from torch.utils.data import DataLoader
    def train(model, opt, ds):
        for b in DataLoader(ds, batch_size=4):
            loss = model(b)
            loss.backward()
            opt.step()
            opt.zero_grad()
""")  # fmt: skip
right("small-batch", "eval loader small", """
    from transformers import TrainingArguments
    args = TrainingArguments("o", per_device_train_batch_size=32, per_device_eval_batch_size=4,
                             gradient_accumulation_steps=4)
""")  # fmt: skip
right("small-batch", "lightning no accumulation", """
    import lightning as L
    from torch.utils.data import DataLoader
    def main(module, ds):
        trainer = L.Trainer(max_epochs=3)
        trainer.fit(module, DataLoader(ds, batch_size=4))
""")  # fmt: skip
right("small-batch", "accumulation of one", """
    from torch.utils.data import DataLoader
    import argparse
    p = argparse.ArgumentParser()
    p.add_argument("--accum", type=int, default=1)
    a = p.parse_args()
    def train(model, opt, ds):
        for i, b in enumerate(DataLoader(ds, batch_size=4)):
            (model(b) / a.accum).backward()
            if (i + 1) % a.accum == 0:
                opt.step(); opt.zero_grad()
""")  # fmt: skip
# --- padding ---------------------------------------------------------------------------------------------------------
fault("padding", "map max length", """
    from datasets import load_dataset
    def encode(tokenizer):
        def f(ex):
            out = tokenizer(ex["text"], truncation=True, max_length=1024, padding="max_length")  # <-
            out["labels"] = [t if m else -100 for t, m in zip(out["input_ids"], out["attention_mask"])]
            return out
        return load_dataset("x", split="train").map(f)
""")  # fmt: skip
fault("padding", "labels copy", """
    def tokenize_function(examples):
        enc = tokenizer(examples["text"], padding="max_length", truncation=True, max_length=512)  # <-
        enc["labels"] = enc["input_ids"].copy()
        return enc
""")  # fmt: skip
fault("padding", "collate longest", """
    import torch
    class Collator:
        def __init__(self, tok):
            self.tok = tok
        def __call__(self, texts):
            batch = self.tok(texts, return_tensors="pt", padding=True, truncation=True)  # <-
            y = batch["input_ids"].clone()
            y[batch["attention_mask"] == 0] = -100
            batch["labels"] = y
            return batch
""")  # fmt: skip
fault("padding", "rnn utils", """
    import torch
    import torch.nn.utils.rnn as rnn
    import torch.nn.functional as F
    def collate_fn(items):
        src = rnn.pad_sequence([torch.tensor(i["src"]) for i in items], batch_first=True, padding_value=0)  # <-
        tgt = rnn.pad_sequence([torch.tensor(i["tgt"]) for i in items], batch_first=True, padding_value=0)
        return src, tgt
    def loss_of(model, src, tgt):
        return F.cross_entropy(model(src, tgt[:, :-1]).transpose(1, 2), tgt[:, 1:], ignore_index=0)
""")  # fmt: skip
fault("padding", "mlm false collator", """
    from transformers import DataCollatorForLanguageModeling, Trainer, TrainingArguments
    def main(model, tok, ds, args):
        ds = ds.map(lambda e: tok(e["text"], truncation=True, max_length=1024), remove_columns=["text"])
        coll = DataCollatorForLanguageModeling(tok, mlm=False)  # <-
        Trainer(model, args, train_dataset=ds, data_collator=coll).train()
""")  # fmt: skip
fault("padding", "np zeros", """
    import numpy as np
    PAD = 0
    def to_matrix(seqs):
        longest = max(len(s) for s in seqs)
        out = np.zeros((len(seqs), longest), dtype=np.int64)  # <-
        mask = np.zeros((len(seqs), longest), dtype=np.float32)
        for r, s in enumerate(seqs):
            out[r, :len(s)] = s
            mask[r, :len(s)] = 1
        return out, mask
    def loss(model, ids, mask, F):
        ce = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        return (ce * mask[:, 1:].flatten()).sum() / mask.sum()
    def train(model, opt, loader, F):
        for seqs in loader:
            loss(model, *to_matrix(seqs), F).backward()
            opt.step()
""")  # fmt: skip
fault("padding", "list mult", """
    import torch
    def pad_batch(batch, pad_id):
        m = max(len(b["input_ids"]) for b in batch)
        ids, labels = [], []
        for b in batch:
            n = m - len(b["input_ids"])
            ids.append(b["input_ids"] + [pad_id] * n)  # <-
            labels.append(b["labels"] + [-100] * n)
        return torch.tensor(ids), torch.tensor(labels)
""")  # fmt: skip
fault("padding", "F.pad", """
    import torch
    import torch.nn.functional as F
    class SFTDataset(torch.utils.data.Dataset):
        def __getitem__(self, i):
            ids = torch.tensor(self.rows[i])
            labels = ids.clone()
            labels[: self.prompt_len[i]] = -100
            gap = self.block - ids.numel()
            ids = F.pad(ids, (0, gap), value=self.pad)  # <-
            labels = F.pad(labels, (0, gap), value=-100)
            return ids, labels
""")  # fmt: skip
fault("padding", "tokenizers lib", """
    import torch
    from tokenizers import Tokenizer
    tok = Tokenizer.from_file("tok.json")
    tok.enable_padding(pad_id=0, length=512)  # <-
    tok.enable_truncation(512)
    def collate(texts):
        enc = tok.encode_batch(texts)
        ids = torch.tensor([e.ids for e in enc])
        labels = ids.masked_fill(ids == 0, -100)
        return ids, labels
""")  # fmt: skip
fault("padding", "torchtext transform", """
    import torch
    import torchtext.transforms as T
    pipeline = T.Sequential(T.VocabTransform(vocab), T.Truncate(256), T.ToTensor(), T.PadTransform(256, 0))  # <-
    def collate(texts):
        ids = torch.stack([pipeline(t) for t in texts])
        labels = ids[:, 1:].clone()
        labels[labels == 0] = -100
        return ids[:, :-1], labels
""")  # fmt: skip
fault("padding", "np resize", """
    import numpy as np, torch
    def row(ids, width, pad):
        a = np.asarray(ids[:width])
        a = np.concatenate([a, np.full(width - len(a), pad)])  # <-
        y = np.where(a == pad, -100, a)
        return torch.from_numpy(a[:-1]), torch.from_numpy(y[1:])
""")  # fmt: skip
fault("padding", "ljust", """
    import torch
    import torch.nn.functional as F
    BLOCK = 256
    def encode(line, stoi):
        line = line[:BLOCK + 1].ljust(BLOCK + 1, "~")  # <-
        ids = torch.tensor([stoi[c] for c in line])
        return ids[:-1], ids[1:]
    def loss(model, x, y, stoi):
        return F.cross_entropy(model(x).transpose(1, 2), y, ignore_index=stoi["~"])
""")  # fmt: skip
fault("padding", "tuple mult", """
    import torch
    def collate(rows, pad=0):
        n = max(map(len, rows))
        ids = torch.tensor([tuple(r) + (pad,) * (n - len(r)) for r in rows])  # <-
        labels = torch.where(ids == pad, -100, ids)
        return {"input_ids": ids, "labels": labels}
""")  # fmt: skip
fault("padding", "islice chain repeat", """
    import torch
    from itertools import chain, islice, repeat
    def fit(ids, width, pad):
        return list(islice(chain(ids, repeat(pad)), width))  # <-
    def collate(rows, width=512):
        x = torch.tensor([fit(r["ids"], width, 0) for r in rows])
        y = torch.tensor([fit(r["labels"], width, -100) for r in rows])
        return x, y
""")  # fmt: skip
fault("padding", "np.pad", """
    import numpy as np, torch
    def collate(rows):
        width = max(len(r) for r in rows)
        x = np.stack([np.pad(r, (0, width - len(r))) for r in rows])  # <-
        y = np.stack([np.pad(r[1:], (0, width - len(r) + 1), constant_values=-100) for r in rows])
        return torch.from_numpy(x), torch.from_numpy(y)
""")  # fmt: skip
fault("padding", "while append", """
    def example(ids, block, pad):
        target = ids[1:]
        ids = ids[:-1]
        while len(ids) < block:  # <-
            ids.append(pad)
            target.append(-1)
        return ids, target
""")  # fmt: skip
fault("padding", "seq2seq collator", """
    from transformers import DataCollatorForSeq2Seq
    def make(tok, model):
        return DataCollatorForSeq2Seq(tok, model=model, label_pad_token_id=-100, pad_to_multiple_of=8)  # <-
""")  # fmt: skip
fault("padding", "tok.pad", """
    import torch
    class Pad:
        def __init__(self, tokenizer): self.tokenizer = tokenizer
        def __call__(self, features):
            labels = [f.pop("labels") for f in features]
            batch = self.tokenizer.pad(features, return_tensors="pt")  # <-
            width = batch["input_ids"].shape[1]
            batch["labels"] = torch.tensor([l + [-100] * (width - len(l)) for l in labels])
            return batch
""")  # fmt: skip
fault("padding", "nested", """
    import torch
    import torch.nn.functional as F
    def step(model, rows, opt):
        nt = torch.nested.nested_tensor(rows)
        x = nt.to_padded_tensor(0)  # <-
        loss = F.cross_entropy(model(x[:, :-1]).transpose(1, 2), x[:, 1:], ignore_index=0)
        loss.backward()
        opt.step()
""")  # fmt: skip
fault("padding", "index fill loop", """
    import torch
    import torch.nn.functional as F
    def batchify(docs, limit, device):
        x = torch.zeros(len(docs), limit, dtype=torch.long)  # <-
        for i, d in enumerate(docs):
            for j, t in enumerate(d[:limit]):
                x[i, j] = t
        return x.to(device)
    def train(model, opt, docs):
        x = batchify(docs, 512, "cuda")
        loss = F.cross_entropy(model(x[:, :-1]).transpose(1, 2), x[:, 1:], ignore_index=0)
        loss.backward()
        opt.step()
""")  # fmt: skip
fault("padding", "keras pad", """
    from keras.preprocessing.sequence import pad_sequences
    import torch
    def make(rows, labels):
        x = pad_sequences(rows, maxlen=256, padding="post", value=0)  # <-
        y = pad_sequences(labels, maxlen=256, padding="post", value=-100)
        return torch.as_tensor(x), torch.as_tensor(y)
""")  # fmt: skip
fault("padding", "prompt answer mask", """
    import torch
    def build_sample(tok, q, a, max_len=768):
        p, r = tok.encode(q), tok.encode(a) + [tok.eos_id]
        ids = (p + r)[:max_len]
        mask = ([0] * len(p) + [1] * len(r))[:max_len]
        pad = max_len - len(ids)
        ids += [tok.pad_id] * pad  # <-
        mask += [0] * pad
        return torch.tensor(ids), torch.tensor(mask)
    def loss(model, ids, mask):
        lp = model(ids[:, :-1]).log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
        return -(lp * mask[:, 1:]).sum() / mask[:, 1:].sum()
""")  # fmt: skip
fault("padding", "kwargs handed", """
    ENC = dict(truncation=True, padding="longest", return_tensors="pt")  # <-
    def collate(texts, tok):
        b = tok(texts, **ENC)
        b["labels"] = b.input_ids.masked_fill(b.attention_mask == 0, -100)
        return b
""")  # fmt: skip
fault("padding", "batch encode plus", """
    class DS:
        def __getitem__(self, i):
            enc = self.tok.encode_plus(
                self.q[i], self.a[i], max_length=512, pad_to_max_length=True, truncation=True)  # <-
            ids = enc["input_ids"]
            labels = [-100 if t == self.tok.pad_token_id else t for t in ids]
            return ids, labels
""")  # fmt: skip
fault("padding", "set format padding side", """
    from trl import SFTConfig, SFTTrainer
    def main(model, ds):
        cfg = SFTConfig(output_dir="o", max_seq_length=2048, packing=False)  # <-
        SFTTrainer(model=model, args=cfg, train_dataset=ds).train()
""")  # fmt: skip
fault("padding", "data collator default data + max", """
    import torch
    class Rows(torch.utils.data.Dataset):
        def __init__(self, docs, seq_len, eos):
            self.x = torch.full((len(docs), seq_len + 1), eos, dtype=torch.int64)  # <-
            for i, doc in enumerate(docs):
                n = min(len(doc), seq_len + 1)
                self.x[i, :n] = torch.as_tensor(doc[:n])
        def __getitem__(self, i):
            row = self.x[i]
            return row[:-1], row[1:]
    def step(model, x, y, F):
        loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten(), ignore_index=50256)
        loss.backward()
""")  # fmt: skip
right("padding", "inference", """
    def complete(model, tok, prompts):
        enc = tok(prompts, return_tensors="pt", padding=True).to(model.device)
        return model.generate(**enc, max_new_tokens=20)
""")  # fmt: skip
right("padding", "images", """
    import torch.nn.functional as F
    import torch
    class Block(torch.nn.Module):
        def forward(self, x):
            return F.pad(x, (1, 1, 1, 1))
""")  # fmt: skip
right("padding", "group texts", """
    def group(examples, block):
        flat = sum(examples["input_ids"], [])
        n = len(flat) // block * block
        rows = [flat[i:i + block] for i in range(0, n, block)]
        return {"input_ids": rows, "labels": [list(r) for r in rows]}
""")  # fmt: skip
right("padding", "classification", """
    import torch
    def collate(batch, tok):
        enc = tok([b["text"] for b in batch], padding=True, return_tensors="pt")
        return enc
    def evaluate(model, loader):
        with torch.no_grad():
            return [model(**b).logits.argmax(-1) for b in loader]
""")  # fmt: skip
right("padding", "last row of a packed stream", """
    import torch
    def rows(docs, width, eos):
        buf = []
        for d in docs:
            buf.extend(d + [eos])
            while len(buf) >= width + 1:
                row, buf = buf[:width + 1], buf[width:]
                yield torch.tensor(row[:-1]), torch.tensor(row[1:])
""")  # fmt: skip
# --- packing ---------------------------------------------------------------------------------------------------------
fault("packing", "first fit loop", """
    import torch, random
    import numpy as np

    def pack(docs, cap):
        bins = []
        for d in docs:
            for b in bins:  # <-
                if sum(len(x) for x in b) + len(d) <= cap:
                    b.append(d)
                    break
            else:
                bins.append([d])
        return bins
""")  # fmt: skip
fault("packing", "pop0", """
    import torch, random
    import numpy as np

    def rows(docs, width):
        docs = list(docs)
        row = []
        while docs:
            row += docs.pop(0)  # <-
            while len(row) >= width:
                yield row[:width]
                row = row[width:]
""")  # fmt: skip
fault("packing", "buffer cut", """
    import torch, random
    import numpy as np

    def stream(texts, enc, T):
        buf = []
        for t in texts:
            buf.extend(enc(t))
            while len(buf) > T:
                yield buf[: T + 1]
                buf = buf[T:]  # <-
""")  # fmt: skip
fault("packing", "np concatenate", """
    import torch, random
    import numpy as np

    def load(files, enc):
        all_ids = np.array([], dtype=np.uint16)
        for f in files:
            all_ids = np.concatenate([all_ids, enc(open(f).read())])  # <-
        return all_ids
""")  # fmt: skip
fault("packing", "np append", """
    import torch, random
    import numpy as np

    def load(lines, enc):
        ids = np.empty(0, np.int32)
        for line in lines:
            ids = np.append(ids, enc(line))  # <-
        return ids
""")  # fmt: skip
fault("packing", "torch cat", """
    import torch, random
    import numpy as np

    def corpus(docs, tok):
        data = torch.empty(0, dtype=torch.long)
        for d in docs:
            data = torch.cat((data, torch.tensor(tok.encode(d))))  # <-
        return data
""")  # fmt: skip
fault("packing", "str plus", """
    import torch, random
    import numpy as np

    def join(paths):
        text = ""
        for p in paths:
            text = text + open(p).read() + "<|end|>"  # <-
        return text
""")  # fmt: skip
fault("packing", "str plus eq self", """
    import torch, random
    import numpy as np

    class Corpus:
        def __init__(self): self.text = ""
        def add(self, doc):
            self.text += doc + "<eos>"  # <-
        def load(self, docs):
            for d in docs:
                self.add(d)
""")  # fmt: skip
fault("packing", "list plus", """
    import torch, random
    import numpy as np

    def flat(docs):
        out = []
        for d in docs:
            out = out + d  # <-
        return out
""")  # fmt: skip
fault("packing", "sum lists", """
    import torch, random
    import numpy as np

    def flat(docs):
        return sum(docs, [])  # <-
    def build(rows, tok, width):
        ids = flat([tok.encode(r) for r in rows])
        return [ids[i:i + width] for i in range(0, len(ids), width)]
""")  # fmt: skip
fault("packing", "best fit min", """
    import torch, random
    import numpy as np

    def pack(lengths, cap):
        free = []
        out = []
        for i, n in enumerate(lengths):
            ok = [k for k, f in enumerate(free) if f >= n]  # <-
            if ok:
                k = min(ok, key=lambda j: free[j])
                free[k] -= n
                out[k].append(i)
            else:
                free.append(cap - n)
                out.append([i])
        return out
""")  # fmt: skip
fault("packing", "remove", """
    import torch, random
    import numpy as np

    def greedy(samples, cap):
        pool = sorted(samples, key=len, reverse=True)
        packs = []
        while pool:
            cur, room = [], cap
            for s in list(pool):  # <-
                if len(s) <= room:
                    cur.append(s)
                    room -= len(s)
                    pool.remove(s)
            packs.append(cur)
        return packs
""")  # fmt: skip
fault("packing", "next gen", """
    import torch, random
    import numpy as np

    def fill(convs, cap):
        left = list(convs)
        while left:
            row = left.pop()
            while True:
                c = next((c for c in left if len(row) + len(c) <= cap), None)  # <-
                if c is None:
                    break
                left.remove(c)
                row = row + c
            yield row
""")  # fmt: skip
fault("packing", "sort in loop", """
    import torch, random
    import numpy as np

    def place(items, cap):
        bins = [(cap, [])]
        for it in items:
            bins.sort(key=lambda b: b[0])  # <-
            for j, (room, content) in enumerate(bins):
                if room >= len(it):
                    content.append(it)
                    bins[j] = (room - len(it), content)
                    break
            else:
                bins.append((cap - len(it), [it]))
        return bins
""")  # fmt: skip
fault("packing", "dedup in list", """
    import torch, random
    import numpy as np

    def unique(docs):
        kept = []
        for d in docs:
            if d not in kept:  # <-
                kept.append(d)
        return kept
""")  # fmt: skip
fault("packing", "argmax remaining", """
    import torch, random
    import numpy as np

    def longest_first(lens, cap):
        lens = np.array(lens)
        rows = []
        while len(lens):
            room, row = cap, []
            while True:
                fits = np.where(lens <= room)[0]  # <-
                if len(fits) == 0:
                    break
                j = fits[lens[fits].argmax()]
                row.append(lens[j]); room -= lens[j]
                lens = np.delete(lens, j)
            rows.append(row)
        return rows
""")  # fmt: skip
fault("packing", "max by key", """
    import torch, random
    import numpy as np

    def pack(pool, cap):
        rows = []
        while pool:
            row, n = [], 0
            while True:
                cand = [p for p in pool if len(p) <= cap - n]  # <-
                if not cand:
                    break
                best = max(cand, key=len)
                pool.remove(best)
                row.append(best); n += len(best)
            rows.append(row)
        return rows
""")  # fmt: skip
fault("packing", "used flags", """
    import torch, random
    import numpy as np

    def pack(seqs, cap):
        used = [False] * len(seqs)
        rows = []
        for i in range(len(seqs)):
            if used[i]:
                continue
            row = [i]; total = len(seqs[i]); used[i] = True
            for j in range(i + 1, len(seqs)):  # <-
                if not used[j] and total + len(seqs[j]) <= cap:
                    row.append(j); total += len(seqs[j]); used[j] = True
            rows.append(row)
        return rows
""")  # fmt: skip
fault("packing", "class rows fits", """
    import torch, random
    import numpy as np

    class Row:
        def __init__(self, cap): self.cap, self.items = cap, []
        def room(self): return self.cap - sum(len(i) for i in self.items)
    class Packer:
        def __init__(self, cap): self.cap, self.rows = cap, []
        def add(self, doc):
            for row in self.rows:  # <-
                if row.room() >= len(doc):
                    row.items.append(doc)
                    return
            r = Row(self.cap); r.items.append(doc)
            self.rows.append(r)
    def build(docs, cap):
        p = Packer(cap)
        for d in docs:
            p.add(d)
        return p.rows
""")  # fmt: skip
fault("packing", "del front", """
    import torch, random
    import numpy as np

    class Loader:
        def __init__(self, src, B, T): self.src, self.B, self.T, self.buf = src, B, T, []
        def __iter__(self):
            for doc in self.src:
                self.buf += doc
                need = self.B * self.T + 1
                while len(self.buf) >= need:
                    yield torch.tensor(self.buf[:need])
                    del self.buf[:need - 1]  # <-
""")  # fmt: skip
fault("packing", "insert 0", """
    import torch, random
    import numpy as np

    def order(docs):
        out = []
        for d in docs:
            out.insert(0, d)  # <-
        return out
""")  # fmt: skip
fault("packing", "hstack", """
    import torch, random
    import numpy as np

    def read(shards):
        buf = np.zeros(0, dtype=np.uint16)
        for s in shards:
            buf = np.hstack((buf, np.load(s)))  # <-
        return buf
""")  # fmt: skip
fault("packing", "pd concat", """
    import torch, random
    import numpy as np

    import pandas as pd
    def read(files):
        df = pd.DataFrame()
        for f in files:
            df = pd.concat([df, pd.read_parquet(f)])  # <-
        return df
""")  # fmt: skip
fault("packing", "prefix sums", """
    import torch, random
    import numpy as np

    def offsets(lengths):
        return [sum(lengths[:i]) for i in range(len(lengths))]  # <-
""")  # fmt: skip
fault("packing", "while left rebuilt", """
    import torch, random
    import numpy as np

    def pack(docs, cap):
        todo = list(docs)
        rows = []
        while todo:
            row, n, rest = [], 0, []
            for d in todo:  # <-
                if n + len(d) <= cap:
                    row.append(d); n += len(d)
                else:
                    rest.append(d)
            rows.append(row)
            todo = rest
        return rows
""")  # fmt: skip
fault("packing", "index of text", """
    import torch, random
    import numpy as np

    def batches(examples, size):
        rows = []
        for ex in examples:
            i = examples.index(ex)  # <-
            if i % size == 0:
                rows.append([])
            rows[-1].append(ex)
        return rows
""")  # fmt: skip
fault("packing", "numpy first fit", """
    import torch, random
    import numpy as np

    def first_fit(lens, cap):
        space = np.full(len(lens), cap)
        where = []
        for n in lens:
            k = int(np.argmax(space >= n))  # <-
            space[k] -= n
            where.append(k)
        return where
""")  # fmt: skip
fault("packing", "tensor buffer cut", """
    import torch, random
    import numpy as np

    class Stream:
        def __init__(self, it, n): self.it, self.n, self.rest = it, n, torch.empty(0, dtype=torch.long)
        def next(self):
            while len(self.rest) < self.n:
                self.rest = torch.cat([self.rest, next(self.it)])  # <-
            out, self.rest = self.rest[:self.n], self.rest[self.n:]
            return out
""")  # fmt: skip
fault("packing", "reduce", """
    import torch, random
    import numpy as np

    from functools import reduce
    def flat(docs):
        return reduce(lambda a, b: a + b, docs)  # <-
""")  # fmt: skip
right("packing", "deque", """
    import torch, random
    import numpy as np

    from collections import deque
    def rows(docs, width):
        q = deque(docs)
        row = []
        while q:
            row += q.popleft()
""")  # fmt: skip
right("packing", "join", """
    import torch, random
    import numpy as np

    def join(paths):
        parts = []
        for p in paths:
            parts.append(open(p).read())
        return "".join(parts)
""")  # fmt: skip
right("packing", "heap", """
    import torch, random
    import numpy as np

    import heapq
    def pack(lens, cap):
        heap = []
        for i, n in enumerate(sorted(lens, reverse=True)):
            if heap and -heap[0][0] >= n:
                room, k = heapq.heappop(heap)
                heapq.heappush(heap, (room + n, k))
            else:
                heapq.heappush(heap, (n - cap, i))
""")  # fmt: skip
right("packing", "next fit", """
    import torch, random
    import numpy as np

    def pack(docs, cap):
        rows, cur, n = [], [], 0
        for d in docs:
            if n + len(d) > cap:
                rows.append(cur)
                cur, n = [], 0
            cur.append(d); n += len(d)
        return rows + [cur]
""")  # fmt: skip
right("packing", "set", """
    import torch, random
    import numpy as np

    def unique(docs):
        seen, out = set(), []
        for d in docs:
            if d not in seen:
                seen.add(d); out.append(d)
        return out
""")  # fmt: skip
right("packing", "concat once", """
    import torch, random
    import numpy as np

    def load(files, enc):
        parts = [np.array(enc(open(f).read())) for f in files]
        return np.concatenate(parts)
""")  # fmt: skip
right("packing", "offset pointer", """
    import torch, random
    import numpy as np

    def stream(docs, T):
        buf, pos = [], 0
        for d in docs:
            buf.extend(d)
            while len(buf) - pos > T:
                yield buf[pos:pos + T + 1]
                pos += T
""")  # fmt: skip
right("packing", "beams", """
    import torch, random
    import numpy as np

    def beam(model, start, width, n):
        beams = [(0.0, [start])]
        for _ in range(n):
            cand = []
            for s, b in beams:
                lp = model(b)
                for t in lp.topk(width).indices.tolist():
                    cand.append((s + float(lp[t]), b + [t]))
            cand.sort(key=lambda c: -c[0])
            beams = cand[:width]
        return beams
""")  # fmt: skip
right("packing", "cat in decode", """
    import torch, random
    import numpy as np

    def generate(model, ids, n):
        for _ in range(n):
            nxt = model(ids)[:, -1].argmax(-1, keepdim=True)
            ids = torch.cat([ids, nxt], 1)
        return ids
""")  # fmt: skip
right("packing", "string in message", """
    import torch, random
    import numpy as np

    def describe(rows):
        text = ""
        for k, v in rows.items():
            text += f"{k}={v} "
        return text
""")  # fmt: skip


@pytest.mark.parametrize("variant", [pytest.param(one, id=f"{one.kind}: {one.name}") for one in WAYS.variants])
def test_each_way_of_writing_a_fault_of_batches_is_found_and_what_is_right_is_left_alone(variant: Variant):
    found = variant.found()
    assert bool(found) == variant.fault, found or f"nothing at {variant.place}"
