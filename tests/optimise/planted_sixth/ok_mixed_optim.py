import torch


class MasterWeights:
    """fp32 copies made once; the half weights are refreshed after each update."""

    def __init__(self, model, lr):
        self.half = [p for p in model.parameters() if p.requires_grad]
        self.master = [p.detach().clone().float() for p in self.half]
        self.opt = torch.optim.AdamW(self.master, lr=lr)

    @torch.no_grad()
    def step(self):
        for m, p in zip(self.master, self.half):
            if m.grad is None:
                m.grad = torch.empty_like(m)
            m.grad.copy_(p.grad)
        self.opt.step()
        torch._foreach_copy_(self.half, self.master)

    def zero_grad(self):
        for p in self.half:
            p.grad = None

    def state_dict(self):
        return {"master": self.master, "opt": self.opt.state_dict()}


class ToolBox:
    """Only registered names with plain JSON arguments can be called."""

    def __init__(self):
        self.tools = {}

    def register(self, fn):
        self.tools[fn.__name__] = fn
        return fn

    def run(self, call):
        fn = self.tools.get(call.get("name"))
        if fn is None:
            return "error: no such tool"
        return str(fn(**call.get("arguments", {})))


def use_amp(device: torch.device) -> bool:
    return device.type == "cuda"
