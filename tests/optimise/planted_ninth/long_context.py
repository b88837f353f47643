# continue pretraining at 16k context on packed books
import os
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, get_constant_schedule_with_warmup

CTX = 16_384


def plan_rows(lengths, ctx=CTX):
    """Greedy largest-first packing. Returns lists of document indices."""
    assert lengths.max() <= ctx, "split documents first"
    left = np.argsort(lengths, kind="stable")  # ascending
    plan = []
    while left.size:
        row, room = [], ctx
        while left.size:
            j = np.searchsorted(lengths[left], room, side="right") - 1
            if j < 0:
                break
            row.append(int(left[j]))
            room -= int(lengths[left[j]])
            left = np.delete(left, j)
        plan.append(row)
    return plan


def materialise(tokens, offsets, plan, pad):
    out = np.full((len(plan), CTX), pad, dtype=np.int64)
    pos = np.zeros((len(plan), CTX), dtype=np.int64)
    for r, row in enumerate(plan):
        at = 0
        for d in row:
            doc = tokens[offsets[d]:offsets[d + 1]]
            out[r, at:at + len(doc)] = doc
            pos[r, at:at + len(doc)] = np.arange(len(doc))
            at += len(doc)
    return torch.from_numpy(out), torch.from_numpy(pos)


def indices(n_rows, batch, step, seed):
    per_epoch = n_rows // batch
    epoch, k = divmod(step, per_epoch)
    perm = np.random.default_rng([seed, epoch]).permutation(n_rows)
    return torch.from_numpy(perm[k * batch:(k + 1) * batch])


class Run:
    def __init__(self, base, folder, lr=2e-5, warmup=100):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.model = AutoModelForCausalLM.from_pretrained(
            base, attn_implementation="flash_attention_2", torch_dtype=torch.bfloat16
        ).cuda()
        self.model.gradient_checkpointing_enable()
        self.opt = torch.optim.AdamW(self.model.parameters(), lr=lr, fused=True)
        self.sched = get_constant_schedule_with_warmup(self.opt, warmup)
        self.fwd = torch.compile(self.model)
        self.step = 0

    @property
    def latest(self):
        return self.folder / "latest.pt"

    def save(self):
        part = self.folder / "latest.pt.part"
        with open(part, "wb") as fh:
            torch.save({"model": self.model.state_dict(), "step": self.step}, fh)
            fh.flush()
            os.fsync(fh.fileno())
        os.replace(part, self.latest)

    def maybe_resume(self):
        if self.latest.exists():
            state = torch.load(self.latest, map_location="cpu", weights_only=True)
            self.model.load_state_dict(state["model"])
            self.step = state["step"]

    def train(self, ids, pos, batch, steps, seed=0, save_every=200):
        self.maybe_resume()
        self.model.train()
        while self.step < steps:
            pick = indices(len(ids), batch, self.step, seed)
            x, p = ids[pick].cuda(), pos[pick].cuda()
            loss = self.fwd(input_ids=x, position_ids=p, labels=x, use_cache=False).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.opt.step()
            self.sched.step()
            self.opt.zero_grad(set_to_none=True)
            self.step += 1
            if self.step % 20 == 0:
                print(self.step, loss.item())
            if self.step % save_every == 0:
                self.save()
        self.save()
