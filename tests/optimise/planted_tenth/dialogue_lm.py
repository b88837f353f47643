"""Fine-tune a causal LM on two-party dialogues, loss on the second speaker only."""
import json
import os
import shutil

import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

IGNORE = -100


class Dialogues(Dataset):
    def __init__(self, path, tok, limit=1024):
        self.rows = [json.loads(l) for l in open(path)]
        self.tok = tok
        self.limit = limit

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        ids, labels = [], []
        for turn in self.rows[i]["turns"]:
            piece = self.tok(f"{turn['who']}: {turn['text']}{self.tok.eos_token}").input_ids
            ids += piece
            labels += piece if turn["who"] == "B" else [IGNORE] * len(piece)
        return torch.tensor(ids[: self.limit]), torch.tensor(labels[: self.limit])


def together(tok):
    def collate(pairs):
        ids, labels = zip(*pairs)
        lengths = torch.tensor([len(x) for x in ids])
        ids, labels = (pad_sequence(x, True, fill) for x, fill in ((ids, tok.pad_token_id), (labels, IGNORE)))
        mask = (torch.arange(ids.size(1))[None] < lengths[:, None]).long()
        return {"input_ids": ids, "labels": labels, "attention_mask": mask}

    return collate


class Tuner:
    def __init__(self, name, out, local_rank=0, lr=1e-5, seed=8):
        torch.manual_seed(seed)
        self.out, self.seed, self.local_rank = out, seed, local_rank
        self.device = torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
        self.tok = AutoTokenizer.from_pretrained(name)
        self.tok.pad_token = self.tok.pad_token or self.tok.eos_token
        self.net = AutoModelForCausalLM.from_pretrained(name).to(self.device)
        self.opt = torch.optim.AdamW(self.net.parameters(), lr=lr)
        self.epoch = 0

    def on_gpu(self):
        return self.device.type == f"cuda:{self.local_rank}"

    def save(self):
        if os.path.isdir(self.out):
            shutil.rmtree(self.out)
        self.net.save_pretrained(self.out)
        self.tok.save_pretrained(self.out)
        extra = {"opt": self.opt.state_dict(), "epoch": self.epoch, "rng": torch.get_rng_state()}
        if self.device.type == "cuda":
            extra["cuda_rng"] = torch.cuda.get_rng_state(self.device)
        torch.save(extra, os.path.join(self.out, "trainer.pt"))

    def resume(self):
        self.net = AutoModelForCausalLM.from_pretrained(self.out).to(self.device)
        extra = torch.load(os.path.join(self.out, "trainer.pt"), map_location="cpu", weights_only=True)
        self.opt = torch.optim.AdamW(self.net.parameters(), lr=extra["opt"]["param_groups"][0]["lr"])
        self.opt.load_state_dict(extra["opt"])
        torch.set_rng_state(extra["rng"])
        if "cuda_rng" in extra:
            torch.cuda.set_rng_state(extra["cuda_rng"], self.device)
        self.epoch = extra["epoch"]

    def fit(self, data, epochs, batch=32):
        self.net.train()
        while self.epoch < epochs:
            order = torch.Generator().manual_seed(self.seed + self.epoch)
            loader = DataLoader(data, batch_size=batch, shuffle=True, generator=order,
                                collate_fn=together(self.tok), num_workers=4, pin_memory=True)
            for rows in loader:
                rows = {k: v.to(self.device, non_blocking=True) for k, v in rows.items()}
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.on_gpu()):
                    loss = self.net(**rows).loss
                self.opt.zero_grad(set_to_none=True)
                loss.backward()
                self.opt.step()
            self.epoch += 1
            self.save()


if __name__ == "__main__":
    tuner = Tuner("gpt2-medium", "runs/dialogue")
    if os.path.exists("runs/dialogue/trainer.pt"):
        tuner.resume()
    tuner.fit(Dialogues("dialogues.jsonl", tuner.tok), epochs=4)
