"""NaViT-style image encoder trained at native resolution with a contrastive loss."""
from collections import defaultdict

import torch
from safetensors.torch import save_file
from torch import nn
import torch.nn.functional as F

PATCH = 14
MAX_PATCHES = 1024


def patchify(img):
    """(3, H, W) -> (n, 588)"""
    return F.unfold(img[None], PATCH, stride=PATCH)[0].T


def pad_images(patch_lists, length=MAX_PATCHES):
    """Text-image eval batches: one image per row."""
    out = torch.zeros(len(patch_lists), length, 3 * PATCH * PATCH)
    keep = torch.zeros(len(patch_lists), length, dtype=torch.bool)
    for i, p in enumerate(patch_lists):
        out[i, : len(p)] = p
        keep[i, : len(p)] = True
    return out, keep


def best_fit(sizes, cap=MAX_PATCHES):
    """Groups images into rows so that as little room as possible is left."""
    todo = sorted(range(len(sizes)), key=sizes.__getitem__, reverse=True)
    rows = []
    while todo:
        room, row = cap, []
        while True:
            fit = next((i for i in todo if sizes[i] <= room), None)
            if fit is None:
                break
            todo.remove(fit)
            row.append(fit)
            room -= sizes[fit]
        rows.append(row)
    return rows


class Encoder(nn.Module):
    def __init__(self, dim=768, heads=12, depth=12):
        super().__init__()
        self.inp = nn.Linear(3 * PATCH * PATCH, dim)
        layer = nn.TransformerEncoderLayer(dim, heads, 4 * dim, 0.0, "gelu", batch_first=True, norm_first=True)
        self.body = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.heads = heads

    def forward(self, patches, seg):
        """seg: (B, L) image number within the row, -1 for empty places."""
        block = seg[:, :, None] != seg[:, None, :]
        mask = block.repeat_interleave(self.heads, 0)
        return self.body(self.inp(patches), mask=mask)


def pool(h, seg, per_row):
    hot = F.one_hot(seg + 1, per_row + 1)[..., 1:].to(h.dtype)
    s = torch.einsum("bld,bln->bnd", h, hot)
    return F.normalize(s / hot.sum(1).clamp_min(1)[..., None], dim=-1)


def rotate_snapshots(enc, step, history=defaultdict(int)):
    save_file({k: v.contiguous() for k, v in enc.state_dict().items()}, "latest.safetensors")
    history["last"] = step


def train_step(fast, opt, batch, temp=0.07):
    patches, seg, captions, slots = (t.cuda(non_blocking=True) for t in batch)
    with torch.autocast("cuda", torch.bfloat16):
        img = pool(fast(patches, seg), seg, captions.shape[1])
        sim = img.flatten(0, 1) @ captions.flatten(0, 1).T / temp
        sim = sim.masked_fill(~slots.flatten()[None], -1e4)
        gold = torch.arange(len(sim), device=sim.device).masked_fill(~slots.flatten(), -100)
        loss = F.cross_entropy(sim, gold)
    loss.backward()
    opt.step()
    opt.zero_grad(set_to_none=True)
    return loss.detach()


def train(batches):
    """batches: pinned, fixed-shape rows packed by best_fit."""
    enc = Encoder().cuda().train()
    fast = torch.compile(enc)
    opt = torch.optim.AdamW(enc.parameters(), 3e-4, fused=True)
    for step, batch in enumerate(batches, 1):
        loss = train_step(fast, opt, batch)
        if step % 250 == 0:
            print(step, loss.item())
        if step % 5000 == 0:
            rotate_snapshots(enc, step)
