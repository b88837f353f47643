# Trains a small GPT on a memmap of uint16 tokens.
#   python nano_train.py
import math
import os

import numpy as np
import torch

from model import GPT, GPTConfig

out_dir = "out-web"
data_dir = "data/web"
resume = os.environ.get("RESUME") == "1"
seed = 1337
max_iters = 60_000
warmup_iters = 1_000
eval_every = 1_000
eval_iters = 100
log_every = 50
batch_size = 1
gradient_accumulation_steps = 64
block_size = 512
peak_lr, floor_lr = 6e-4, 6e-5
grad_clip = 1.0
device = "cuda"

os.makedirs(out_dir, exist_ok=True)
torch.backends.cuda.matmul.allow_tf32 = True
torch.manual_seed(seed)
amp = torch.autocast("cuda", dtype=torch.bfloat16)


def get_batch(split, index):
    data = np.memmap(os.path.join(data_dir, f"{split}.bin"), dtype=np.uint16, mode="r")
    g = torch.Generator().manual_seed(seed + index * 2 + (split == "val"))
    starts = torch.randint(len(data) - block_size - 1, (batch_size,), generator=g).tolist()
    rows = np.stack([data[s:s + block_size + 1].astype(np.int64) for s in starts])
    rows = torch.from_numpy(rows).pin_memory().to(device, non_blocking=True)
    return rows[:, :-1], rows[:, 1:]


def lr_at(it):
    if it < warmup_iters:
        return peak_lr * (it + 1) / warmup_iters
    frac = (it - warmup_iters) / max(1, max_iters - warmup_iters)
    return floor_lr + 0.5 * (peak_lr - floor_lr) * (1 + math.cos(math.pi * frac))


@torch.no_grad()
def estimate_loss():
    model.eval()
    total = torch.zeros((), device=device)
    for k in range(eval_iters):
        x, y = get_batch("val", k)
        with amp:
            _, loss = model(x, y)
        total += loss
    model.train()
    return (total / eval_iters).item()


raw_model = GPT(GPTConfig(block_size=block_size, n_layer=12, n_head=12, n_embd=768)).to(device)
optimizer = torch.optim.AdamW(raw_model.parameters(), lr=peak_lr, betas=(0.9, 0.95), fused=True)
start = 0
if resume:
    saved = torch.load(os.path.join(out_dir, "ckpt.pt"), map_location=device, weights_only=True)
    raw_model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    start = saved["it"]
model = torch.compile(raw_model)

x, y = get_batch("train", start * gradient_accumulation_steps)
for it in range(start, max_iters):
    for group in optimizer.param_groups:
        group["lr"] = lr_at(it)

    if it % eval_every == 0 and it > start:
        print(f"iter {it}: val loss {estimate_loss():.4f}")
        state = {"model": raw_model.state_dict(), "optimizer": optimizer.state_dict(), "it": it}
        torch.save(state, os.path.join(out_dir, "ckpt.pt"))

    for micro in range(gradient_accumulation_steps):
        with amp:
            _, loss = model(x, y)
        x, y = get_batch("train", it * gradient_accumulation_steps + micro + 1)
        loss.backward()
    torch.nn.utils.clip_grad_norm_(raw_model.parameters(), grad_clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)

    if it % log_every == 0:
        print(f"iter {it}: loss {loss.item():.4f}")
