"""Supervised fine-tuning of a chat model on one GPU."""
import json

import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

MICRO = 2
EXAMPLES_PER_UPDATE = 64
LR = 2e-5


class Chats(Dataset):
    def __init__(self, path, tokenizer):
        with open(path) as f:
            self.rows = [json.loads(line) for line in f]
        self.tokenizer = tokenizer

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        ids = self.tokenizer.encode(self.rows[i]["question"] + self.rows[i]["answer"])
        return torch.tensor(ids)


def stack(examples):
    ids = pad_sequence(examples, batch_first=True, padding_value=0)
    targets = pad_sequence(examples, batch_first=True, padding_value=-100)
    return ids[:, :-1], targets[:, 1:]


def finetune(model, tokenizer, path, epochs=2):
    loader = DataLoader(Chats(path, tokenizer), batch_size=MICRO, shuffle=True, collate_fn=stack)
    accumulate = EXAMPLES_PER_UPDATE // MICRO
    opt = torch.optim.AdamW(model.parameters(), lr=LR)
    model.cuda().train()
    for _ in range(epochs):
        for i, (x, y) in enumerate(loader):
            logits = model(x.cuda())
            loss = F.cross_entropy(logits.flatten(0, 1), y.cuda().flatten(), ignore_index=-100)
            (loss / accumulate).backward()
            if (i + 1) % accumulate == 0:
                opt.step()
                opt.zero_grad(set_to_none=True)
    return model
