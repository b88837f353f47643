import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import nn


class RunningStats:
    """Keeps moving averages shown in the progress bar."""

    def __init__(self, beta=0.98):
        self.beta = beta
        self.values = {}

    def add(self, name, value):
        value = value.detach().cpu().item()
        old = self.values.get(name, value)
        self.values[name] = self.beta * old + (1 - self.beta) * value


class Encoder(nn.Module):
    def __init__(self, vocab, dim=256, depth=4, heads=4):
        super().__init__()
        self.emb = nn.Embedding(vocab, dim, padding_idx=0)
        layer = nn.TransformerEncoderLayer(dim, heads, 4 * dim, batch_first=True, norm_first=True)
        self.net = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)

    def forward(self, ids):
        return self.net(self.emb(ids), src_key_padding_mask=ids == 0)


class Tagger(pl.LightningModule):
    def __init__(self, vocab, n_tags, lr=5e-4, accum=4):
        super().__init__()
        self.save_hyperparameters()
        self.automatic_optimization = False
        self.enc = Encoder(vocab)
        self.enc.compile(dynamic=True)
        self.head = nn.Linear(256, n_tags)
        self.stats = RunningStats()

    def forward(self, ids):
        return self.head(self.enc(ids))

    def training_step(self, batch, batch_idx):
        opt = self.optimizers()
        ids, tags = batch
        logits = self(ids)
        loss = F.cross_entropy(logits.flatten(0, 1), tags.flatten(), ignore_index=-100)
        opt.zero_grad()
        self.manual_backward(loss / self.hparams.accum)
        self.stats.add("loss", loss)
        if (batch_idx + 1) % self.hparams.accum == 0:
            self.clip_gradients(opt, gradient_clip_val=1.0, gradient_clip_algorithm="norm")
            opt.step()
        return loss

    def validation_step(self, batch, batch_idx):
        ids, tags = batch
        pred = self(ids).argmax(-1)
        keep = tags != -100
        self.log("val_acc", (pred[keep] == tags[keep]).float().mean(), prog_bar=True)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=self.hparams.lr)


def main():
    from tagdata import TagData

    pl.seed_everything(11, workers=True)
    dm = TagData("ud.conllu", batch_size=64)
    trainer = pl.Trainer(max_epochs=30, precision="bf16-mixed", log_every_n_steps=50)
    trainer.fit(Tagger(dm.vocab_size, dm.n_tags), dm)


if __name__ == "__main__":
    main()
