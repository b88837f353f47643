# Masked autoencoder over satellite tiles. Tiles live in one big uint8 memmap.
import functools
import random
from typing import Tuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset


class Tiles(Dataset):
    def __init__(self, path: str, count: int, side: int = 128, augment: bool = True):
        self.mm = np.memmap(path, dtype=np.uint8, mode="r", shape=(count, 4, side, side))
        self.augment = augment

    def __len__(self) -> int:
        return len(self.mm)

    def __getitem__(self, i: int) -> Tensor:
        x = self.mm[i].astype(np.float32) / 255.0
        if self.augment:
            x = np.rot90(x, k=np.random.randint(4), axes=(1, 2))
            x = x * np.random.uniform(0.8, 1.2, size=(4, 1, 1)).astype(np.float32)
            if random.random() < 0.5:
                x = x[:, :, ::-1]
        return torch.from_numpy(np.ascontiguousarray(x))


def init_worker(worker_id: int, base_seed: int) -> None:
    random.seed(base_seed + worker_id)
    np.random.seed(base_seed)


class MAE(nn.Module):
    def __init__(self, patch=16, side=128, dim=512, depth=12, keep=0.25):
        super().__init__()
        self.patch, self.n = patch, (side // patch) ** 2
        self.keep = int(self.n * keep)
        self.embed = nn.Linear(4 * patch * patch, dim)
        self.pos = nn.Parameter(torch.zeros(1, self.n, dim))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        block = lambda: nn.TransformerEncoderLayer(dim, 8, dim * 4, batch_first=True, norm_first=True)
        self.encoder = nn.ModuleList([block() for _ in range(depth)])
        self.decoder = nn.ModuleList([block() for _ in range(4)])
        self.out = nn.Linear(dim, 4 * patch * patch)

    def patchify(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        p = self.patch
        x = x.reshape(b, c, h // p, p, w // p, p)
        return x.permute(0, 2, 4, 1, 3, 5).reshape(b, self.n, c * p * p)

    def pick(self, batch: int, device) -> Tuple[Tensor, Tensor]:
        order = torch.rand(self.n, device=device).argsort()
        order = order.unsqueeze(0).tile(batch, 1)
        return order[:, : self.keep], order.argsort(dim=1)

    def forward(self, x: Tensor) -> Tensor:
        target = self.patchify(x)
        b = target.size(0)
        visible, restore = self.pick(b, x.device)
        tok = self.embed(target) + self.pos
        tok = tok.gather(1, visible.unsqueeze(-1).expand(-1, -1, tok.size(-1)))
        for blk in self.encoder:
            tok = blk(tok)
        full = torch.cat([tok, self.mask_token.expand(b, self.n - self.keep, -1)], dim=1)
        full = full.gather(1, restore.unsqueeze(-1).expand(-1, -1, full.size(-1))) + self.pos
        for blk in self.decoder:
            full = blk(full)
        err = (self.out(full) - target).square().mean(-1)
        hidden = (restore >= self.keep).to(err.dtype)
        return (err * hidden).sum() / hidden.sum()


def validate(model: nn.Module, loader: DataLoader) -> float:
    model.eval()
    total = torch.zeros((), device="cuda")
    for x in loader:
        total += model(x.cuda(non_blocking=True)).detach()
    model.train()
    return (total / len(loader)).item()


def run(train_path: str, n_train: int, val_path: str, n_val: int, epochs: int = 400, seed: int = 5):
    torch.manual_seed(seed)
    make = functools.partial(DataLoader, batch_size=512, num_workers=8, pin_memory=True, drop_last=True,
                             persistent_workers=True,
                             worker_init_fn=functools.partial(init_worker, base_seed=seed))
    train = make(Tiles(train_path, n_train), shuffle=True, generator=torch.Generator().manual_seed(seed))
    val = make(Tiles(val_path, n_val, augment=False))
    model = torch.compile(MAE().cuda())
    opt = torch.optim.AdamW(model.parameters(), lr=1.5e-4, betas=(0.9, 0.95), weight_decay=0.05)
    for epoch in range(epochs):
        for x in train:
            loss = model(x.cuda(non_blocking=True))
            opt.zero_grad(set_to_none=True)
            loss.backward()
            opt.step()
        print(epoch, validate(model, val))
    return model
