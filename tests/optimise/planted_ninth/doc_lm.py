# Language modelling over legal documents, one document per row.
import json
import logging

import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset, RandomSampler

logger = logging.getLogger(__name__)

IGNORE = -100


class Docs(Dataset):
    def __init__(self, path, tokenizer, limit):
        self.rows = []
        with open(path, encoding="utf8") as f:
            for line in f:
                ids = tokenizer.encode(json.loads(line)["body"])[:limit]
                if len(ids) > 8:
                    self.rows.append(torch.tensor(ids, dtype=torch.long))

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        return self.rows[i]


class Collator:
    def __init__(self, pad_id):
        self.pad_id = pad_id

    def __call__(self, rows):
        x = pad_sequence([r[:-1] for r in rows], batch_first=True, padding_value=self.pad_id)
        y = pad_sequence([r[1:] for r in rows], batch_first=True, padding_value=IGNORE)
        return x, y


def make_loader(ds, pad_id, batch_size, seed, epoch):
    g = torch.Generator()
    g.manual_seed(seed + 7919 * epoch)
    return DataLoader(
        ds,
        batch_size=batch_size,
        sampler=RandomSampler(ds, generator=g),
        collate_fn=Collator(pad_id),
        num_workers=2,
        pin_memory=True,
        drop_last=True,
    )


class Stage:
    def __init__(self, model, device, lr, accum, total_updates):
        self.device = device
        self.accum = accum
        self.params = [p for p in model.parameters() if p.requires_grad]
        self.model = torch.compile(model.to(device), mode="max-autotune", dynamic=False)
        self.opt = torch.optim.AdamW(self.params, lr=lr, betas=(0.9, 0.95), fused=True)
        self.sched = torch.optim.lr_scheduler.OneCycleLR(self.opt, lr, total_steps=total_updates)
        self.updates = 0

    def loss(self, x, y):
        with torch.autocast(self.device.type, dtype=torch.bfloat16):
            logits = self.model(x)
        return F.cross_entropy(logits.flatten(0, 1), y.flatten(), ignore_index=IGNORE)

    def run_epoch(self, loader):
        self.model.train()
        window = torch.zeros((), device=self.device)
        for i, (x, y) in enumerate(loader, start=1):
            self.opt.zero_grad(set_to_none=True)
            x = x.to(self.device, non_blocking=True)
            y = y.to(self.device, non_blocking=True)
            loss = self.loss(x, y) / self.accum
            loss.backward()
            window += loss.detach()
            if i % self.accum:
                continue
            torch.nn.utils.clip_grad_norm_(self.params, 1.0)
            self.opt.step()
            self.sched.step()
            self.updates += 1
            if self.updates % 100 == 0:
                logger.info("update %d loss %.4f", self.updates, window.item() / 100)
                window.zero_()
