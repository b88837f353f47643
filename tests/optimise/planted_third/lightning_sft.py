import json
import os

import lightning as L
import torch
from torch.utils.data import DataLoader, Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

MODEL = "EleutherAI/pythia-410m"
MAX_LENGTH = 1024


class Dialogues(Dataset):
    def __init__(self, path, tokenizer):
        self.rows = []
        skipped = 0
        with open(path) as f:
            for line in f:
                row = json.loads(line)
                ask = tokenizer(row["question"] + "\n").input_ids
                answer = tokenizer(row["answer"]).input_ids + [tokenizer.eos_token_id]
                if len(ask) + len(answer) > MAX_LENGTH:
                    skipped += 1
                    continue
                self.rows.append((ask, answer))
        print(f"{path}: {len(self.rows)} rows, {skipped} too long and left out")

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        return self.rows[i]


def collate(rows):
    ids = torch.zeros(len(rows), MAX_LENGTH, dtype=torch.long)
    labels = torch.full((len(rows), MAX_LENGTH), -100)
    attend = torch.zeros(len(rows), MAX_LENGTH, dtype=torch.long)
    for i, (ask, answer) in enumerate(rows):
        n = len(ask) + len(answer)
        ids[i, :n] = torch.tensor(ask + answer)
        labels[i, len(ask):n] = torch.tensor(answer)
        attend[i, :n] = 1
    return {"input_ids": ids, "labels": labels, "attention_mask": attend}


class SFTModule(L.LightningModule):
    def __init__(self, lr=2e-5):
        super().__init__()
        self.save_hyperparameters()
        self.tokenizer = AutoTokenizer.from_pretrained(MODEL)
        self.net = AutoModelForCausalLM.from_pretrained(MODEL, torch_dtype=torch.float32)
        self.net_step = torch.compile(self.net)

    def training_step(self, batch, batch_idx):
        loss = self.net_step(**batch).loss
        self.log("train/loss", loss)
        return loss

    def _stochastic(self, flag):
        self.net.train(flag)

    def on_train_batch_end(self, outputs, batch, batch_idx):
        if self.global_step % 500 == 0:
            self._show_progress("Why is the sky blue?\n")

    @torch.no_grad()
    def _show_progress(self, question):
        self._stochastic(False)
        prompt = self.tokenizer(question, return_tensors="pt").to(self.device)
        out = self.net.generate(**prompt, max_new_tokens=64, do_sample=False)
        self.print(self.tokenizer.decode(out[0], skip_special_tokens=True))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.net.parameters(), lr=self.hparams.lr, fused=True)


if __name__ == "__main__":
    L.seed_everything(11)
    module = SFTModule()
    loader = DataLoader(
        Dialogues("data/dialogues.jsonl", module.tokenizer),
        batch_size=32, shuffle=True, collate_fn=collate, num_workers=4, pin_memory=True,
        drop_last=True, generator=torch.Generator().manual_seed(11),
    )
    trainer = L.Trainer(max_epochs=1, precision="bf16-mixed", gradient_clip_val=1.0,
                        enable_checkpointing=False)
    trainer.fit(module, loader)
    torch.save(module.net.state_dict(), "sft.pt.part")
    os.replace("sft.pt.part", "sft.pt")
