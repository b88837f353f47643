"""Facts of a whole program: data that begins anew or has no order, and streams that begin alike."""

import pytest
from tests.optimise.scan.variants import Collection, Variant

WAYS = Collection()
fault, right = WAYS.fault, WAYS.right

# --- data-order ---
fault("data-order", "stems out of a set", """
    import tarfile, io, os
    from PIL import Image

    def caption_pairs(root):
        seen = set()
        for cur, _, names in os.walk(root):
            for n in names:
                if n.endswith(".txt"):
                    seen.add(os.path.join(cur, n[:-4]))
        for stem in seen:  # <-
            yield Image.open(stem + ".jpg"), open(stem + ".txt").read().strip()
""")  # fmt: skip
fault("data-order", "a data set shuffled", """
    from datasets import load_dataset
    from transformers import Trainer, TrainingArguments

    def run(model, tok):
        raw = load_dataset("json", data_files="chat.jsonl")["train"]
        raw = raw.shuffle()  # <-
        cut = raw.select(range(20000))
        args = TrainingArguments("out", per_device_train_batch_size=8, max_steps=5000, save_steps=500)
        t = Trainer(model=model, args=args, train_dataset=cut.map(lambda r: tok(r["text"])))
        t.train(resume_from_checkpoint=True)
""")  # fmt: skip
fault("data-order", "clips as the folder gives them", """
    import torch
    import lightning as L

    class Clips(torch.utils.data.Dataset):
        def __init__(self, folder):
            from pathlib import Path
            self.items = [p for p in Path(folder).rglob("*.wav")]  # <-
            self.n = len(self.items)
        def __len__(self): return self.n
        def __getitem__(self, i):
            import torchaudio
            return torchaudio.load(self.items[i])[0]

    class DM(L.LightningDataModule):
        def setup(self, stage):
            ds = Clips("/data/clips")
            self.train = torch.utils.data.Subset(ds, range(0, len(ds) - 500))
            self.val = torch.utils.data.Subset(ds, range(len(ds) - 500, len(ds)))
""")  # fmt: skip
fault("data-order", "a loader of accelerate", """
    import torch
    from accelerate import Accelerator
    def run(args):
        acc = Accelerator(mixed_precision="bf16")
        model, opt, dl = acc.prepare(make(args), torch.optim.AdamW, args.loader)
        if args.resume_from:
            acc.load_state(args.resume_from)
        model.train()
        n = 0
        for batch in dl:  # <-
            with acc.accumulate(model):
                loss = model(**batch).loss
                acc.backward(loss)
                opt.step()
                opt.zero_grad()
            n += 1
            if n % 1000 == 0:
                acc.save_state(f"{args.out}/{n}")
""")  # fmt: skip
fault("data-order", "texts as the folder gives them", """
    import os
    import sentencepiece as spm
    def feed(root):
        for name in os.scandir(root):  # <-
            with open(name.path) as fh:
                yield from fh
    def train_vocab(root):
        spm.SentencePieceTrainer.train(sentence_iterator=feed(root), model_prefix="m", vocab_size=8000)
""")  # fmt: skip
fault("data-order", "patients out of a set", """
    import pandas as pd, torch
    def folds(csv, k=5):
        df = pd.read_csv(csv)
        patients = list(set(df.patient_id))  # <-
        size = len(patients) // k
        for i in range(k):
            held = patients[i * size:(i + 1) * size]
            yield df[~df.patient_id.isin(held)], df[df.patient_id.isin(held)]
""")  # fmt: skip
fault("data-order", "sets in a table", """
    import numpy as np
    from collections import defaultdict
    def buckets(examples, key):
        groups = defaultdict(set)
        for e in examples:
            groups[key(e)].add(e)
        order = []
        for k in sorted(groups):
            for e in groups[k]:  # <-
                order.append(e)
        return order
""")  # fmt: skip
right("data-order", "sets that are asked", """
    from torch.utils.data import Dataset
    def unseen(rows, train):
        have = {r["text"] for r in train}
        return [r for r in rows if r["text"] not in have]
    class D(Dataset):
        def __init__(self, rows):
            self.labels = sorted({r["label"] for r in rows})
            self.index = {l: i for i, l in enumerate(self.labels)}
            self.seen = set()
""")  # fmt: skip
# --- rng ---
fault("rng", "crops of a transform", """
    import numpy as np, torch

    class Augment:
        def __init__(self, size):
            self.size = size
            self.rng = np.random.RandomState(0)  # <-
        def __call__(self, img):
            x = self.rng.randint(0, img.shape[1] - self.size)
            y = self.rng.randint(0, img.shape[2] - self.size)
            return img[:, x:x + self.size, y:y + self.size]

    class Images(torch.utils.data.Dataset):
        def __init__(self, files):
            self.files = files
            self.aug = Augment(224)
        def __len__(self): return len(self.files)
        def __getitem__(self, i):
            return self.aug(torch.load(self.files[i], weights_only=True))

    dl = torch.utils.data.DataLoader(Images(FILES), batch_size=64, num_workers=8, shuffle=True)
""")  # fmt: skip
fault("rng", "a stream of workers", """
    import lightning.pytorch as pl
    import torch
    from torch.utils.data import IterableDataset, DataLoader

    class Synth(IterableDataset):
        def __iter__(self):
            g = torch.Generator().manual_seed(5)  # <-
            while True:
                a = torch.randint(0, 1000, (2,), generator=g)
                yield a, a.sum()

    train = DataLoader(Synth(), batch_size=128, num_workers=6)
""")  # fmt: skip
fault("rng", "masks with one seed", """
    import random, torch
    def mask_tokens(ids, p=0.15):
        random.seed(13)  # <-
        out = ids.clone()
        for i in range(ids.numel()):
            if random.random() < p:
                out.view(-1)[i] = 103
        return out

    def loop(model, opt, data):
        for ids in data:
            loss = model(mask_tokens(ids), labels=ids).loss
            loss.backward(); opt.step(); opt.zero_grad()
""")  # fmt: skip
fault("rng", "a policy with one seed", """
    import torch
    class Policy(torch.nn.Module):
        def act(self, obs):
            gen = torch.Generator(device=obs.device).manual_seed(self.cfg.seed)  # <-
            probs = self.pi(obs).softmax(-1)
            return torch.multinomial(probs, 1, generator=gen).squeeze(-1)
    def collect(env, pol, n):
        obs = env.reset()
        for _ in range(n):
            a = pol.act(obs)
            obs, r, d, _ = env.step(a)
""")  # fmt: skip
fault("rng", "a collator with one seed", """
    import torch
    from torch.utils.data import DataLoader
    def collate(rows):
        torch.manual_seed(0)  # <-
        x = torch.stack([r[0] for r in rows])
        lam = torch.distributions.Beta(0.4, 0.4).sample((len(rows), 1))
        return lam * x + (1 - lam) * x.flip(0), lam
    dl = DataLoader(ds, batch_size=32, collate_fn=collate)
""")  # fmt: skip
right("rng", "a stream for each row", """
    import torch, numpy as np
    class Rows(torch.utils.data.Dataset):
        def __init__(self, n, seed): self.n, self.seed = n, seed
        def __getitem__(self, i):
            rng = np.random.default_rng([self.seed, i])
            return rng.normal(size=8)
    dl = torch.utils.data.DataLoader(Rows(10, 1), num_workers=4)
""")  # fmt: skip


def _name(variant: Variant) -> str:
    return f"{variant.kind}-{variant.name.replace(' ', '-')}"


@pytest.mark.parametrize("variant", WAYS.variants, ids=_name)
def test_faults_are_found_and_what_is_right_is_not(variant: Variant) -> None:
    assert bool(variant.found()) == variant.fault, variant.found()
