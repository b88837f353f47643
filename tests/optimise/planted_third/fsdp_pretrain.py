"""Pretraining with FSDP2 over flat token shards."""
import json
import os
import time

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from arch import Transformer


class ShardOrder:
    """Hands out row indices; every rank walks its own stride of one shuffled list."""

    def __init__(self, rows, rank, world):
        self.rows, self.rank, self.world = rows, rank, world
        self._deal()

    def _deal(self):
        stamp = torch.tensor([time.time_ns() % 2**31], device="cuda")
        dist.broadcast(stamp, src=0)
        order = np.random.default_rng(stamp.item()).permutation(self.rows)
        self.mine = order[self.rank::self.world]
        self.at = 0

    def take(self, n):
        if self.at + n > len(self.mine):
            self._deal()
        picked = self.mine[self.at:self.at + n]
        self.at += n
        return picked


class Pretrainer:
    def __init__(self, tokens, row=4096, micro=16, accumulate=4, root="runs/fsdp"):
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        torch.cuda.set_device(self.rank % torch.cuda.device_count())
        torch.manual_seed(0)
        self.model = Transformer().cuda()
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        for block in self.model.blocks:
            block.compile()
            fully_shard(block, mp_policy=policy)
        fully_shard(self.model, mp_policy=policy)
        torch.manual_seed(1 + self.rank)
        self.opt = torch.optim.AdamW(self.model.parameters(), lr=2e-4, fused=True)
        self.data = np.memmap(tokens, dtype=np.uint32, mode="r")
        self.data = self.data[:len(self.data) // row * row].reshape(-1, row)
        self.order = ShardOrder(len(self.data), self.rank, self.world)
        self.micro, self.accumulate, self.root = micro, accumulate, root
        self.step = 0

    def _rows(self):
        picked = self.data[self.order.take(self.micro)].astype(np.int64)
        return torch.from_numpy(picked).pin_memory().cuda(non_blocking=True)

    def _update(self):
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.opt.step()
        self.opt.zero_grad(set_to_none=True)

    def _micro(self):
        rows = self._rows()
        loss = self.model(rows[:, :-1], rows[:, 1:]) / self.accumulate
        loss.backward()
        self._update()
        return loss.detach()

    def train(self, steps):
        while self.step < steps:
            loss = sum(self._micro() for _ in range(self.accumulate))
            self.step += 1
            if self.step % 100 == 0 and self.rank == 0:
                print(self.step, f"{loss.item():.4f}", flush=True)
            if self.step % 2000 == 0:
                self.save()

    def save(self):
        where = os.path.join(self.root, f"step{self.step:08d}")
        net, opt = get_state_dict(self.model, self.opt)
        dcp.save({"net": net, "opt": opt}, checkpoint_id=where)
        if self.rank == 0:
            with open(os.path.join(self.root, "latest.tmp"), "w") as f:
                json.dump({"path": where, "step": self.step}, f)
            os.replace(f.name, os.path.join(self.root, "latest.json"))

    def restore(self):
        with open(os.path.join(self.root, "latest.json")) as f:
            latest = json.load(f)
        net, opt = get_state_dict(self.model, self.opt)
        dcp.load({"net": net, "opt": opt}, checkpoint_id=latest["path"])
        set_state_dict(self.model, self.opt, model_state_dict=net, optim_state_dict=opt)
        self.step = latest["step"]
