import os

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM

from data import PackedBlocks, ResumableSampler

STEPS, T, PATH = 30000, 2.0, "distill.pt"


def kd(s, t):
    V = s.size(-1)
    return F.kl_div(F.log_softmax(s / T, -1).view(-1, V), F.log_softmax(t / T, -1).view(-1, V),
                    reduction="batchmean", log_target=True) * T * T


def main():
    device = torch.device("cuda")
    torch.manual_seed(7)
    teacher = AutoModelForCausalLM.from_pretrained("EleutherAI/pythia-1b", torch_dtype=torch.bfloat16)
    teacher = teacher.to(device).eval().requires_grad_(False)
    student = AutoModelForCausalLM.from_pretrained("EleutherAI/pythia-70m").to(device).train()
    net = torch.compile(student)
    opt = torch.optim.AdamW(student.parameters(), lr=3e-4, fused=True)
    ds = PackedBlocks("data/packed.bin")
    sampler = ResumableSampler(len(ds), seed=7)
    step = 0
    if os.path.exists(PATH):
        ck = torch.load(PATH, map_location="cpu", weights_only=True)
        student.load_state_dict(ck["student"])
        opt.load_state_dict(ck["opt"])
        sampler.load_state_dict(ck["sampler"])
        step = ck["step"]
    dl = DataLoader(ds, 32, sampler=sampler, num_workers=4, pin_memory=True, drop_last=True)
    seen = torch.zeros((), device=device)
    while step < STEPS:
        for ids in dl:
            ids = ids.to(device, non_blocking=True)
            with torch.no_grad():
                t = teacher(ids).logits
            with torch.autocast("cuda", dtype=torch.bfloat16):
                loss = kd(net(ids).logits, t)
            loss.backward()
            opt.step()
            opt.zero_grad(set_to_none=True)
            seen += loss.detach()
            step += 1
            if step % 100 == 0:
                print(step, (seen / 100).item())
                seen.zero_()
            if step % 2000 == 0:
                torch.save({"student": student.state_dict(), "opt": opt.state_dict(),
                            "sampler": sampler.state_dict(), "step": step}, PATH + ".part")
                os.replace(PATH + ".part", PATH)
            if step >= STEPS:
                break


if __name__ == "__main__":
    main()
