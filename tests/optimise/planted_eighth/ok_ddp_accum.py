"""DDP language-model trainer with gradient accumulation that can be stopped at any update."""
import contextlib
import os

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Sampler

MICRO, ACCUM, UPDATES, LOG, SAVE = 32, 4, 20_000, 100, 1000


class OffsetSampler(Sampler):
    """A permutation per epoch, split over ranks, starting at a given sample."""

    def __init__(self, n, rank, world, seed=11, start=0):
        self.n, self.rank, self.world, self.seed, self.start = n - n % world, rank, world, seed, start

    def __iter__(self):
        per = self.n // self.world
        epoch, skip = divmod(self.start, per)
        while True:
            g = torch.Generator().manual_seed(self.seed + epoch)  # same permutation on all ranks
            yield from torch.randperm(self.n, generator=g)[self.rank :: self.world][skip:].tolist()
            epoch, skip = epoch + 1, 0


def write(state, path):
    tmp = f"{path}.{os.getpid()}.tmp"
    with open(tmp, "wb") as f:
        torch.save(state, f)
        f.flush()
        os.fsync(f.fileno())
    os.replace(tmp, path)


def main(net, dataset, path):
    dist.init_process_group("nccl")
    rank, world = dist.get_rank(), dist.get_world_size()
    dev = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(dev)
    torch.manual_seed(1000 + rank)
    net.to(dev).train()
    opt = torch.optim.AdamW(net.parameters(), lr=3e-4, fused=True)
    update = 0
    if os.path.exists(path):
        s = torch.load(path, map_location="cpu", weights_only=True)
        net.load_state_dict(s["net"])
        opt.load_state_dict(s["opt"])
        update = s["update"]
    order = OffsetSampler(len(dataset), rank, world, start=update * MICRO * ACCUM)
    feed = iter(DataLoader(dataset, MICRO, sampler=order, num_workers=4, pin_memory=True, drop_last=True))
    model = DistributedDataParallel(torch.compile(net), device_ids=[dev.index])
    shown = torch.zeros((), device=dev)
    while update < UPDATES:
        for m in range(ACCUM):
            row = next(feed).to(dev, non_blocking=True)
            with contextlib.nullcontext() if m == ACCUM - 1 else model.no_sync():
                with torch.autocast("cuda", dtype=torch.bfloat16):
                    out = model(row[:, :-1])
                    loss = F.cross_entropy(out.flatten(0, 1), row[:, 1:].flatten()) / ACCUM
                loss.backward()
            shown += loss.detach()
        opt.step()
        opt.zero_grad(set_to_none=True)
        update += 1
        if update % LOG == 0:
            if rank == 0:
                print(update, shown.item() / LOG)
            shown.zero_()
        if update % SAVE == 0 and rank == 0:
            write({"net": net.state_dict(), "opt": opt.state_dict(), "update": update}, path)
    dist.destroy_process_group()
