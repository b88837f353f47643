"""Prepare the two halves of the tuning corpus: long-form text and instructions.

Both become causal-LM rows with the fields input_ids, attention_mask and labels.
"""
import argparse
import logging
from typing import List, Sequence, Set

from datasets import Dataset, concatenate_datasets, load_dataset
from transformers import AutoTokenizer, PreTrainedTokenizerBase

LOG = logging.getLogger("corpus")

TEMPLATE = "### Instruction:\n{instruction}\n\n### Response:\n{output}"


def token_lists(texts: Sequence[str], tok: PreTrainedTokenizerBase) -> List[List[int]]:
    encoded = tok(list(texts), add_special_tokens=False)["input_ids"]
    return [ids + [tok.eos_token_id] for ids in encoded]


def split_long(docs: List[List[int]], size: int) -> List[List[int]]:
    return [d[i : i + size] for d in docs for i in range(0, len(d), size)]


def one_row(docs: Sequence[List[int]], size: int) -> Set[int]:
    """Indices of the documents for the next row, in reading order."""
    room, chosen = size, set()
    for i, doc in enumerate(docs):
        if len(doc) <= room:
            chosen.add(i)
            room -= len(doc)
        if room == 0:
            break
    return chosen


def pack(docs: List[List[int]], size: int) -> List[List[List[int]]]:
    rows = []
    while docs:
        chosen = one_row(docs, size)
        rows.append([docs[i] for i in sorted(chosen)])
        docs = [d for i, d in enumerate(docs) if i not in chosen]
    return rows


def longform(path: str, tok: PreTrainedTokenizerBase, size: int) -> Dataset:
    raw = load_dataset("json", data_files=path, split="train")
    docs = split_long(token_lists(raw["text"], tok), size)
    ids, labels, masks = [], [], []
    for parts in pack(docs, size):
        flat = [t for part in parts for t in part]
        gap = size - len(flat)
        ids.append(flat + [tok.pad_token_id] * gap)
        labels.append(flat + [-100] * gap)
        masks.append([1] * len(flat) + [0] * gap)
    LOG.info("%d long-form rows out of %d documents", len(ids), len(docs))
    return Dataset.from_dict({"input_ids": ids, "attention_mask": masks, "labels": labels})


class InstructionEncoder:
    def __init__(self, tok: PreTrainedTokenizerBase, size: int):
        self.tok = tok
        self.options = {"truncation": True, "max_length": size, "padding": "max_length"}

    def __call__(self, batch):
        texts = [
            TEMPLATE.format(instruction=q, output=a) + self.tok.eos_token
            for q, a in zip(batch["instruction"], batch["output"])
        ]
        enc = self.tok(texts, **self.options)
        enc["labels"] = [
            [t if m else -100 for t, m in zip(ids, mask)]
            for ids, mask in zip(enc["input_ids"], enc["attention_mask"])
        ]
        return enc


def instructions(path: str, tok: PreTrainedTokenizerBase, size: int) -> Dataset:
    raw = load_dataset("json", data_files=path, split="train")
    return raw.map(InstructionEncoder(tok, size), batched=True, remove_columns=raw.column_names)


def main() -> None:
    ap = argparse.ArgumentParser()
    ap.add_argument("--tokenizer", default="mistralai/Mistral-7B-v0.3")
    ap.add_argument("--longform", required=True)
    ap.add_argument("--instructions", required=True)
    ap.add_argument("--size", type=int, default=2048)
    ap.add_argument("--out", required=True)
    ap.add_argument("--seed", type=int, default=42)
    a = ap.parse_args()
    logging.basicConfig(level=logging.INFO)
    tok = AutoTokenizer.from_pretrained(a.tokenizer)
    if tok.pad_token is None:
        tok.pad_token = tok.unk_token
    both = concatenate_datasets([longform(a.longform, tok, a.size), instructions(a.instructions, tok, a.size)])
    both.shuffle(seed=a.seed).save_to_disk(a.out)


if __name__ == "__main__":
    main()
