from dataclasses import dataclass

import lightning as L
import torch
import torch.nn.functional as F
from datasets import load_dataset
from torch.utils.data import DataLoader, Dataset
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel


@dataclass
class TrainConfig:
    dataset: str = "roneneldan/TinyStories"
    max_len: int = 1024
    lr: float = 5e-4
    max_steps: int = 50_000
    seed: int = 99
    preview_every: int = 1000
    global_batch: int = 128
    micro_batch: int = 1

    @property
    def accumulate(self):
        return self.global_batch // self.micro_batch


class Stories(Dataset):
    def __init__(self, hf_split, tokenizer, cfg):
        self.rows = hf_split
        self.tok = tokenizer
        self.cfg = cfg

    def __len__(self):
        return len(self.rows)

    def _fit(self, ids):
        ids = ids[: self.cfg.max_len]
        missing = self.cfg.max_len - len(ids)
        return F.pad(torch.tensor(ids), (0, missing), value=self.tok.eos_token_id), len(ids)

    def __getitem__(self, i):
        ids, n = self._fit(self.tok(self.rows[i]["text"])["input_ids"] + [self.tok.eos_token_id])
        labels = ids.clone()
        labels[n:] = -100
        return {"input_ids": ids, "labels": labels}


class StoryData(L.LightningDataModule):
    def __init__(self, cfg, tokenizer):
        super().__init__()
        self.cfg, self.tok = cfg, tokenizer

    def setup(self, stage=None):
        ds = load_dataset(self.cfg.dataset)
        self.train = Stories(ds["train"], self.tok, self.cfg)
        self.val = Stories(ds["validation"].select(range(2000)), self.tok, self.cfg)

    def train_dataloader(self):
        return DataLoader(self.train, self.cfg.micro_batch, shuffle=True, num_workers=4, pin_memory=True)

    def val_dataloader(self):
        return DataLoader(self.val, 16, num_workers=2, pin_memory=True, drop_last=True)


class LitGPT(L.LightningModule):
    def __init__(self, cfg, tokenizer):
        super().__init__()
        self.cfg, self.tok = cfg, tokenizer
        self.net = GPT2LMHeadModel(GPT2Config(n_layer=8, n_embd=512, n_head=8, n_positions=cfg.max_len))
        self.compiled = torch.compile(self.net)

    def training_step(self, batch, _):
        loss = self.compiled(**batch).loss
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch, _):
        self.log("val/loss", self.compiled(**batch).loss, sync_dist=True)

    def _continue(self, text, n):
        ids = self.tok(text, return_tensors="pt").input_ids.to(self.device)
        out, past, cur = [ids], None, ids
        for _ in range(n):
            res = self.net(cur, past_key_values=past, use_cache=True)
            past = res.past_key_values
            cur = torch.multinomial(F.softmax(res.logits[:, -1] / 0.8, -1), 1)
            out.append(cur)
        return self.tok.decode(torch.cat(out, 1)[0])

    def on_train_batch_end(self, outputs, batch, batch_idx):
        if self.global_step and batch_idx % (self.cfg.preview_every * self.cfg.accumulate) == 0:
            print(self._continue("Once upon a time", 120))

    def configure_optimizers(self):
        opt = torch.optim.AdamW(self.net.parameters(), lr=self.cfg.lr, betas=(0.9, 0.95))
        sched = torch.optim.lr_scheduler.CosineAnnealingLR(opt, self.cfg.max_steps)
        return [opt], [{"scheduler": sched, "interval": "step"}]


if __name__ == "__main__":
    cfg = TrainConfig()
    L.seed_everything(cfg.seed, workers=True)
    tok = AutoTokenizer.from_pretrained("gpt2")
    trainer = L.Trainer(
        max_steps=cfg.max_steps,
        accumulate_grad_batches=cfg.accumulate,
        precision="bf16-true",
        gradient_clip_val=1.0,
        val_check_interval=20_000,
        log_every_n_steps=50,
    )
    trainer.fit(LitGPT(cfg, tok), StoryData(cfg, tok))
