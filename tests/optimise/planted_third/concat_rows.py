# GPT on a handful of text files: concatenate, chop, train. One GPU.
import glob
import os

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch.utils.data import DataLoader, TensorDataset

from gpt_small import GPTSmall

ROW = 1025
TO_GPU = {"device": "cuda", "non_blocking": True}

tok = Tokenizer.from_file("bpe.json")
EOD = tok.token_to_id("<|eod|>")


def stream_rows(paths):
    """Yields rows of ROW tokens, documents running on from row to row."""
    pool = torch.empty(0, dtype=torch.long)
    for path in paths:
        with open(path, encoding="utf-8") as f:
            for doc in f.read().split("\n\n\n"):
                ids = torch.tensor(tok.encode(doc).ids + [EOD])
                pool = torch.cat([pool, ids])
    for start in range(0, len(pool) - ROW + 1, ROW):
        yield pool[start:start + ROW]


def build_rows(pattern, cache="rows.pt"):
    if os.path.exists(cache):
        return torch.load(cache, weights_only=True)
    rows = torch.stack(list(stream_rows(sorted(glob.glob(pattern)))))
    torch.save(rows, cache + ".tmp")
    os.replace(cache + ".tmp", cache)
    return rows


def lr_scale(step, warm=500, total=20_000):
    if step < warm:
        return (step + 1) / warm
    return max(0.1, 1 - (step - warm) / (total - warm))


torch.manual_seed(99)
torch.set_float32_matmul_precision("high")
rows = build_rows("corpus/*.txt")
print(f"{len(rows)} rows of {ROW - 1} tokens")

loader = DataLoader(
    TensorDataset(rows),
    batch_size=32,
    shuffle=True,
    drop_last=True,
    num_workers=2,
    generator=torch.Generator().manual_seed(99),
)
net = GPTSmall(vocab=tok.get_vocab_size(), context=ROW - 1).cuda()
fast = torch.compile(net)
opt = torch.optim.AdamW(net.parameters(), lr=5e-4, betas=(0.9, 0.95), fused=True)
sched = torch.optim.lr_scheduler.LambdaLR(opt, lr_scale)

step = 0
for epoch in range(4):
    for (batch,) in loader:
        batch = batch.to(**TO_GPU)
        with torch.autocast("cuda", dtype=torch.bfloat16):
            logits = fast(batch[:, :-1])
            loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        opt.step()
        sched.step()
        opt.zero_grad(set_to_none=True)
        if step % 100 == 0:
            print(f"epoch {epoch} step {step} loss {loss.item():.3f}")
        step += 1

torch.save(net.state_dict(), "gpt_small.pt.tmp")
os.replace("gpt_small.pt.tmp", "gpt_small.pt")
