"""AdamW for bf16 parameters with fp32 masters kept in the optimizer."""
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint


class MasterAdamW(torch.optim.Optimizer):
    """Masters are made once; after each update they are written to the bf16 weights in place."""

    def __init__(self, params, lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1):
        super().__init__(params, dict(lr=lr, betas=betas, weight_decay=weight_decay))
        self.low, self.master = [], []
        for group in self.param_groups:
            low = list(group["params"])
            self.low.append(low)
            self.master.append([p.detach().clone().float().requires_grad_() for p in low])
        self.inner = torch.optim.AdamW(
            [dict(params=m, lr=g["lr"], betas=g["betas"], weight_decay=g["weight_decay"])
             for m, g in zip(self.master, self.param_groups)],
            fused=True,
        )

    @torch.no_grad()
    def step(self, closure=None):
        for low, master, group, inner in zip(self.low, self.master, self.param_groups, self.inner.param_groups):
            inner["lr"] = group["lr"]
            for p, m in zip(low, master):
                if m.grad is None:
                    m.grad = torch.empty_like(m)
                m.grad.copy_(p.grad)
        self.inner.step()
        for low, master in zip(self.low, self.master):
            torch._foreach_copy_(low, master)


class ChunkedHead(nn.Module):
    """Cross entropy over a large vocabulary without holding all logits at once."""

    def __init__(self, dim, vocab, chunks=8):
        super().__init__()
        self.proj = nn.Linear(dim, vocab, bias=False)
        self.chunks = chunks

    def _part(self, h, y):
        return F.cross_entropy(self.proj(h), y, reduction="sum")

    def forward(self, h, y):
        h, y = h.flatten(0, 1), y.flatten()
        parts = [
            checkpoint(self._part, a, b, use_reentrant=False)
            for a, b in zip(h.chunk(self.chunks), y.chunk(self.chunks))
        ]
        return torch.stack(parts).sum() / y.numel()


def train(trunk, head, rows, steps):
    """rows: endless, pinned, packed (64, 2049) token rows."""
    trunk, head = trunk.cuda().bfloat16().train(), head.cuda().bfloat16().train()
    loss_fn = torch.compile(lambda x, y: head(trunk(x), y))
    opt = MasterAdamW([*trunk.parameters(), *head.parameters()])
    mean = torch.zeros((), device="cuda")
    for step, row in zip(range(1, steps + 1), rows):
        row = row.cuda(non_blocking=True)
        loss = loss_fn(row[:, :-1], row[:, 1:])
        loss.backward()
        opt.step()
        opt.zero_grad(set_to_none=True)
        mean += loss.detach()
        if step % 100 == 0:
            print(step, mean.item() / 100)
            mean.zero_()
