"""Half-precision model with fp32 master weights, without apex."""
import torch
import torch.nn.functional as F


class MasterWeights:
    def __init__(self, model, lr, weight_decay=0.01):
        self.half = [p for p in model.parameters() if p.requires_grad]
        self.lr, self.wd = lr, weight_decay
        self.m = [torch.zeros_like(p, dtype=torch.float32) for p in self.half]
        self.v = [torch.zeros_like(p, dtype=torch.float32) for p in self.half]
        self.t = 0

    def _masters(self):
        return [p.detach().float() for p in self.half]

    @torch.no_grad()
    def step(self, b1=0.9, b2=0.95, eps=1e-8):
        self.t += 1
        c1, c2 = 1 - b1**self.t, 1 - b2**self.t
        master = self._masters()
        grads = [p.grad for p in self.half]
        torch._foreach_mul_(self.m, b1)
        torch._foreach_add_(self.m, grads, alpha=1 - b1)
        torch._foreach_mul_(self.v, b2)
        torch._foreach_addcmul_(self.v, grads, grads, value=1 - b2)
        denom = torch._foreach_div(self.v, c2)
        torch._foreach_sqrt_(denom)
        torch._foreach_add_(denom, eps)
        torch._foreach_mul_(master, 1 - self.lr * self.wd)
        torch._foreach_addcdiv_(master, self.m, denom, value=-self.lr / c1)
        torch._foreach_copy_(self.half, master)

    def zero_grad(self):
        for p in self.half:
            p.grad = None


def lm_loss(model, ids):
    logits = model(ids[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


def fit(model, batches, lr=3e-4, log_every=100):
    model = model.cuda().bfloat16()
    net = torch.compile(model)
    opt = MasterWeights(model, lr)
    for step, ids in enumerate(batches):
        loss = lm_loss(net, ids.cuda())
        loss.backward()
        opt.step()
        opt.zero_grad()
        if step % log_every == 0:
            print(step, loss.item())
    return model
