"""Lightning module for plankton image classification."""
import lightning as L
import torch
import torch.nn as nn
import torchvision
from torch.utils.data import DataLoader
from torchvision import transforms as T


class PlanktonClassifier(L.LightningModule):
    def __init__(self, num_classes: int, lr: float = 3e-4, label_smoothing: float = 0.1):
        super().__init__()
        self.save_hyperparameters()
        self.net = torchvision.models.convnext_tiny(num_classes=num_classes)
        self.criterion = nn.CrossEntropyLoss(label_smoothing=label_smoothing)
        self.train_curve = []

    def configure_model(self):
        self.net = torch.compile(self.net)

    def forward(self, images):
        return self.net(images)

    def on_train_start(self):
        if self.device == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = True
            torch.backends.cudnn.benchmark = True
            torch.cuda.reset_peak_memory_stats()

    def training_step(self, batch, batch_idx):
        images, labels = batch
        logits = self(images)
        loss = self.criterion(logits, labels)
        self.train_curve.append(loss.detach().cpu().numpy())
        self.log("train/loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        images, labels = batch
        logits = self(images)
        acc = (logits.argmax(dim=-1) == labels).float().mean()
        self.log("val/loss", self.criterion(logits, labels), prog_bar=True)
        self.log("val/acc", acc, prog_bar=True)

    def configure_optimizers(self):
        opt = torch.optim.AdamW(self.parameters(), lr=self.hparams.lr, weight_decay=0.05)
        steps = self.trainer.estimated_stepping_batches
        sched = torch.optim.lr_scheduler.OneCycleLR(opt, self.hparams.lr, total_steps=steps)
        return {"optimizer": opt, "lr_scheduler": {"scheduler": sched, "interval": "step"}}


class PlanktonData(L.LightningDataModule):
    def __init__(self, root: str, batch_size: int = 128, workers: int = 8):
        super().__init__()
        self.root, self.batch_size, self.workers = root, batch_size, workers

    def setup(self, stage=None):
        norm = T.Normalize((0.5,) * 3, (0.25,) * 3)
        aug = T.Compose([T.RandomResizedCrop(224), T.RandomHorizontalFlip(), T.ToTensor(), norm])
        plain = T.Compose([T.Resize(256), T.CenterCrop(224), T.ToTensor(), norm])
        self.train_ds = torchvision.datasets.ImageFolder(f"{self.root}/train", aug)
        self.val_ds = torchvision.datasets.ImageFolder(f"{self.root}/val", plain)

    def _loader(self, ds, train):
        return DataLoader(ds, self.batch_size, shuffle=train, drop_last=train,
                          num_workers=self.workers, pin_memory=True)

    def train_dataloader(self):
        return self._loader(self.train_ds, True)

    def val_dataloader(self):
        return self._loader(self.val_ds, False)


if __name__ == "__main__":
    L.seed_everything(5, workers=True)
    data = PlanktonData("data/plankton")
    module = PlanktonClassifier(num_classes=38)
    trainer = L.Trainer(max_epochs=30, enable_checkpointing=False, logger=False)
    trainer.fit(module, datamodule=data)
