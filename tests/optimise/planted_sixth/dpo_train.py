import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM

from prefs import PreferencePairs, pair_collate


@dataclass
class DPOSettings:
    model: str = "Qwen/Qwen2.5-0.5B-Instruct"
    beta: float = 0.1
    lr: float = 5e-7
    global_batch: int = 64
    device_batch: int = 1
    epochs: int = 1
    seed: int = 5

    @property
    def accum_steps(self):
        return self.global_batch // self.device_batch


def seq_logps(logits, labels):
    labels = labels[:, 1:]
    mask = labels != -100
    nll = F.cross_entropy(logits[:, :-1].transpose(1, 2), labels, reduction="none", ignore_index=-100)
    return -(nll * mask).sum(-1)


class DPOTrainer:
    def __init__(self, cfg: DPOSettings):
        self.cfg = cfg
        self.device = torch.device("cuda")
        self.policy = AutoModelForCausalLM.from_pretrained(cfg.model, torch_dtype=torch.bfloat16)
        self.policy.to(self.device)
        self.ref = copy.deepcopy(self.policy).eval().requires_grad_(False)
        self.net = torch.compile(self.policy, dynamic=True)
        self.opt = torch.optim.AdamW(self.policy.parameters(), lr=cfg.lr)
        self.micro = 0

    def loss(self, batch):
        ids, mask, labels = batch["ids"], batch["mask"], batch["labels"]
        pi = seq_logps(self.net(ids, attention_mask=mask).logits, labels)
        with torch.no_grad():
            ref = seq_logps(self.ref(ids, attention_mask=mask).logits, labels)
        n = len(ids) // 2
        margin = (pi[:n] - pi[n:]) - (ref[:n] - ref[n:])
        return -F.logsigmoid(self.cfg.beta * margin).mean()

    def update(self, loss):
        loss.backward()
        self.micro += 1
        if self.micro % self.cfg.accum_steps:
            return False
        self.opt.step()
        self.opt.zero_grad(set_to_none=True)
        return True

    def fit(self, data):
        cfg = self.cfg
        self.policy.train()
        updates = 0
        for epoch in range(cfg.epochs):
            g = torch.Generator().manual_seed(cfg.seed + epoch)
            dl = DataLoader(data, cfg.device_batch, shuffle=True, generator=g,
                            collate_fn=pair_collate, drop_last=True)
            for batch in dl:
                batch = {k: v.to(self.device) for k, v in batch.items()}
                loss = self.loss(batch)
                if self.update(loss):
                    updates += 1
                    if updates % 10 == 0:
                        print(f"update {updates} loss {loss.item():.4f}")
        self.policy.save_pretrained("dpo-final")


if __name__ == "__main__":
    settings = DPOSettings()
    torch.manual_seed(settings.seed)
    DPOTrainer(settings).fit(PreferencePairs("ultrafeedback.jsonl", settings.model))
