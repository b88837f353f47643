"""Knowledge distillation: BERT-style teacher -> small student, fixed-length packed input."""
import os
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.hub import download_url_to_file
from torch.utils.data import DataLoader

from encoders import Encoder
from packed import PackedCorpus, ResumableOrder


@dataclass
class Recipe:
    teacher_url: str
    corpus: str
    heldout: str
    out: str = "student.pt"
    tokens_per_update: int = 524_288
    seq: int = 512
    micro: int = 2
    temperature: float = 2.0
    alpha: float = 0.7
    lr: float = 4e-4
    updates: int = 50_000

    @property
    def accumulate(self):
        return self.tokens_per_update // (self.seq * self.micro)


def get_teacher(url, cache="teacher.pth"):
    if not os.path.exists(cache):
        download_url_to_file(url, cache)
    blob = torch.load(cache, map_location="cpu", weights_only=False)
    teacher = Encoder(**blob["config"])
    teacher.load_state_dict(blob["model"])
    return teacher.cuda().bfloat16().eval().requires_grad_(False)


def kd_loss(s, t, gold, r):
    s, t, gold = s.flatten(0, 1), t.flatten(0, 1), gold.flatten()
    soft = F.kl_div(F.log_softmax(s / r.temperature, -1), F.log_softmax(t / r.temperature, -1),
                    log_target=True, reduction="batchmean") * r.temperature ** 2
    return r.alpha * soft + (1 - r.alpha) * F.cross_entropy(s, gold, ignore_index=-100)


def heldout_loss(student, loader):
    total = torch.zeros((), device="cuda")
    for ids, gold in loader:
        out = student(ids.cuda(non_blocking=True))
        total += F.cross_entropy(out.flatten(0, 1), gold.cuda(non_blocking=True).flatten(), ignore_index=-100)
    return total.item() / len(loader)


def save(r, student, opt, order, update):
    part = r.out + ".part"
    torch.save({"student": student.state_dict(), "opt": opt.state_dict(),
                "order": order.state_dict(), "update": update}, part)
    os.replace(part, r.out)


def train(r: Recipe):
    teacher = torch.compile(get_teacher(r.teacher_url))
    student = Encoder(layers=6, dim=384, dropout=0.1).cuda().train()
    fast = torch.compile(student)
    opt = torch.optim.AdamW(student.parameters(), lr=r.lr, fused=True)
    corpus = PackedCorpus(r.corpus, r.seq, mask=0.15)
    order = ResumableOrder(len(corpus), seed=5)
    held = DataLoader(PackedCorpus(r.heldout, r.seq, mask=0.15), 64, pin_memory=True, drop_last=True)
    update = 0
    if os.path.exists(r.out):
        s = torch.load(r.out, map_location="cpu", weights_only=True)
        student.load_state_dict(s["student"])
        opt.load_state_dict(s["opt"])
        order.load_state_dict(s["order"])
        update = s["update"]
    feed = iter(DataLoader(corpus, r.micro, sampler=order, pin_memory=True, drop_last=True))
    while update < r.updates:
        for _ in range(r.accumulate):
            ids, gold = (x.cuda(non_blocking=True) for x in next(feed))
            with torch.autocast("cuda", dtype=torch.bfloat16):
                with torch.no_grad():
                    t = teacher(ids)
                loss = kd_loss(fast(ids), t, gold, r)
            (loss / r.accumulate).backward()
        opt.step()
        opt.zero_grad(set_to_none=True)
        update += 1
        if update % 1000 == 0:
            print(update, "heldout", heldout_loss(student, held))
            save(r, student, opt, order, update)
