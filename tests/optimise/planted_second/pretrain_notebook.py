#!/usr/bin/env python
# coding: utf-8

# # Pre-training a 60M model on TinyStories

# In[1]:


import time

import numpy as np
import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM

torch.set_float32_matmul_precision("high")
torch.manual_seed(0)


# In[2]:


SEQ = 512
MICRO_BATCH = 1
GRAD_ACCUM = 128
STEPS = 4000
DEVICE = torch.device("cuda")

data = np.memmap("tinystories.u16", dtype=np.uint16, mode="r")
rows = len(data) // (SEQ + 1)
order = np.random.default_rng(0).permutation(rows)


def batch(i):
    take = order[np.arange(i * MICRO_BATCH, (i + 1) * MICRO_BATCH) % rows]
    arr = np.stack([data[r * (SEQ + 1):(r + 1) * (SEQ + 1)] for r in take]).astype(np.int64)
    t = torch.from_numpy(arr).to(DEVICE)
    return t[:, :-1], t[:, 1:]


# In[3]:


cfg = LlamaConfig(
    vocab_size=8192, hidden_size=512, intermediate_size=1408,
    num_hidden_layers=12, num_attention_heads=8, max_position_embeddings=SEQ,
)
net = LlamaForCausalLM(cfg).to(DEVICE)
opt = torch.optim.AdamW(net.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
sched = torch.optim.lr_scheduler.OneCycleLR(opt, max_lr=1e-3, total_steps=STEPS, pct_start=0.05)
print(sum(p.numel() for p in net.parameters()) / 1e6, "M parameters")


# In[4]:


net.train()
t0 = time.time()
for step in range(STEPS):
    acc = torch.zeros((), device=DEVICE)
    for j in range(GRAD_ACCUM):
        x, y = batch(step * GRAD_ACCUM + j)
        with torch.autocast("cuda", torch.bfloat16):
            out = net(x, use_cache=False).logits
            loss = F.cross_entropy(out.flatten(0, 1), y.flatten()) / GRAD_ACCUM
        loss.backward()
        acc += loss.detach()
    torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    opt.step()
    sched.step()
    opt.zero_grad(set_to_none=True)
    if step % 50 == 0:
        print(step, acc.item(), f"{time.time() - t0:.0f}s")
    if step and step % 500 == 0:
        state = {"net": net.state_dict(), "opt": opt.state_dict(), "sched": sched.state_dict(), "step": step}
        torch.save(state, "tinystories_latest.pt")
