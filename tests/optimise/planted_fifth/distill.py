"""Distil a causal LM into a narrower student on packed token blocks."""
import argparse
import os

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.func import functional_call
from torch.utils.data import DataLoader, TensorDataset
from transformers import AutoConfig, AutoModelForCausalLM


class Teacher:
    """Frozen teacher, fp32 on disk, bf16 for the forward."""

    def __init__(self, name, device):
        self.net = AutoModelForCausalLM.from_pretrained(name, torch_dtype=torch.float32).to(device)
        self.net.eval()
        self.net.requires_grad_(False)

    def _bf16_params(self):
        return {k: p.to(torch.bfloat16) for k, p in self.net.named_parameters()}

    @torch.no_grad()
    def __call__(self, ids):
        return functional_call(self.net, self._bf16_params(), (ids,)).logits


def build_student(name, shrink):
    cfg = AutoConfig.from_pretrained(name)
    cfg.num_hidden_layers //= shrink
    return AutoModelForCausalLM.from_config(cfg, torch_dtype=torch.bfloat16)


class DistillLoss(nn.Module):
    def __init__(self, temperature, alpha):
        super().__init__()
        self.t = temperature
        self.alpha = alpha

    def forward(self, student, teacher, ids):
        s = student[:, :-1].flatten(0, 1)
        t = teacher[:, :-1].flatten(0, 1)
        kl = F.kl_div(
            F.log_softmax(s / self.t, dim=-1),
            F.log_softmax(t / self.t, dim=-1),
            reduction="batchmean",
            log_target=True,
        ) * self.t ** 2
        ce = F.cross_entropy(s, ids[:, 1:].flatten())
        return self.alpha * kl + (1 - self.alpha) * ce


def load_blocks(path, block):
    flat = np.fromfile(path, dtype=np.uint16).astype(np.int64)
    n = len(flat) // block
    return TensorDataset(torch.from_numpy(flat[: n * block].reshape(n, block)))


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--teacher", default="openai-community/gpt2-medium")
    ap.add_argument("--tokens", default="data/owt.bin")
    ap.add_argument("--shrink", type=int, default=3)
    ap.add_argument("--batch", type=int, default=32)
    ap.add_argument("--epochs", type=int, default=1)
    ap.add_argument("--lr", type=float, default=3e-4)
    ap.add_argument("--temperature", type=float, default=2.0)
    ap.add_argument("--out", default="student-final")
    args = ap.parse_args()
    os.makedirs(args.out, exist_ok=False)

    torch.manual_seed(7)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    teacher = Teacher(args.teacher, device)
    student = build_student(args.teacher, args.shrink).to(device)
    criterion = DistillLoss(args.temperature, alpha=0.7)

    fused = device == "cuda"
    opt = torch.optim.AdamW(student.parameters(), lr=args.lr, weight_decay=0.01, fused=fused)

    order = torch.Generator().manual_seed(7)
    loader = DataLoader(load_blocks(args.tokens, 1024), batch_size=args.batch, shuffle=True,
                        generator=order, drop_last=True, pin_memory=True)

    compiled = torch.compile(student)
    student.train()
    for epoch in range(args.epochs):
        for step, (ids,) in enumerate(loader):
            ids = ids.to(device, non_blocking=True)
            target = teacher(ids)
            loss = criterion(compiled(ids).logits, target, ids)
            loss.backward()
            opt.step()
            opt.zero_grad(set_to_none=True)
            if step % 100 == 0:
                print(f"[{epoch}:{step}] loss {loss.item():.4f}")

    student.save_pretrained(args.out)


if __name__ == "__main__":
    main()
