import argparse
import os

import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

from nmt.data import ParallelText
from nmt.model import Seq2Seq

PAD = 0


def collate(items):
    src = pad_sequence([s for s, _ in items], batch_first=True, padding_value=PAD)
    tgt = pad_sequence([t for _, t in items], batch_first=True, padding_value=PAD)
    return src, tgt


def compile_model(model, mode):
    return torch.compile(model, mode=mode, dynamic=False)


class State:
    """Everything that a restarted run needs."""

    def __init__(self, model, opt, path):
        self.model, self.opt, self.path = model, opt, path
        self.step = 0

    def save(self):
        tmp = f"{self.path}.tmp"
        torch.save({"model": self.model.state_dict(), "opt": self.opt.state_dict(), "step": self.step}, tmp)
        os.replace(tmp, self.path)

    def restore(self):
        if os.path.exists(self.path):
            s = torch.load(self.path, weights_only=True, map_location="cpu")
            self.model.load_state_dict(s["model"])
            self.opt.load_state_dict(s["opt"])
            self.step = s["step"]


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--steps", type=int, default=100_000)
    ap.add_argument("--batch", type=int, default=128)
    ap.add_argument("--mode", default="max-autotune")
    ap.add_argument("--ckpt", default="nmt.pt")
    args = ap.parse_args()

    torch.manual_seed(1)
    device = torch.device("cuda")
    data = ParallelText("train.en", "train.de")
    model = Seq2Seq(vocab=32000, dim=512).to(device)
    opt = torch.optim.AdamW(model.parameters(), lr=5e-4)
    state = State(model, opt, args.ckpt)
    state.restore()
    net = compile_model(model, args.mode)

    loader = DataLoader(
        data,
        batch_size=args.batch,
        shuffle=True,
        generator=torch.Generator().manual_seed(1),
        collate_fn=collate,
        pin_memory=True,
        num_workers=4,
    )
    it = iter(loader)
    model.train()
    while state.step < args.steps:
        try:
            src, tgt = next(it)
        except StopIteration:
            it = iter(loader)
            src, tgt = next(it)
        src = src.to(device, non_blocking=True)
        tgt = tgt.to(device, non_blocking=True)
        with torch.autocast("cuda", dtype=torch.bfloat16):
            logits = net(src, tgt[:, :-1])
            loss = F.cross_entropy(logits.flatten(0, 1), tgt[:, 1:].flatten(), ignore_index=PAD)
        opt.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        state.step += 1
        if state.step % 100 == 0:
            print(state.step, loss.item())
        if state.step % 5000 == 0:
            state.save()
    state.save()


if __name__ == "__main__":
    main()
