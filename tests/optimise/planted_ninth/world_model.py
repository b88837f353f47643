"""Latent dynamics model for pixel control (Lightning)."""
import lightning as L
import torch
import torch.nn as nn
import torch.nn.functional as F
from einops import rearrange
from lightning.pytorch.callbacks import Callback
from torchvision.utils import make_grid


class Encoder(nn.Module):
    def __init__(self, z=64, width=48):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, width, 4, 2, 1), nn.SiLU(),
            nn.Conv2d(width, width * 2, 4, 2, 1), nn.SiLU(),
            nn.Conv2d(width * 2, width * 4, 4, 2, 1), nn.SiLU(),
            nn.Flatten(), nn.Dropout(0.1),
        )
        self.head = nn.Linear(width * 4 * 64, 2 * z)

    def forward(self, x):
        return self.head(self.body(x)).chunk(2, dim=-1)


class Decoder(nn.Module):
    def __init__(self, z=64, width=48):
        super().__init__()
        self.stem = nn.Linear(z, width * 4 * 64)
        self.body = nn.Sequential(
            nn.ConvTranspose2d(width * 4, width * 2, 4, 2, 1), nn.SiLU(),
            nn.ConvTranspose2d(width * 2, width, 4, 2, 1), nn.SiLU(),
            nn.ConvTranspose2d(width, 3, 4, 2, 1),
        )

    def forward(self, z):
        return self.body(rearrange(self.stem(z), "b (c h w) -> b c h w", h=8, w=8))


class WorldModel(L.LightningModule):
    def __init__(self, action_dim: int, z: int = 64, beta: float = 0.5, lr: float = 3e-4):
        super().__init__()
        self.save_hyperparameters()
        self.encoder = Encoder(z)
        self.decoder = Decoder(z)
        self.dynamics = nn.GRUCell(z + action_dim, z)
        self.encoder.compile()
        self.decoder.compile()

    def posterior(self, frames):
        mu, logvar = self.encoder(frames)
        eps = torch.randn_like(mu[:1])
        return mu + eps * (0.5 * logvar).exp(), mu, logvar

    def amp_dtype(self):
        table = {"cuda": torch.bfloat16, "mps": torch.float16}
        return table.get(self.device, torch.float32)

    def training_step(self, batch, _):
        frames, actions, nxt = batch
        with torch.autocast(self.device.type, dtype=self.amp_dtype()):
            z, mu, logvar = self.posterior(frames)
            recon = self.decoder(z)
            pred = self.decoder(self.dynamics(torch.cat([z, actions], -1), mu))
        kl = -0.5 * (1 + logvar - mu.pow(2) - logvar.exp()).sum(-1).mean()
        loss = F.mse_loss(recon, frames) + F.mse_loss(pred, nxt) + self.hparams.beta * kl
        self.log("train/loss", loss)
        self.log("train/kl", kl)
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=self.hparams.lr)


class DreamLogger(Callback):
    """Writes imagined frames to the logger every few hundred batches."""

    def __init__(self, frames, actions, every: int = 500):
        self.frames, self.actions, self.every = frames, actions, every

    @torch.no_grad()
    def imagine(self, model):
        _, h, _ = model.posterior(self.frames.to(model.device))
        shots = []
        for a in self.actions.to(model.device).unbind(1):
            h = model.dynamics(torch.cat([h, a], -1), h)
            shots.append(model.decoder(h))
        return rearrange(torch.stack(shots, 1), "b t c h w -> (b t) c h w")

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx % self.every:
            return
        pl_module.eval()
        grid = make_grid(self.imagine(pl_module).clamp(0, 1), nrow=self.actions.size(1))
        trainer.logger.experiment.add_image("dream", grid, trainer.global_step)
