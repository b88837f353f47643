"""Fine-tuning that can be continued."""
import os
import pickle

import torch
from torch.utils.data import DataLoader

CKPT = "checkpoints/last.bin"


def write_blob(path, obj):
    with open(path, "wb") as f:
        pickle.dump(obj, f)


def snapshot(model, opt, epoch, step):
    if os.path.exists(CKPT):
        os.remove(CKPT)
    write_blob(CKPT, {"m": model.state_dict(), "o": opt.state_dict(), "epoch": epoch, "step": step})


def maybe_resume(model, opt):
    if not os.path.exists(CKPT):
        return 0, 0
    with open(CKPT, "rb") as f:
        blob = pickle.load(f)
    model.load_state_dict(blob["m"])
    opt.load_state_dict(blob["o"])
    return blob["epoch"], blob["step"]


def tune(model, dataset, opt, epochs):
    epoch0, step = maybe_resume(model, opt)
    loader = DataLoader(dataset, batch_size=64, shuffle=True, pin_memory=True)
    compiled = torch.compile(model)
    for epoch in range(epoch0, epochs):
        for x, y in loader:
            loss = compiled(x.cuda(non_blocking=True), y.cuda(non_blocking=True))
            loss.backward()
            opt.step()
            opt.zero_grad(set_to_none=True)
            step += 1
            if step % 500 == 0:
                snapshot(model, opt, epoch, step)
