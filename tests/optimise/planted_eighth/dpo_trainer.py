"""Direct preference optimisation with a hand-written trainer."""
import os
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

IGNORE = -100


@dataclass
class DPOArgs:
    beta: float = 0.1
    lr: float = 5e-7
    pairs_per_device: int = 64
    accum: int = 2
    steps: int = 4000
    out: str = "dpo.pt"


def collate(pairs):
    """Chosen rows first, rejected rows second."""
    rows = [p["chosen"] for p in pairs] + [p["rejected"] for p in pairs]
    ids = pad_sequence([torch.tensor(r["ids"]) for r in rows], batch_first=True)
    tgt = pad_sequence([torch.tensor(r["labels"]) for r in rows], batch_first=True, padding_value=IGNORE)
    return ids, tgt


def sequence_logp(net, ids, tgt):
    logits = net(ids[:, :-1])
    tgt = tgt[:, 1:]
    nll = F.cross_entropy(logits.transpose(1, 2), tgt, ignore_index=IGNORE, reduction="none")
    return -nll.sum(1)


class DPOTrainer:
    def __init__(self, policy, reference, dataset, order, args: DPOArgs):
        self.args = args
        self.policy = policy.cuda().train()
        self.reference = reference.cuda().eval().requires_grad_(False)
        self.order = order  # resumable sampler: has state_dict / load_state_dict
        self.loader = DataLoader(dataset, args.pairs_per_device, sampler=order, num_workers=0,
                                 collate_fn=collate, pin_memory=True, drop_last=True)
        self.opt = torch.optim.AdamW(self.policy.parameters(), lr=args.lr, fused=True)
        self.score = torch.compile(sequence_logp, dynamic=False)
        self.step = 0

    def _pair_loss(self, batch):
        ids, tgt = (t.cuda(non_blocking=True) for t in batch)
        pi = self.score(self.policy, ids, tgt)
        with torch.no_grad():
            ref = self.score(self.reference, ids, tgt)
        chosen, rejected = (pi - ref).chunk(2)
        return -F.logsigmoid(self.args.beta * (chosen - rejected)).mean()

    def _accumulate(self, batches):
        total = torch.zeros((), device="cuda")
        for _ in range(self.args.accum):
            loss = self._pair_loss(next(batches))
            loss.backward()
            total += loss.detach()
        return total / self.args.accum

    def _forever(self):
        while True:
            yield from self.loader

    def save(self):
        tmp = self.args.out + ".part"
        torch.save({"policy": self.policy.state_dict(), "opt": self.opt.state_dict(),
                    "order": self.order.state_dict(), "step": self.step}, tmp)
        os.replace(tmp, self.args.out)

    def fit(self):
        batches = self._forever()
        while self.step < self.args.steps:
            loss = self._accumulate(batches)
            self.opt.step()
            self.opt.zero_grad(set_to_none=True)
            self.step += 1
            if self.step % 100 == 0:
                print(f"{self.step:>6} loss {loss.item():.4f}")
            if self.step % 1000 == 0:
                self.save()
