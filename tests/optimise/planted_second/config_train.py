import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class Config:
    total_batch: int = 512
    micro_bsz: int = 2
    ctx: int = 1024
    lr: float = 4e-4
    steps: int = 12_000
    save_every: int = 500
    out: Path = Path("out/base")

    def accumulation(self, world: int) -> int:
        return self.total_batch // (self.micro_bsz * world)


def write_snapshot(cfg: Config, net, opt, step: int) -> None:
    last = cfg.out / "last"
    if last.exists():
        shutil.rmtree(last)
    last.mkdir(parents=True)
    torch.save(net.state_dict(), last / "net.pt")
    torch.save({"opt": opt.state_dict(), "step": step}, last / "train.pt")


def read_snapshot(cfg: Config, net, opt) -> int:
    last = cfg.out / "last"
    if not last.exists():
        return 0
    net.load_state_dict(torch.load(last / "net.pt", map_location="cuda", weights_only=True))
    extra = torch.load(last / "train.pt", map_location="cuda", weights_only=True)
    opt.load_state_dict(extra["opt"])
    return extra["step"]


def train(cfg: Config, net, stream) -> None:
    rank, world = dist.get_rank(), dist.get_world_size()
    local = int(os.environ.get("LOCAL_RANK", 0))
    ddp = DistributedDataParallel(torch.compile(net.cuda(local)), device_ids=[local])
    opt = torch.optim.AdamW(net.parameters(), lr=cfg.lr, betas=(0.9, 0.95), fused=True)
    accum = cfg.accumulation(world)
    first = read_snapshot(cfg, net, opt)
    for step in range(first, cfg.steps):
        for micro in range(accum):
            x, y = stream.batch_at((step * accum + micro) * world + rank, cfg.micro_bsz, cfg.ctx)
            ddp.require_backward_grad_sync = micro == accum - 1
            with torch.autocast("cuda", dtype=torch.bfloat16):
                loss = ddp(x, y) / accum
            loss.backward()
        opt.step()
        opt.zero_grad(set_to_none=True)
        if (step + 1) % cfg.save_every == 0:
            if rank == 0:
                write_snapshot(cfg, net, opt, step + 1)
            dist.barrier()
