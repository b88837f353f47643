"""
Train a character level GPT on a text file prepared with prepare.py
  $ python train_char.py
"""
import os
import time
import math

import numpy as np
import torch

from minigpt import GPT, GPTConfig

out_dir = "out-char"
data_dir = "data/enwik8"
eval_interval = 1000
eval_iters = 100
log_interval = 50
batch_size = 64
block_size = 512
max_iters = 200000
warmup_iters = 500
learning_rate = 6e-4
min_lr = 6e-5
grad_clip = 1.0
device = "cuda"

os.makedirs(out_dir, exist_ok=True)
torch.manual_seed(1337)
torch.backends.cuda.matmul.allow_tf32 = True
data_rng = torch.Generator().manual_seed(1337)
splits = {s: np.memmap(os.path.join(data_dir, s + ".bin"), dtype=np.uint16, mode="r") for s in ("train", "val")}


def get_batch(split):
    data = splits[split]
    ix = torch.randint(len(data) - block_size - 1, (batch_size,), generator=data_rng)
    rows = np.stack([data[i : i + block_size + 1] for i in ix.tolist()]).astype(np.int64)
    rows = torch.from_numpy(rows).pin_memory().to(device, non_blocking=True)
    return rows[:, :-1], rows[:, 1:]


@torch.no_grad()
def estimate_loss():
    out = {}
    model.eval()
    for split in ("train", "val"):
        losses = torch.zeros(eval_iters, device=device)
        for k in range(eval_iters):
            x, y = get_batch(split)
            losses[k] = model(x, y)[1]
        out[split] = losses.mean().item()
    model.train()
    return out


def get_lr(it):
    if it < warmup_iters:
        return learning_rate * (it + 1) / warmup_iters
    ratio = (it - warmup_iters) / (max_iters - warmup_iters)
    return min_lr + 0.5 * (1 + math.cos(math.pi * ratio)) * (learning_rate - min_lr)


model = GPT(GPTConfig(vocab_size=256, block_size=block_size)).to(device)
print(f"{sum(p.numel() for p in model.parameters())/1e6:.1f}M parameters")
optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.95), fused=True)

best_val = 1e9
running = []
t0 = time.time()
for it in range(max_iters):
    for group in optimizer.param_groups:
        group["lr"] = get_lr(it)

    if it % eval_interval == 0:
        losses = estimate_loss()
        print(f"iter {it}: train {losses['train']:.4f} val {losses['val']:.4f}")
        best_val = min(best_val, losses["val"])
        torch.save(
            {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "data_rng": data_rng.get_state(),
                "iter": it,
                "best_val": best_val,
            },
            os.path.join(out_dir, "ckpt.pt"),
        )

    x, y = get_batch("train")
    _, loss = model(x, y)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), grad_clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)

    running.append(loss.item())
    if it % log_interval == 0:
        dt = (time.time() - t0) / log_interval
        t0 = time.time()
        print(f"iter {it}: loss {np.mean(running[-log_interval:]):.4f}, {dt*1000:.1f}ms/it")
