"""bf16 training with fp32 master weights under DistributedDataParallel.

The model itself lives in bf16; AdamW works on fp32 masters.
"""
import contextlib
import json
import os
import pathlib
import shutil
import tempfile

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Subset

from corpus import PackedTokens      # fixed-length rows of packed documents
from nets import build_decoder       # build_decoder(size) -> nn.Module returning (logits, loss)


class MasterAdamW:
    def __init__(self, module, **kw):
        self.work = [p for p in module.parameters() if p.requires_grad]
        self.master = [p.detach().float().clone() for p in self.work]
        self.inner = torch.optim.AdamW(self.master, fused=True, **kw)

    @torch.no_grad()
    def sync_working_copy(self):
        for w, m in zip(self.work, self.master):
            w.copy_(m)  # fp32 -> bf16

    @torch.no_grad()
    def step(self, max_norm):
        for w, m in zip(self.work, self.master):
            m.grad = w.grad.float()
            w.grad = None
        torch.nn.utils.clip_grad_norm_(self.master, max_norm)
        self.inner.step()
        self.inner.zero_grad(set_to_none=True)

    def state_dict(self):
        return {"master": self.master, "inner": self.inner.state_dict()}

    @torch.no_grad()
    def load_state_dict(self, s):
        for m, saved in zip(self.master, s["master"]):
            m.copy_(saved)
        self.inner.load_state_dict(s["inner"])


class Order:
    """Epoch permutation shared by all ranks; each rank takes its own stride."""

    def __init__(self, n, rank, world, seed):
        self.n, self.rank, self.world, self.seed = n, rank, world, seed

    def rows(self, epoch, skip):
        g = torch.Generator().manual_seed(self.seed + epoch)
        perm = torch.randperm(self.n, generator=g)
        per_rank = self.n // self.world
        return perm[self.rank:per_rank * self.world:self.world][skip:].numpy()


def save(folder, state):
    local = pathlib.Path(tempfile.gettempdir()) / f"ck-{os.getpid()}.pt"
    torch.save(state, local)
    shutil.copyfile(local, folder / "latest.pt")
    local.unlink()


def main():
    cfg = json.loads(pathlib.Path("config.json").read_text())
    dist.init_process_group("nccl")
    rank, world = dist.get_rank(), dist.get_world_size()
    local_rank = int(os.environ["LOCAL_RANK"])
    torch.cuda.set_device(local_rank)
    dev = torch.device("cuda", local_rank)
    torch.manual_seed(cfg["seed"])  # rank-independent: the masters are made before DDP broadcasts anything

    net = build_decoder(cfg["size"]).to(dev, torch.bfloat16)
    torch.manual_seed(cfg["seed"] + 1 + rank)  # dropout differs from rank to rank
    opt = MasterAdamW(net, lr=cfg["lr"], betas=(0.9, 0.95), weight_decay=0.1)
    folder = pathlib.Path(cfg["run_dir"])
    folder.mkdir(parents=True, exist_ok=True)
    epoch = pos = step = 0
    if (folder / "latest.pt").exists():
        st = torch.load(folder / "latest.pt", map_location=dev, weights_only=True)
        opt.load_state_dict(st["opt"])
        opt.sync_working_copy()
        epoch, pos, step = st["epoch"], st["pos"], st["step"]
    ddp = DistributedDataParallel(torch.compile(net), device_ids=[local_rank], gradient_as_bucket_view=True)

    data = PackedTokens(cfg["tokens"], cfg["seq"])
    order = Order(len(data), rank, world, cfg["seed"])
    micro, accum = cfg["micro_batch"], cfg["accum"]
    for epoch in range(epoch, cfg["epochs"]):
        loader = DataLoader(Subset(data, order.rows(epoch, pos)), batch_size=micro, num_workers=4,
                            pin_memory=True, drop_last=True)
        feed = iter(loader)
        for _ in range(len(loader) // accum):
            total = torch.zeros((), device=dev)
            for k in range(accum):
                x, y = (t.to(dev, non_blocking=True) for t in next(feed))
                opt.sync_working_copy()
                last = k == accum - 1
                with contextlib.nullcontext() if last else ddp.no_sync():
                    _, loss = ddp(x, y)
                    (loss / accum).backward()
                total += loss.detach()
            opt.step(1.0)
            step += 1
            pos += micro * accum
            if step % cfg["log_every"] == 0 and rank == 0:
                print(f"{step} {(total / accum).item():.4f}", flush=True)
            if step % cfg["save_every"] == 0 and rank == 0:
                save(folder, {"opt": opt.state_dict(), "epoch": epoch, "pos": pos, "step": step})
        pos = 0
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
