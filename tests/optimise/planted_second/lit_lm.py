import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


class FlexLinear(nn.Module):
    """Linear layer with fp32 parameters which runs in the dtype of its input."""

    def __init__(self, d_in, d_out):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(d_out, d_in, dtype=torch.float32))
        nn.init.normal_(self.weight, std=d_in ** -0.5)

    def forward(self, x):
        return F.linear(x, self.weight.to(x.dtype))


class MLPBlock(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.norm = nn.RMSNorm(d, dtype=torch.bfloat16)
        self.up = FlexLinear(d, 4 * d)
        self.down = FlexLinear(4 * d, d)

    def forward(self, x):
        return x + self.down(F.silu(self.up(self.norm(x))))


class LitLM(L.LightningModule):
    def __init__(self, vocab=32000, d=768, depth=12, lr=3e-4):
        super().__init__()
        self.save_hyperparameters()
        self.emb = nn.Embedding(vocab, d, dtype=torch.bfloat16)
        self.mix = nn.GRU(d, d, batch_first=True, dtype=torch.bfloat16)
        self.blocks = nn.Sequential(*[MLPBlock(d) for _ in range(depth)])
        self.out = FlexLinear(d, vocab)

    def configure_model(self):
        self.blocks.compile()
        self.out.compile()

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        rows = torch.from_numpy(np.ascontiguousarray(batch))
        return rows.to(device, non_blocking=True)

    def forward(self, ids):
        h, _ = self.mix(self.emb(ids))
        return self.out(self.blocks(h))

    def training_step(self, batch, batch_idx):
        logits = self(batch[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        self.log("train/loss", loss.detach(), on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        logits = self(batch[:, :-1])
        self.log("val/loss", F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten()))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=self.hparams.lr, weight_decay=0.1)
