"""Datasets and samplers for packed instruction tuning.

``PackedDataset`` joins short conversations into rows of at most ``row_len``
tokens and emits ``cu_seqlens`` for variable-length attention.
"""
from __future__ import annotations

import json
import logging
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

logger = logging.getLogger(__name__)


@dataclass
class PackConfig:
    row_len: int = 4096
    rows_per_batch: int = 16
    ignore_index: int = -100
    workers: int = 4


@dataclass
class Conversation:
    ids: list[int]
    labels: list[int]

    def __len__(self) -> int:
        return len(self.ids)


def read_conversations(path: Path, tokenizer, cfg: PackConfig) -> list[Conversation]:
    out = []
    with path.open() as f:
        for line in f:
            row = json.loads(line)
            ids, labels = [], []
            for turn in row["turns"]:
                piece = tokenizer.encode(turn["text"], add_special_tokens=False) + [tokenizer.eos_token_id]
                ids += piece
                labels += piece if turn["role"] == "assistant" else [cfg.ignore_index] * len(piece)
            if len(ids) > cfg.row_len:
                logger.warning("skipping a conversation of %d tokens", len(ids))
                continue
            out.append(Conversation(ids, labels))
    return out


def pack(convs: list[Conversation], row_len: int) -> list[list[int]]:
    """Return lists of conversation indices, one list for each row."""
    order = sorted(range(len(convs)), key=lambda i: -len(convs[i]))
    rows: list[list[int]] = []
    room: list[int] = []
    for i in order:
        need = len(convs[i])
        for r in range(len(rows)):
            if room[r] >= need:
                rows[r].append(i)
                room[r] -= need
                break
        else:
            rows.append([i])
            room.append(row_len - need)
    return rows


class PackedDataset(Dataset):
    def __init__(self, path: str | Path, tokenizer, cfg: PackConfig):
        self.cfg = cfg
        self.convs = read_conversations(Path(path), tokenizer, cfg)
        self.rows = pack(self.convs, cfg.row_len)
        used = sum(len(c) for c in self.convs)
        logger.info("%d conversations in %d rows, fill %.1f%%", len(self.convs), len(self.rows),
                    100 * used / max(1, len(self.rows) * cfg.row_len))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, r: int) -> dict[str, torch.Tensor]:
        ids, labels, cu = [], [], [0]
        for i in self.rows[r]:
            c = self.convs[i]
            ids += c.ids
            labels += [self.cfg.ignore_index] + c.labels[1:]
            cu.append(len(ids))
        return {"ids": torch.tensor(ids), "labels": torch.tensor(labels), "cu": torch.tensor(cu, dtype=torch.int32)}


class ShuffledRows(Sampler[int]):
    """Visits the rows in a fresh random order in every epoch.

    The trainer stores ``state_dict()`` in its checkpoints.
    """

    def __init__(self, data: PackedDataset):
        self.n = len(data)
        self.epoch = 0
        self.consumed = 0

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[int]:
        order = list(range(self.n))
        random.shuffle(order)
        return iter(order[self.consumed:])

    def advance(self, rows: int) -> None:
        self.consumed += rows

    def next_epoch(self) -> None:
        self.epoch += 1
        self.consumed = 0

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "consumed": self.consumed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.consumed = state["epoch"], state["consumed"]


def collate(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Flatten rows into one variable-length batch: no pad tokens at all."""
    cu, base = [torch.zeros(1, dtype=torch.int32)], 0
    for r in rows:
        cu.append(r["cu"][1:] + base)
        base += r["ids"].numel()
    return {
        "ids": torch.cat([r["ids"] for r in rows]),
        "labels": torch.cat([r["labels"] for r in rows]),
        "cu_seqlens": torch.cat(cu),
    }


def make_loader(path: str, tokenizer, cfg: PackConfig) -> tuple[DataLoader, ShuffledRows]:
    data = PackedDataset(path, tokenizer, cfg)
    sampler = ShuffledRows(data)
    loader = DataLoader(data, batch_size=cfg.rows_per_batch, sampler=sampler, collate_fn=collate,
                        num_workers=cfg.workers, pin_memory=True, drop_last=True)
    return loader, sampler
