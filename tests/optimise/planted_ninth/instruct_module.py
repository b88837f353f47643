import random

import lightning.pytorch as pl
import torch
from datasets import load_dataset
from torch.utils.data import DataLoader, TensorDataset
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer


def pack(examples, ctx):
    """Group tokenised examples into rows of at most ctx tokens."""
    pending = sorted(examples, key=len, reverse=True)
    rows = []
    while pending:
        row, left = [], ctx
        for ex in pending[:]:
            if len(ex) <= left:
                row.append(ex)
                left -= len(ex)
                pending.remove(ex)
        rows.append(row)
    return rows


class InstructData(pl.LightningDataModule):
    def __init__(self, name, tokenizer, ctx=2048, seed=0):
        super().__init__()
        self.name, self.tokenizer, self.ctx, self.seed = name, tokenizer, ctx, seed
        self.rows = None

    def _tensorise(self, packed):
        ids = torch.full((len(packed), self.ctx), self.tokenizer.eos_token_id)
        pos = torch.zeros(len(packed), self.ctx, dtype=torch.long)
        labels = torch.full((len(packed), self.ctx), -100)
        for r, row in enumerate(packed):
            at = 0
            for ex in row:
                end = at + len(ex)
                ids[r, at:end] = torch.tensor(ex)
                pos[r, at:end] = torch.arange(len(ex))
                labels[r, at + 1:end] = torch.tensor(ex[1:])
                at = end
        return TensorDataset(ids, pos, labels)

    def setup(self, stage=None):
        if self.rows is not None:
            return
        raw = load_dataset(self.name, split="train")
        texts = [f"### {r['instruction']}\n{r['output']}" for r in raw]
        encoded = self.tokenizer(texts, truncation=True, max_length=self.ctx - 1)["input_ids"]
        packed = pack([e + [self.tokenizer.eos_token_id] for e in encoded], self.ctx)
        random.Random(self.seed).shuffle(packed)
        self.rows = self._tensorise(packed)

    def train_dataloader(self):
        return DataLoader(self.rows, batch_size=1, num_workers=2, pin_memory=True, drop_last=True)


class InstructModel(pl.LightningModule):
    def __init__(self, name, lr=1e-4):
        super().__init__()
        self.save_hyperparameters()
        self.lm = AutoModelForCausalLM.from_config(
            AutoConfig.from_pretrained(name), attn_implementation="sdpa"
        )
        self.lm.compile()

    def training_step(self, batch, _):
        ids, pos, labels = batch
        loss = self.lm(input_ids=ids, position_ids=pos, labels=labels).loss
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        where = next(self.parameters()).device
        opt = torch.optim.AdamW(
            self.parameters(),
            lr=self.hparams.lr,
            fused=str(where) == "cuda",
        )
        return opt


def main(name="EleutherAI/pythia-160m"):
    pl.seed_everything(0, workers=True)
    tok = AutoTokenizer.from_pretrained(name)
    trainer = pl.Trainer(
        accelerator="gpu",
        devices=1,
        precision="bf16-mixed",
        accumulate_grad_batches=128,
        max_epochs=3,
        log_every_n_steps=20,
        gradient_clip_val=1.0,
    )
    trainer.fit(InstructModel(name), datamodule=InstructData("tatsu-lab/alpaca", tok))


if __name__ == "__main__":
    main()
