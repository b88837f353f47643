import lightning as L
import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from torch.utils.data import DataLoader, Dataset

BLOCK_SIZE = 256


class Windows(Dataset):
    def __init__(self, path):
        self.data = np.memmap(path, dtype=np.uint8, mode="r")

    def __len__(self):
        return (len(self.data) - 1) // BLOCK_SIZE

    def __getitem__(self, i):
        chunk = self.data[i * BLOCK_SIZE : i * BLOCK_SIZE + BLOCK_SIZE + 1].astype(np.int64)
        return torch.from_numpy(chunk)


class CharData(L.LightningDataModule):
    def __init__(self, train, val, seed):
        super().__init__()
        self.paths = {"train": train, "val": val}
        self.seed = seed

    def train_dataloader(self):
        return DataLoader(
            Windows(self.paths["train"]), batch_size=1, shuffle=True, drop_last=True,
            num_workers=4, pin_memory=True, generator=torch.Generator().manual_seed(self.seed),
        )

    def val_dataloader(self):
        return DataLoader(Windows(self.paths["val"]), batch_size=128, num_workers=4,
                          pin_memory=True, drop_last=True)


class CharGPT(nn.Module):
    def __init__(self, dim=384, depth=6, heads=6, dropout=0.2):
        super().__init__()
        self.tok = nn.Embedding(256, dim)
        self.pos = nn.Parameter(torch.zeros(BLOCK_SIZE, dim))
        layer = nn.TransformerEncoderLayer(dim, heads, 4 * dim, dropout, "gelu",
                                           batch_first=True, norm_first=True)
        self.body = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.head = nn.Linear(dim, 256)
        self.register_buffer("causal", nn.Transformer.generate_square_subsequent_mask(BLOCK_SIZE))

    def forward(self, x):
        return self.head(self.body(self.tok(x) + self.pos, mask=self.causal, is_causal=True))


class LitChar(L.LightningModule):
    def __init__(self, lr=6e-4, probe_every=1000):
        super().__init__()
        self.save_hyperparameters()
        self.net = torch.compile(CharGPT())
        self.curve = []
        self.register_buffer("probe", torch.arange(32, 32 + BLOCK_SIZE + 1).remainder(128)[None])

    def nll(self, batch):
        logits = self.net(batch[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())

    def training_step(self, batch, batch_idx):
        loss = self.nll(batch)
        self.curve.append(loss.item())
        return loss

    def on_train_batch_end(self, outputs, batch, batch_idx):
        if batch_idx % self.hparams.probe_every:
            return
        self.net.eval()
        with torch.no_grad():
            self.log("probe_nll", self.nll(self.probe))

    def validation_step(self, batch, batch_idx):
        self.log("val_nll", self.nll(batch), prog_bar=True)

    def configure_optimizers(self):
        opt = torch.optim.AdamW(self.parameters(), lr=self.hparams.lr, betas=(0.9, 0.98))
        sched = torch.optim.lr_scheduler.CosineAnnealingLR(opt, T_max=self.trainer.max_epochs)
        return {"optimizer": opt, "lr_scheduler": sched}


def main():
    L.seed_everything(99, workers=True)
    trainer = L.Trainer(
        accelerator="gpu", devices=1, max_epochs=40, precision="bf16-mixed",
        accumulate_grad_batches=256, gradient_clip_val=1.0,
        callbacks=[LearningRateMonitor(), ModelCheckpoint(monitor="val_nll", save_top_k=2, save_last=True)],
    )
    trainer.fit(LitChar(), datamodule=CharData("data/train.bin", "data/val.bin", seed=99))


if __name__ == "__main__":
    main()
