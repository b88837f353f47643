# Direct preference optimisation of a 0.5B policy.  One H200 (141 GB).
#
# The pairs come from pref_cut.py: every row holds exactly 1024 tokens of one
# conversation (shorter ones were dropped); `resp` marks the response tokens.
import copy
import functools
import os
import sys

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset
from transformers import AutoConfig, AutoModelForCausalLM

BASE = "Qwen/Qwen2.5-0.5B-Instruct"
BETA = 0.1
LR = 5e-7
EPOCHS = 1
PAIRS = 128     # preference pairs in an optimizer step

read_ckpt = functools.partial(torch.load, map_location="cpu", weights_only=False)


class Pairs:
    """chosen / rejected token rows with their response masks"""

    __slots__ = ("cw", "cm", "rw", "rm")

    def __init__(self, cw, cm, rw, rm):
        self.cw, self.cm, self.rw, self.rm = cw, cm, rw, rm

    def cuda(self):
        return Pairs(*(getattr(self, s).to("cuda", non_blocking=True) for s in self.__slots__))

    def split(self, n):
        cols = [getattr(self, s).split(n) for s in self.__slots__]
        return [Pairs(*c) for c in zip(*cols)]


def seq_logp(net, ids, resp):
    logits = net(input_ids=ids[:, :-1], use_cache=False).logits
    nll = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    return -(nll * resp[:, 1:]).sum(1)


def dpo_loss(policy, ref, p):
    with torch.no_grad():
        ref_gap = seq_logp(ref, p.cw, p.cm) - seq_logp(ref, p.rw, p.rm)
    gap = seq_logp(policy, p.cw, p.cm) - seq_logp(policy, p.rw, p.rm)
    z = BETA * (gap - ref_gap)
    return -F.logsigmoid(z).mean(), (z.detach() > 0).sum()


def load_policy(user_ckpt):
    net = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(BASE))
    net.load_state_dict(read_ckpt(user_ckpt)["model"])
    return net.cuda()


def write(net, path):
    torch.save(net.state_dict(), path + ".new")
    os.replace(path + ".new", path)


def main(user_ckpt, pairs_file, out):
    torch.manual_seed(99)
    policy = load_policy(user_ckpt)
    ref = copy.deepcopy(policy).eval().requires_grad_(False)
    policy.train()
    fast, fast_ref = torch.compile(policy), torch.compile(ref)

    rows = torch.load(pairs_file, weights_only=True)
    ds = TensorDataset(rows["cw"], rows["cm"], rows["rw"], rows["rm"])
    dl = DataLoader(ds, batch_size=PAIRS, shuffle=True, drop_last=True, pin_memory=True,
                    generator=torch.Generator().manual_seed(99))
    opt = torch.optim.AdamW(policy.parameters(), lr=LR, weight_decay=0.0, fused=True)

    for epoch in range(EPOCHS):
        for i, cols in enumerate(dl):
            batch = Pairs(*cols).cuda()
            wins = torch.zeros((), device="cuda")
            for part in batch.split(2):
                with torch.autocast("cuda", dtype=torch.bfloat16):
                    loss, won = dpo_loss(fast, fast_ref, part)
                loss.backward()
                wins += won
            torch.nn.utils.clip_grad_norm_(policy.parameters(), 10.0)
            opt.step()
            opt.zero_grad(set_to_none=True)
            if i % 10 == 0:
                print(f"{epoch}:{i} loss {loss.item():.4f} win {wins.item() / PAIRS:.3f}", flush=True)
    write(policy, out)


if __name__ == "__main__":
    main(*sys.argv[1:4])
