"""Knowledge distillation: 12-layer teacher -> 4-layer student on packed token blocks."""
import argparse
import logging
import os
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

log = logging.getLogger("distill")


class Shape(NamedTuple):
    vocab: int
    width: int
    depth: int
    heads: int
    ctx: int = 512
    p_drop: float = 0.1


class TransformerLM(nn.Module):
    def __init__(self, s: Shape):
        super().__init__()
        self.emb = nn.Embedding(s.vocab, s.width)
        self.pos = nn.Parameter(torch.randn(s.ctx, s.width) * 0.02)
        layer = nn.TransformerEncoderLayer(s.width, s.heads, 4 * s.width, dropout=s.p_drop,
                                           activation="gelu", batch_first=True, norm_first=True)
        self.body = nn.TransformerEncoder(layer, s.depth, enable_nested_tensor=False)
        self.out = nn.Linear(s.width, s.vocab, bias=False)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(s.ctx), persistent=False)

    def forward(self, ids):
        t = ids.size(1)
        x = self.emb(ids) + self.pos[:t]
        return self.out(self.body(x, mask=self.mask[:t, :t], is_causal=True))


class Blocks:
    """Random fixed-size blocks of a token file."""

    def __init__(self, path, ctx, batch, seed):
        self.data = np.memmap(path, dtype=np.uint16, mode="r")
        self.ctx, self.batch = ctx, batch
        self.rs = np.random.default_rng(seed)

    def next(self, device):
        at = self.rs.integers(0, len(self.data) - self.ctx - 1, self.batch)
        b = np.stack([self.data[a:a + self.ctx + 1] for a in at]).astype(np.int64)
        b = torch.from_numpy(b).pin_memory().to(device, non_blocking=True)
        return b[:, :-1], b[:, 1:]


class Distiller:
    def __init__(self, teacher, student, lr, alpha, t_start, t_end, total):
        self.teacher = teacher
        self.student = student
        self.fast_student = torch.compile(student)
        self.fast_teacher = torch.compile(teacher)
        self.opt = torch.optim.AdamW(student.parameters(), lr=lr, weight_decay=0.05, fused=True)
        self.alpha, self.t_start, self.t_end, self.total = alpha, t_start, t_end, total

    def temperature(self, it):
        return self.t_start + (self.t_end - self.t_start) * it / self.total

    def step(self, x, y, it):
        temp = self.temperature(it)

        def objective(s, t, y):
            kd = F.kl_div(F.log_softmax(s / temp, -1), F.log_softmax(t / temp, -1), log_target=True,
                          reduction="sum") * temp * temp / y.numel()
            return self.alpha * kd + (1 - self.alpha) * F.cross_entropy(s.flatten(0, 1), y.flatten())

        objective = torch.compile(objective)
        with torch.autocast("cuda", dtype=torch.bfloat16):
            t_logits = self.fast_teacher(x)
            s_logits = self.fast_student(x)
            loss = objective(s_logits, t_logits, y)
        self.opt.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.student.parameters(), 1.0)
        self.opt.step()
        return loss.detach()


def export(model, path):
    tensors = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    save_file(tensors, path)


def build(shape, weights, device):
    net = TransformerLM(shape)
    if weights:
        net.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return net.to(device)


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--tokens", required=True)
    ap.add_argument("--teacher", required=True)
    ap.add_argument("--out", default="student.safetensors")
    ap.add_argument("--iters", type=int, default=30000)
    ap.add_argument("--batch", type=int, default=96)
    ap.add_argument("--seed", type=int, default=3)
    a = ap.parse_args()
    logging.basicConfig(level=logging.INFO)
    torch.manual_seed(a.seed)
    torch.set_float32_matmul_precision("high")
    dev = torch.device("cuda")

    teacher = build(Shape(32000, 768, 12, 12), a.teacher, dev)
    student = build(Shape(32000, 384, 4, 6, p_drop=0.0), None, dev)
    d = Distiller(teacher, student, lr=5e-4, alpha=0.7, t_start=4.0, t_end=1.0, total=a.iters)
    blocks = Blocks(a.tokens, 512, a.batch, a.seed)
    os.makedirs(os.path.dirname(os.path.abspath(a.out)), exist_ok=True)
    for it in range(1, a.iters + 1):
        loss = d.step(*blocks.next(dev), it)
        if it % 50 == 0:
            log.info("it %d loss %.4f", it, loss.item())
        if it % 1000 == 0:
            export(student, a.out)
    export(student, a.out)


if __name__ == "__main__":
    main()
