"""Knowledge distillation of a causal LM on packed blocks."""
import os

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import AutoModelForCausalLM, get_cosine_schedule_with_warmup

from data import PackedBlocks, ResumableSampler

cfg = dict(
    teacher="EleutherAI/pythia-1b",
    student="EleutherAI/pythia-70m",
    blocks="data/packed.bin",
    batch_size=32,
    lr=3e-4,
    steps=30000,
    T=2.0,
    alpha=0.5,
)


def kd_loss(s, t, labels, T, alpha):
    V = s.size(-1)
    soft = F.kl_div(
        F.log_softmax(s / T, dim=-1).view(-1, V),
        F.softmax(t / T, dim=-1).view(-1, V),
        reduction="batchmean",
    ) * T * T
    hard = F.cross_entropy(s[:, :-1].reshape(-1, V), labels[:, 1:].reshape(-1))
    return alpha * soft + (1 - alpha) * hard


def save(student, opt, sched, sampler, step, path="distill.pt"):
    tmp = path + ".part"
    torch.save({"student": student.state_dict(), "opt": opt.state_dict(), "sched": sched.state_dict(),
                "sampler": sampler.state_dict(), "step": step}, tmp)
    os.replace(tmp, path)


def main():
    device = torch.device("cuda")
    torch.manual_seed(7)
    teacher = AutoModelForCausalLM.from_pretrained(cfg["teacher"], torch_dtype=torch.bfloat16).to(device)
    teacher.eval()
    student = AutoModelForCausalLM.from_pretrained(cfg["student"]).to(device)
    net = torch.compile(student)
    ds = PackedBlocks(cfg["blocks"])
    sampler = ResumableSampler(len(ds), seed=7)
    dl = DataLoader(ds, batch_size=cfg["batch_size"], sampler=sampler, num_workers=4,
                    pin_memory=True, drop_last=True)
    opt = torch.optim.AdamW(student.parameters(), lr=cfg["lr"])
    sched = get_cosine_schedule_with_warmup(opt, 500, cfg["steps"])

    step = 0
    if os.path.exists("distill.pt"):
        ck = torch.load("distill.pt", map_location="cpu", weights_only=True)
        student.load_state_dict(ck["student"])
        opt.load_state_dict(ck["opt"])
        sched.load_state_dict(ck["sched"])
        sampler.load_state_dict(ck["sampler"])
        step = ck["step"]

    bar = tqdm(total=cfg["steps"], initial=step)
    student.train()
    while step < cfg["steps"]:
        for ids in dl:
            ids = ids.to(device, non_blocking=True)
            t_logits = teacher(ids).logits
            with torch.autocast("cuda", dtype=torch.bfloat16):
                s_logits = net(ids).logits
            s_logits, t_logits = s_logits.float(), t_logits.float()
            loss = kd_loss(s_logits, t_logits, ids, cfg["T"], cfg["alpha"])
            loss.backward()
            gn = torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            opt.step()
            sched.step()
            opt.zero_grad(set_to_none=True)
            step += 1
            bar.update(1)
            bar.set_postfix(loss=f"{float(loss):.3f}", gn=f"{float(gn):.2f}")
            if step % 2000 == 0:
                save(student, opt, sched, sampler, step)
            if step >= cfg["steps"]:
                break


if __name__ == "__main__":
    main()
