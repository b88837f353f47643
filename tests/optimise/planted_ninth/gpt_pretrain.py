"""Single-GPU GPT-2 small pretraining on a flat uint16 token file."""
import math
import os
import time

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

BIN = "data/owt_train.bin"
CKPT = "out/ckpt.pt"
BATCH, SEQ = 48, 1024
STEPS, WARMUP = 200_000, 2_000
LR, MIN_LR = 6e-4, 6e-5
SAVE_EVERY = 1_000


class TokenStream:
    """Walks the token file front to back, wrapping at the end."""

    def __init__(self, path, batch, seq):
        self.tokens = np.memmap(path, dtype=np.uint16, mode="r")
        self.batch, self.seq = batch, seq
        self.pos = 0

    def next(self):
        need = self.batch * self.seq
        if self.pos + need > len(self.tokens):
            self.pos = 0
        chunk = self.tokens[self.pos:self.pos + need].astype(np.int64)
        self.pos += need
        return torch.from_numpy(chunk).view(self.batch, self.seq)


def lr_at(step):
    if step < WARMUP:
        return LR * (step + 1) / WARMUP
    t = (step - WARMUP) / (STEPS - WARMUP)
    return MIN_LR + 0.5 * (LR - MIN_LR) * (1 + math.cos(math.pi * t))


def save(model, opt, step):
    torch.save(
        {
            "model": model.state_dict(),
            "opt": opt.state_dict(),
            "step": step,
            "cpu_rng": torch.get_rng_state(),
            "gpu_rng": torch.cuda.get_rng_state(),
        },
        CKPT,
    )


def restore(model, opt):
    if not os.path.exists(CKPT):
        return 0
    state = torch.load(CKPT, map_location="cpu", weights_only=True)
    model.load_state_dict(state["model"])
    opt.load_state_dict(state["opt"])
    torch.set_rng_state(state["cpu_rng"])
    torch.cuda.set_rng_state(state["gpu_rng"])
    return state["step"] + 1


def main():
    torch.manual_seed(1)
    torch.set_float32_matmul_precision("high")
    os.makedirs(os.path.dirname(CKPT), exist_ok=True)
    device = torch.device("cuda", 0)

    model = GPT2LMHeadModel(GPT2Config(n_positions=SEQ)).to(device)
    opt = torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    first = restore(model, opt)
    stream = TokenStream(BIN, BATCH, SEQ)

    model.train()
    tick = time.time()
    for step in range(first, STEPS):
        for group in opt.param_groups:
            group["lr"] = lr_at(step)
        ids = stream.next().pin_memory().to(device, non_blocking=True)
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        opt.zero_grad(set_to_none=True)
        print(f"\rstep {step} loss {loss.detach():.4f}", end="", flush=True)
        if step and step % SAVE_EVERY == 0:
            save(model, opt, step)
            now = time.time()
            print(f"\nsaved at {step}, {SAVE_EVERY * BATCH * SEQ / (now - tick):,.0f} tok/s")
            tick = now


if __name__ == "__main__":
    main()
