import lightning as L
import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    def __init__(self, dim, heads, drop):
        super().__init__()
        self.heads = heads
        self.n1, self.n2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim), nn.Dropout(drop))

    def forward(self, x):
        b, t, d = x.shape
        q, k, v = self.qkv(self.n1(x)).view(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(a.transpose(1, 2).reshape(b, t, d))
        return x + self.mlp(self.n2(x))


class LitLM(L.LightningModule):
    """Character-level LM.  Manual optimisation because we use two optimisers."""

    def __init__(self, vocab, dim=512, depth=8, heads=8, accumulate=4, drop=0.1):
        super().__init__()
        self.save_hyperparameters()
        self.automatic_optimization = False
        self.wte = nn.Embedding(vocab, dim)
        self.body = torch.compile(nn.Sequential(*[Block(dim, heads, drop) for _ in range(depth)]))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, vocab, bias=False).to(torch.bfloat16)

    def forward(self, ids):
        h = self.norm(self.body(self.wte(ids)))
        return F.linear(h.float(), self.head.weight.float())

    def training_step(self, batch, batch_idx):
        ids, tgt = batch
        loss = F.cross_entropy(self(ids).flatten(0, 1), tgt.flatten())
        self.manual_backward(loss / self.hparams.accumulate)
        for opt in self.optimizers():
            opt.step()
            opt.zero_grad()
        if (batch_idx + 1) % self.hparams.accumulate == 0:
            for sched in self.lr_schedulers():
                sched.step()
        self.log("train/loss", loss.detach(), on_step=True)

    def validation_step(self, batch, batch_idx):
        ids, tgt = batch
        loss = F.cross_entropy(self(ids).flatten(0, 1), tgt.flatten())
        self.log("val/loss", loss, sync_dist=True)

    def configure_optimizers(self):
        emb = list(self.wte.parameters()) + list(self.head.parameters())
        rest = list(self.body.parameters()) + list(self.norm.parameters())
        opts = [torch.optim.AdamW(emb, lr=1e-3), torch.optim.AdamW(rest, lr=3e-4)]
        scheds = [torch.optim.lr_scheduler.CosineAnnealingLR(o, 20_000) for o in opts]
        return opts, scheds


class ProbeCallback(L.Callback):
    """Logs the loss on a fixed probe text every ``every`` batches."""

    def __init__(self, probe, every=1000):
        self.probe, self.every = probe, every

    def _score(self, pl_module):
        pl_module.eval()
        with torch.no_grad():
            ids = self.probe.to(pl_module.device)
            return F.cross_entropy(pl_module(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx and batch_idx % self.every == 0:
            pl_module.log("probe/loss", self._score(pl_module))
