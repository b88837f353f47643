"""Pretrain a small decoder on memory-mapped tokens; can be restarted."""
import os

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from minilm.model import Decoder, DecoderConfig

CKPT = "runs/minilm/ckpt.pt"
TOKENS = "data/fineweb_train.bin"
SEQ_LEN = 1024
BATCH = 32
ACCUM = 8
MAX_STEPS = 60_000
SAVE_EVERY = 1000
LOG_EVERY = 50


class TokenRows(Dataset):
    def __init__(self, path, seq_len):
        self.tokens = np.memmap(path, dtype=np.uint16, mode="r")
        self.seq_len = seq_len

    def __len__(self):
        return (len(self.tokens) - 1) // self.seq_len

    def __getitem__(self, i):
        a = i * self.seq_len
        row = torch.from_numpy(self.tokens[a : a + self.seq_len + 1].astype(np.int64))
        return row[:-1], row[1:]


def cycle(loader):
    while True:
        yield from loader


def main():
    torch.manual_seed(99)
    device = torch.device("cuda")
    raw_model = Decoder(DecoderConfig(seq_len=SEQ_LEN)).to(device)
    optimizer = torch.optim.AdamW(raw_model.parameters(), lr=3e-4, weight_decay=0.1, fused=True)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, MAX_STEPS, eta_min=3e-5)
    first_step = 0
    os.makedirs(os.path.dirname(CKPT), exist_ok=True)
    if os.path.exists(CKPT):
        state = torch.load(CKPT, map_location=device, weights_only=True)
        raw_model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        scheduler.load_state_dict(state["scheduler"])
        first_step = state["step"]
        print(f"resuming at step {first_step}")
    model = torch.compile(raw_model)

    loader = DataLoader(TokenRows(TOKENS, SEQ_LEN), batch_size=BATCH, shuffle=True,
                        num_workers=4, pin_memory=True, drop_last=True)
    batches = cycle(loader)
    running = torch.zeros((), device=device)
    for step in range(first_step, MAX_STEPS):
        for _ in range(ACCUM):
            x, y = next(batches)
            x = x.to(device, non_blocking=True)
            y = y.to(device, non_blocking=True)
            loss = model(x, y)
            loss.backward()
            running += loss.detach()
        torch.nn.utils.clip_grad_norm_(raw_model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        scheduler.step()

        if (step + 1) % LOG_EVERY == 0:
            print(f"step {step + 1} loss {running.item() / (LOG_EVERY * ACCUM):.4f}")
            running.zero_()
        if (step + 1) % SAVE_EVERY == 0:
            torch.save({
                "model": raw_model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "scheduler": scheduler.state_dict(),
                "step": step + 1,
            }, CKPT)


if __name__ == "__main__":
    main()
