"""Periodic evaluation during training on packed blocks."""
import contextlib
import math

import torch
import torch.nn.functional as F


@contextlib.contextmanager
def evaluating(model):
    before = {m: m.training for m in model.modules()}
    model.eval()
    try:
        with torch.inference_mode():
            yield model
    finally:
        for module, mode in before.items():
            module.training = mode


def amp(device):
    if device.type == "cuda":
        return torch.autocast("cuda", dtype=torch.bfloat16)
    return contextlib.nullcontext()


def perplexity(model, blocks, device):
    """blocks yields packed [rows, ctx + 1] token tensors."""
    total = torch.zeros((), dtype=torch.float64, device=device)
    count = 0
    with evaluating(model), amp(device):
        for block in blocks:
            block = block.to(device)
            logits = model(block[:, :-1])
            target = block[:, 1:]
            nll = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="sum")
            total += nll.double()
            count += target.numel()
    return math.exp(total.item() / max(count, 1))


def fit(model, stream, opt, device, steps, eval_blocks, eval_every=1000, log_every=50):
    step_fn = torch.compile(model)
    model.train()
    window = torch.zeros((), device=device)
    for step in range(1, steps + 1):
        block = stream.next().to(device)
        with amp(device):
            logits = step_fn(block[:, :-1])
            loss = F.cross_entropy(logits.flatten(0, 1), block[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        opt.zero_grad(set_to_none=True)
        window += loss.detach()
        if step % log_every == 0:
            print(f"{step:>7d} loss {window.item() / log_every:.4f}")
            window.zero_()
        if step % eval_every == 0:
            print(f"{step:>7d} ppl {perplexity(model, eval_blocks, device):.2f}")
