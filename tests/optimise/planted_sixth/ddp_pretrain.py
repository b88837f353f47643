import os

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel as DDP

from nanolm.model import Transformer, ModelArgs
from nanolm.noise import corrupt_spans

ACCUM = 8
MICRO = 16
SEQ = 1024
STEPS = 50_000


def setup():
    dist.init_process_group("nccl")
    rank = dist.get_rank()
    local = int(os.environ["LOCAL_RANK"])
    torch.cuda.set_device(local)
    return rank, dist.get_world_size(), torch.device("cuda", local)


def list_shards(root):
    return [os.path.join(root, f) for f in os.listdir(root) if f.endswith(".npy")]


class ShardReader:
    def __init__(self, root, rank, world):
        self.files = list_shards(root)[rank::world]
        self.i = 0
        self.pos = 0
        self.data = np.load(self.files[0], mmap_mode="r")

    def next(self):
        need = MICRO * SEQ + 1
        if self.pos + need > len(self.data):
            self.i = (self.i + 1) % len(self.files)
            self.data = np.load(self.files[self.i], mmap_mode="r")
            self.pos = 0
        buf = torch.from_numpy(self.data[self.pos : self.pos + need].astype(np.int64))
        self.pos += need - 1
        return buf[:-1].view(MICRO, SEQ), buf[1:].view(MICRO, SEQ)

    def state_dict(self):
        return {"i": self.i, "pos": self.pos}

    def load_state_dict(self, s):
        self.i, self.pos = s["i"], s["pos"]
        self.data = np.load(self.files[self.i], mmap_mode="r")


def save(path, state):
    torch.save(state, path + ".tmp")
    os.replace(path + ".tmp", path)


def main():
    rank, world, device = setup()
    torch.manual_seed(0)
    model = Transformer(ModelArgs(max_seq_len=SEQ)).to(device)
    torch.manual_seed(1000 + rank)
    noise_gen = torch.Generator(device=device)
    noise_gen.manual_seed(1234)
    ddp = DDP(torch.compile(model), device_ids=[device.index])
    opt = torch.optim.AdamW(ddp.parameters(), lr=3e-4, fused=True)
    reader = ShardReader("/data/shards", rank, world)
    start = 0
    ckpt = f"ckpt/rank{rank}.pt"
    if os.path.exists(ckpt):
        s = torch.load(ckpt, map_location=device, weights_only=True)
        model.load_state_dict(s["model"])
        opt.load_state_dict(s["opt"])
        reader.load_state_dict(s["reader"])
        noise_gen.set_state(s["noise"].cpu())
        start = s["step"]

    for step in range(start, STEPS):
        for micro in range(ACCUM):
            x, y = (t.to(device) for t in reader.next())
            x = corrupt_spans(x, p=0.05, generator=noise_gen)
            with torch.autocast("cuda", torch.bfloat16):
                loss = ddp(x, y) / ACCUM
            loss.backward()
        torch.nn.utils.clip_grad_norm_(ddp.parameters(), 1.0)
        opt.step()
        opt.zero_grad(set_to_none=True)
        if rank == 0 and step % 100 == 0:
            print(step, loss.item() * ACCUM)
        if step % 1000 == 999:
            save(ckpt, {"model": model.state_dict(), "opt": opt.state_dict(),
                        "reader": reader.state_dict(), "noise": noise_gen.get_state(),
                        "step": step + 1})
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
