"""Distil a large decoder into a small one on raw text (research code)."""
import argparse
import random

import numpy as np
import torch
import torch.nn.functional as F
from torch.func import functional_call
from transformers import AutoConfig, AutoModelForCausalLM


class Crops:
    """Random fixed-length crops of a token file."""

    def __init__(self, path, length, batch, device, seed):
        self.tokens = np.memmap(path, dtype=np.uint16, mode="r")
        self.length, self.batch, self.device = length, batch, device
        self.rng = np.random.default_rng(seed)

    def next(self):
        starts = self.rng.integers(0, len(self.tokens) - self.length, size=self.batch)
        rows = np.stack([self.tokens[a : a + self.length] for a in starts]).astype(np.int64)
        return torch.from_numpy(rows).to(self.device)


def in_bf16(params):
    return {name: p.to(torch.bfloat16) for name, p in params.items()}


def kd_loss(student_logits, teacher_logits, temperature):
    s = F.log_softmax(student_logits / temperature, dim=-1)
    t = F.log_softmax(teacher_logits / temperature, dim=-1)
    kl = F.kl_div(s.flatten(0, 1), t.flatten(0, 1), log_target=True, reduction="batchmean")
    return kl * temperature**2


def forward_backward(student_fwd, teacher, params, x, temperature):
    with torch.no_grad():
        target = teacher(x).logits
    half = in_bf16(params)
    loss = kd_loss(student_fwd(half, x), target, temperature)
    loss.backward()
    return loss.detach()


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--teacher", default="EleutherAI/pythia-2.8b")
    ap.add_argument("--student-config", default="EleutherAI/pythia-160m")
    ap.add_argument("--tokens", default="data/pile_pythia.bin")
    ap.add_argument("--steps", type=int, default=20000)
    ap.add_argument("--batch", type=int, default=16)
    ap.add_argument("--max-len", type=int, default=1024)
    ap.add_argument("--temperature", type=float, default=2.0)
    ap.add_argument("--lr", type=float, default=4e-4)
    ap.add_argument("--seed", type=int, default=21)
    args = ap.parse_args()

    random.seed(args.seed)
    torch.manual_seed(args.seed)
    device = torch.device("cuda")
    teacher = AutoModelForCausalLM.from_pretrained(args.teacher, torch_dtype=torch.bfloat16)
    teacher.to(device).eval().requires_grad_(False)
    student = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(args.student_config))
    student.to(device).train()
    params = dict(student.named_parameters())
    optimizer = torch.optim.AdamW(params.values(), lr=args.lr, betas=(0.9, 0.95))

    @torch.compile(dynamic=False)
    def student_fwd(weights, x):
        return functional_call(student, weights, (x,)).logits

    crops = Crops(args.tokens, args.max_len, args.batch, device, args.seed)
    running = torch.zeros((), device=device)
    for step in range(1, args.steps + 1):
        length = random.randint(64, args.max_len)
        x = crops.next()[:, :length]
        running += forward_backward(student_fwd, teacher, params, x, args.temperature)
        torch.nn.utils.clip_grad_norm_(params.values(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 100 == 0:
            print(f"step {step} kd {running.item() / 100:.4f}")
            running.zero_()


if __name__ == "__main__":
    main()
