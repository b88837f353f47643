"""Train a character-level GPT on one text file (single GPU)."""
import math

import torch
import torch.nn as nn
from torch.nn import functional as F

# settings
input_path = "data/war_and_peace.txt"
batch_size = 1
gradient_accumulation_steps = 64
block_size = 512
max_iters = 4000
eval_interval = 250
eval_iters = 40
learning_rate = 6e-4
warmup_iters = 100
n_layer, n_head, n_embd = 8, 8, 512
device = "cuda" if torch.cuda.is_available() else "cpu"

torch.manual_seed(2024)

with open(input_path, encoding="utf-8") as f:
    text = f.read()
chars = sorted(set(text))
stoi = {c: i for i, c in enumerate(chars)}
vocab_size = len(chars)
ids = torch.tensor([stoi[c] for c in text], dtype=torch.long)
cut = int(0.95 * len(ids))
splits = {"train": ids[:cut].to(device), "val": ids[cut:].to(device)}


def get_batch(split, n):
    src = splits[split]
    start = torch.randint(len(src) - block_size - 1, (n, 1), device=device)
    pos = start + torch.arange(block_size, device=device)
    return src[pos], src[pos + 1]


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.ln1 = nn.LayerNorm(n_embd)
        self.ln2 = nn.LayerNorm(n_embd)
        self.qkv = nn.Linear(n_embd, 3 * n_embd, bias=False)
        self.proj = nn.Linear(n_embd, n_embd, bias=False)
        self.mlp = nn.Sequential(nn.Linear(n_embd, 4 * n_embd), nn.GELU(), nn.Linear(4 * n_embd, n_embd))

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = self.qkv(self.ln1(x)).view(B, T, 3, n_head, C // n_head).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(y.transpose(1, 2).reshape(B, T, C))
        return x + self.mlp(self.ln2(x))


class CharGPT(nn.Module):
    def __init__(self):
        super().__init__()
        self.tok = nn.Embedding(vocab_size, n_embd)
        self.pos = nn.Embedding(block_size, n_embd)
        self.blocks = nn.Sequential(*[Block() for _ in range(n_layer)])
        self.norm = nn.LayerNorm(n_embd)
        self.head = nn.Linear(n_embd, vocab_size, bias=False)

    def forward(self, idx, targets):
        x = self.tok(idx) + self.pos.weight[: idx.size(1)]
        logits = self.head(self.norm(self.blocks(x)))
        return F.cross_entropy(logits.view(-1, vocab_size), targets.view(-1))


@torch.no_grad()
def val_loss(net):
    net.eval()
    total = torch.zeros((), device=device)
    for _ in range(eval_iters):
        total += net(*get_batch("val", 32))
    net.train()
    return total / eval_iters


def lr_at(it):
    if it < warmup_iters:
        return learning_rate * (it + 1) / warmup_iters
    frac = (it - warmup_iters) / (max_iters - warmup_iters)
    return learning_rate * (0.1 + 0.45 * (1 + math.cos(math.pi * frac)))


model = CharGPT().to(device)
optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.95))
for it in range(max_iters):
    for group in optimizer.param_groups:
        group["lr"] = lr_at(it)
    if it % eval_interval == 0:
        print(f"iter {it}: val {val_loss(model):.4f}")
    for micro in range(gradient_accumulation_steps):
        loss = model(*get_batch("train", batch_size))
        (loss / gradient_accumulation_steps).backward()
        print(f"iter {it}.{micro} loss {loss.item():.4f}")
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
