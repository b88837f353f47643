"""
Pretrain a ~124M parameter GPT on a flat uint16 token file.

    torchrun --standalone --nproc_per_node=8 pretrain_gpt_ddp.py

Meant for one node with 8 x H100 80GB.
"""
import math
import os
import time
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel as DDP

# -----------------------------------------------------------------------------
data_path = "data/openwebtext/train.bin"
val_path = "data/openwebtext/val.bin"
out_path = "out/gpt124m.pt"
block_size = 1024
micro_batch = 1
grad_accum = 64
max_iters = 20_000
warmup = 500
lr_max, lr_min = 6e-4, 6e-5
log_every, eval_every, eval_iters = 20, 1000, 50
# -----------------------------------------------------------------------------


@dataclass
class GPTConfig:
    vocab_size: int = 50304
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768


class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.n_head = c.n_head
        self.ln1, self.ln2 = nn.LayerNorm(c.n_embd), nn.LayerNorm(c.n_embd)
        self.qkv = nn.Linear(c.n_embd, 3 * c.n_embd)
        self.proj = nn.Linear(c.n_embd, c.n_embd)
        self.mlp = nn.Sequential(nn.Linear(c.n_embd, 4 * c.n_embd), nn.GELU(), nn.Linear(4 * c.n_embd, c.n_embd))

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = self.qkv(self.ln1(x)).view(B, T, 3, self.n_head, C // self.n_head).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(y.transpose(1, 2).reshape(B, T, C))
        return x + self.mlp(self.ln2(x))


class GPT(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.wte = nn.Embedding(c.vocab_size, c.n_embd)
        self.wpe = nn.Embedding(block_size, c.n_embd)
        self.h = nn.ModuleList(Block(c) for _ in range(c.n_layer))
        self.ln_f = nn.LayerNorm(c.n_embd)
        self.head = nn.Linear(c.n_embd, c.vocab_size, bias=False)

    def forward(self, idx, targets):
        x = self.wte(idx) + self.wpe(torch.arange(idx.size(1), device=idx.device))
        for b in self.h:
            x = b(x)
        logits = self.head(self.ln_f(x))
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


dist.init_process_group("nccl")
rank, local_rank, world = dist.get_rank(), int(os.environ["LOCAL_RANK"]), dist.get_world_size()
torch.cuda.set_device(local_rank)
device = torch.device("cuda", local_rank)
master = rank == 0

torch.manual_seed(1337)
torch.backends.cuda.matmul.allow_tf32 = True
amp = torch.autocast("cuda", dtype=torch.bfloat16)

train_data = np.memmap(data_path, dtype=np.uint16, mode="r")
val_data = np.memmap(val_path, dtype=np.uint16, mode="r")
val_gen = torch.Generator()


def get_batch(data, n, gen=None):
    ix = torch.randint(len(data) - block_size - 1, (n,), generator=gen)
    buf = torch.stack([torch.from_numpy(data[i:i + block_size + 1].astype(np.int64)) for i in ix.numpy()])
    buf = buf.pin_memory().to(device, non_blocking=True)
    return buf[:, :-1], buf[:, 1:]


def lr_at(it):
    if it < warmup:
        return lr_max * (it + 1) / warmup
    t = (it - warmup) / max(1, max_iters - warmup)
    return lr_min + 0.5 * (1 + math.cos(math.pi * t)) * (lr_max - lr_min)


raw = GPT(GPTConfig()).to(device)
model = DDP(torch.compile(raw), device_ids=[local_rank])
opt = torch.optim.AdamW(raw.parameters(), lr=lr_max, betas=(0.9, 0.95), weight_decay=0.1, fused=True)


@torch.no_grad()
def val_loss():
    model.eval()
    val_gen.manual_seed(7)  # the same validation crops at every evaluation
    total = torch.zeros((), device=device)
    for _ in range(eval_iters):
        x, y = get_batch(val_data, micro_batch, val_gen)
        with amp:
            total += model.module(x, y)
    model.train()
    return total / eval_iters


t0 = time.time()
for it in range(max_iters):
    for g in opt.param_groups:
        g["lr"] = lr_at(it)
    lossf = torch.zeros((), device=device)
    for micro in range(grad_accum):
        x, y = get_batch(train_data, micro_batch)
        with amp:
            loss = model(x, y) / grad_accum
        loss.backward()
        lossf += loss.detach()
    torch.nn.utils.clip_grad_norm_(raw.parameters(), 1.0)
    opt.step()
    opt.zero_grad(set_to_none=True)

    if it % log_every == 0 and master:
        tok = log_every * grad_accum * micro_batch * block_size * world
        print(f"iter {it} loss {lossf.item():.4f} tok/s {tok / (time.time() - t0):.0f}")
        t0 = time.time()
    if it % eval_every == 0 and master:
        print(f"iter {it} val {val_loss().item():.4f}")

if master:
    os.makedirs(os.path.dirname(out_path), exist_ok=True)
    torch.save(raw.state_dict(), out_path + ".tmp")
    os.replace(out_path + ".tmp", out_path)
dist.destroy_process_group()
