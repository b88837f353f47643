"""Data-parallel pretraining with large effective batches."""
import os

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel as DDP


def init():
    dist.init_process_group("nccl")
    local = int(os.environ["LOCAL_RANK"])
    torch.cuda.set_device(local)
    return local


def train(net, stream, opt, updates, accum):
    local = init()
    model = DDP(torch.compile(net.to(local)), device_ids=[local])
    for _ in range(updates):
        opt.zero_grad(set_to_none=True)
        for _ in range(accum):
            x, y = stream.next()
            loss = model(x, y) / accum
            loss.backward()
        opt.step()
    dist.destroy_process_group()


def forward_backward(net, micro, opt, n):
    """One micro-batch."""
    opt.zero_grad(set_to_none=True)
    loss = net(*micro) / n
    loss.backward()
    return loss.detach()


def big_step(net, micros, opt):
    losses = [forward_backward(net, m, opt, len(micros)) for m in micros]
    torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    opt.step()
    return torch.stack(losses).sum()


class Accumulator:
    def __init__(self, net, opt, k):
        self.net, self.opt, self.k = net, opt, k

    def learn(self, batch):
        for part in torch.chunk(batch, self.k):
            loss = self.net(part) / self.k
            loss.backward()
            self.opt.step()
        self.opt.zero_grad(set_to_none=True)
