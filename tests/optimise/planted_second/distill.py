import torch
import torch.nn.functional as F


class Feeder:
    """Moves numpy batches to the GPU through one page-locked staging area."""

    def __init__(self, source, batch, length, device):
        self.source = source
        self.device = device
        self.stage = torch.empty(batch, length, dtype=torch.int64).pin_memory()

    def __iter__(self):
        for array in self.source:
            self.stage.copy_(torch.from_numpy(array))
            yield self.stage.to(self.device, non_blocking=True)


def kd_loss(student_logits, teacher_logits, tau):
    s = F.log_softmax(student_logits / tau, dim=-1)
    t = F.log_softmax(teacher_logits / tau, dim=-1)
    return F.kl_div(s.flatten(0, 1), t.flatten(0, 1), log_target=True, reduction="batchmean") * tau ** 2


def agreement(student, teacher, held_out):
    """Share of positions at which both models rank the same token first."""
    with torch.no_grad():
        hits = torch.zeros((), device="cuda")
        total = 0
        for ids in held_out:
            same = student(ids).argmax(-1) == teacher(ids).argmax(-1)
            hits += same.sum()
            total += same.numel()
    return hits.item() / total


def distill(student, teacher, source, held_out, steps, lr=3e-4, tau=2.0, batch=64, length=512):
    device = torch.device("cuda")
    student.to(device).train()
    teacher.to(device).eval().requires_grad_(False)
    torch.compile(student, mode="max-autotune")
    opt = torch.optim.AdamW(student.parameters(), lr=lr, fused=True)
    scores = []
    for step, ids in enumerate(Feeder(source, batch, length, device)):
        if step == steps:
            break
        with torch.autocast("cuda", dtype=torch.bfloat16):
            with torch.no_grad():
                target = teacher(ids)
            loss = kd_loss(student(ids), target, tau)
        opt.zero_grad(set_to_none=True)
        loss.backward()
        opt.step()
        if step % 1000 == 999:
            scores.append(agreement(student, teacher, held_out))
    return scores
