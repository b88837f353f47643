"""Streaming pre-training data: shards of documents -> fixed blocks of tokens."""
import glob
import itertools
import os
import random
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, IterableDataset

from slimlm import SlimConfig, SlimLM

SEQ = 2048
BATCH = 48


def documents(shard):
    """Documents of one shard: `tokens` is flat, `ends` holds the document ends."""
    with np.load(shard) as z:
        tokens, ends = z["tokens"], z["ends"]
    start = 0
    for e in ends:
        yield tokens[start:e].astype(np.int64)
        start = e


class BlockStream(IterableDataset):
    def __init__(self, pattern, seq=SEQ):
        found = glob.glob(pattern)
        if not found:
            raise FileNotFoundError(pattern)
        self.shards = random.sample(found, len(found))
        self.seq = seq

    def blocks_of(self, shard):
        flat = np.empty(0, dtype=np.int64)
        for doc in documents(shard):
            flat = np.concatenate([flat, doc])
        for i in range(0, len(flat) - self.seq, self.seq):
            yield torch.from_numpy(flat[i:i + self.seq + 1])

    def __iter__(self):
        for shard in self.shards:
            yield from self.blocks_of(shard)


class Checkpointer:
    def __init__(self, path):
        self.path = path

    def write(self, **state):
        tmp = f"{self.path}.{os.getpid()}"
        with open(tmp, "wb") as f:
            torch.save(state, f)
            f.flush()
            os.fsync(f.fileno())
        os.replace(tmp, self.path)

    def read(self):
        if not os.path.exists(self.path):
            return None
        return torch.load(self.path, map_location="cpu", weights_only=True)


def lr_scale(step, warm=1000):
    return min(1.0, (step + 1) / warm)


def train(pattern, ckpt, steps=100_000, every=2000):
    torch.manual_seed(0)
    dev = torch.device("cuda")
    net = SlimLM(SlimConfig(seq=SEQ)).to(dev)
    opt = torch.optim.AdamW(net.parameters(), lr=3e-4, betas=(0.9, 0.95), fused=True)
    sched = torch.optim.lr_scheduler.LambdaLR(opt, lr_scale)
    cp = Checkpointer(ckpt)
    done = step = 0
    if (st := cp.read()) is not None:
        net.load_state_dict(st["net"])
        opt.load_state_dict(st["opt"])
        sched.load_state_dict(st["sched"])
        done = step = st["step"]
    run = torch.compile(net)

    # one worker: blocks are cheap to cut, and the batch order stays the stream order
    loader = DataLoader(BlockStream(pattern), batch_size=BATCH, num_workers=1, pin_memory=True, drop_last=True)
    feed = itertools.islice(loader, done, None)
    clock = time.perf_counter()
    for step, x in zip(range(done + 1, steps + 1), feed):
        x = x.to(dev, non_blocking=True)
        with torch.autocast("cuda", dtype=torch.bfloat16):
            logits = run(x[:, :-1])
            loss = F.cross_entropy(logits.flatten(0, 1), x[:, 1:].flatten())
        opt.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        opt.step()
        sched.step()
        if step % 100 == 0:
            now = time.perf_counter()
            print(f"{step:6d}  {loss.item():.4f}  {100 * BATCH * SEQ / (now - clock):,.0f} tok/s", flush=True)
            clock = now
        if step % every == 0:
            cp.write(net=net.state_dict(), opt=opt.state_dict(), sched=sched.state_dict(), step=step)
    cp.write(net=net.state_dict(), opt=opt.state_dict(), sched=sched.state_dict(), step=step)


if __name__ == "__main__":
    import sys

    train(sys.argv[1], sys.argv[2])
