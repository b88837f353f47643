"""Language-model training with a random sequence length per step.

Short sequences are cheap and long ones teach long-range structure, so every
step crops its batch to a length drawn between MIN_LEN and a growing maximum.
"""
import os
import random
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM

TOKENS = Path("corpus/tokens.npy")
RUN = Path("runs/curriculum")
MIN_LEN, MAX_LEN = 128, 1024
BATCH = 64
TOTAL = 60_000
SAVE_EVERY = 1000


class Windows(Dataset):
    """Consecutive MAX_LEN+1 windows of one token stream (documents are concatenated with EOS)."""

    def __init__(self, path):
        self.arr = np.load(path, mmap_mode="r")

    def __len__(self):
        return (len(self.arr) - 1) // MAX_LEN

    def __getitem__(self, i):
        w = self.arr[i * MAX_LEN:(i + 1) * MAX_LEN + 1]
        return torch.from_numpy(w.astype(np.int64))


def prepare(net):
    net.gradient_checkpointing_disable()
    net.train()
    return torch.compile(net, dynamic=False)


def length_at(step, rnd):
    # counter-based, so a given step has the same length in every run
    top = MIN_LEN + (MAX_LEN - MIN_LEN) * min(1.0, step / (0.5 * TOTAL))
    return rnd.randint(MIN_LEN, int(top))


def forever(loader):
    while True:
        yield from loader


def snapshot(net, opt, sched, step):
    RUN.mkdir(parents=True, exist_ok=True)
    tmp = RUN / "ck.pt.tmp"
    torch.save({"net": net.state_dict(), "opt": opt.state_dict(), "sched": sched.state_dict(), "step": step}, tmp)
    os.replace(tmp, RUN / "ck.pt")


def run():
    torch.manual_seed(17)
    torch.backends.cuda.matmul.allow_tf32 = True
    device = torch.device("cuda")
    cfg = LlamaConfig(vocab_size=32000, hidden_size=768, intermediate_size=2048, num_hidden_layers=12,
                      num_attention_heads=12, max_position_embeddings=MAX_LEN)
    net = LlamaForCausalLM(cfg).to(device)
    opt = torch.optim.AdamW(net.parameters(), lr=4e-4, betas=(0.9, 0.95), fused=True)
    sched = torch.optim.lr_scheduler.CosineAnnealingLR(opt, TOTAL, 4e-5)
    step = 0
    if (RUN / "ck.pt").exists():
        ck = torch.load(RUN / "ck.pt", map_location="cpu", weights_only=True)
        net.load_state_dict(ck["net"])
        opt.load_state_dict(ck["opt"])
        sched.load_state_dict(ck["sched"])
        step = ck["step"]
    fast = prepare(net)

    loader = DataLoader(Windows(TOKENS), batch_size=BATCH, shuffle=True, drop_last=True, num_workers=6, pin_memory=True)
    batches = forever(loader)
    bar = tqdm(total=TOTAL, initial=step)
    while step < TOTAL:
        n = length_at(step, random.Random(1000 + step))
        x = next(batches).to(device, non_blocking=True)[:, :n + 1]
        with torch.autocast("cuda", dtype=torch.bfloat16):
            logits = fast(input_ids=x[:, :-1], use_cache=False).logits
            loss = F.cross_entropy(logits.flatten(0, 1), x[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        opt.step()
        sched.step()
        opt.zero_grad(set_to_none=True)
        step += 1
        bar.update()
        bar.set_postfix_str(f"len {n} loss {loss:.3f}")
        if step % SAVE_EVERY == 0:
            snapshot(net, opt, sched, step)
    snapshot(net, opt, sched, step)


if __name__ == "__main__":
    run()
