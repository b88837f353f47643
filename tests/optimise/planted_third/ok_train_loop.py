# GPT pretraining on a token memmap, one GPU, resumable at any step.
import os

import numpy as np
import torch

from model import GPT, GPTConfig

out_dir = "out"
micro_rows = 32
accumulate = 4
block = 1024
steps = 50_000
seed = 1337

os.makedirs(out_dir, exist_ok=True)
torch.manual_seed(seed)
data = np.memmap("data/train.bin", dtype=np.uint16, mode="r")


def rows_for(step, micro):
    g = np.random.default_rng([seed, step, micro])
    starts = g.integers(0, len(data) - block - 1, micro_rows)
    rows = np.stack([data[s:s + block + 1] for s in starts]).astype(np.int64)
    rows = torch.from_numpy(rows).pin_memory().cuda(non_blocking=True)
    return rows[:, :-1], rows[:, 1:]


def save(model, opt, step):
    final = os.path.join(out_dir, "last.pt")
    with open(final + ".tmp", "wb") as f:
        torch.save({"model": model.state_dict(), "opt": opt.state_dict(), "step": step}, f)
        f.flush()
        os.fsync(f.fileno())
    os.replace(final + ".tmp", final)


def restore(model, opt):
    final = os.path.join(out_dir, "last.pt")
    if not os.path.exists(final):
        return 0
    state = torch.load(final, map_location="cuda", weights_only=True)
    model.load_state_dict(state["model"])
    opt.load_state_dict(state["opt"])
    return state["step"]


def main():
    net = GPT(GPTConfig(block_size=block)).cuda()
    opt = torch.optim.AdamW(net.parameters(), lr=6e-4, betas=(0.9, 0.95), fused=True)
    first = restore(net, opt)
    torch.manual_seed(seed + first)
    fast = torch.compile(net)
    for step in range(first, steps):
        total = torch.zeros((), device="cuda")
        for micro in range(accumulate):
            x, y = rows_for(step, micro)
            with torch.autocast("cuda", dtype=torch.bfloat16):
                _, loss = fast(x, y)
                loss = loss / accumulate
            loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        opt.step()
        opt.zero_grad(set_to_none=True)
        if step % 100 == 0:
            print(f"step {step} loss {total.item():.4f}")
        if (step + 1) % 1000 == 0:
            save(net, opt, step + 1)


if __name__ == "__main__":
    main()
