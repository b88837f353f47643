"""Datasets and batching for the chat model: pretraining rows and SFT dialogues."""
import json
from functools import partial

import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

IGNORE = -100


def split_long(docs, row_len):
    for doc in docs:
        for i in range(0, len(doc), row_len):
            yield doc[i : i + row_len]


def pack_rows(docs, row_len, eos_id):
    """Fill rows of row_len tokens with whole documents, best fit first."""
    remaining = list(split_long(docs, row_len))
    rows = []
    while remaining:
        row = []
        while True:
            room = row_len - len(row)
            best = -1
            for i, doc in enumerate(remaining):
                if len(doc) <= room and (best < 0 or len(doc) > len(remaining[best])):
                    best = i
            if best < 0:
                break
            row.extend(remaining.pop(best))
        row.extend([eos_id] * (row_len - len(row)))
        rows.append(row)
    return torch.tensor(rows, dtype=torch.long)


class DialogueDataset(Dataset):
    """One dialogue per line: {"messages": [{"role": ..., "content": ...}, ...]}."""

    def __init__(self, path, tokenizer, max_len):
        self.tokenizer = tokenizer
        self.items = []
        dropped = 0
        with open(path, encoding="utf-8") as f:
            for line in f:
                item = self.encode(json.loads(line)["messages"])
                if len(item[0]) > max_len:
                    dropped += 1
                    continue
                self.items.append(item)
        print(f"{path}: kept {len(self.items)}, dropped {dropped} longer than {max_len}")

    def encode(self, messages):
        ids, labels = [self.tokenizer.bos_id], [IGNORE]
        for m in messages:
            part = self.tokenizer.encode(f"<|{m['role']}|>{m['content']}<|end|>")
            ids += part
            labels += part if m["role"] == "assistant" else [IGNORE] * len(part)
        return torch.tensor(ids), torch.tensor(labels)

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i]


def collate_dialogues(batch, pad_id):
    ids, labels = zip(*batch)
    ids = pad_sequence(ids, batch_first=True, padding_value=pad_id)
    labels = pad_sequence(labels, batch_first=True, padding_value=IGNORE)
    return {"input_ids": ids, "labels": labels, "attention_mask": ids.ne(pad_id)}


def sft_loader(dataset, sampler, batch_size, pad_id, workers=4):
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=workers,
        pin_memory=True,
        drop_last=True,
        collate_fn=partial(collate_dialogues, pad_id=pad_id),
    )
