"""Clean, tokenise and join a text corpus into train.bin / val.bin."""
import argparse
import hashlib
import re
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer

SPACES = re.compile(r"[ \t]+")


def clean(text):
    text = SPACES.sub(" ", text.replace("\r\n", "\n"))
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def in_val(name, percent=1):
    return int(hashlib.sha1(name.encode()).hexdigest(), 16) % 100 < percent


def iter_docs(root):
    for path in sorted(Path(root).rglob("*.txt")):
        for i, doc in enumerate(path.read_text(encoding="utf8", errors="replace").split("\x0c")):
            doc = clean(doc)
            if len(doc) > 200:
                yield f"{path.name}:{i}", doc


class TokenStream:
    def __init__(self, eos):
        self.eos = eos
        self.tokens = torch.empty(0, dtype=torch.int32)

    def append(self, ids):
        ids = torch.tensor(ids + [self.eos], dtype=torch.int32)
        self.tokens = torch.cat([self.tokens, ids])

    def blocks(self, size):
        n = len(self.tokens) // size
        return self.tokens[: n * size].view(n, size)


def write(stream, path, block):
    rows = stream.blocks(block)
    rows.numpy().astype(np.uint16).tofile(path)
    print(f"{path}: {len(rows):,} blocks, {rows.numel():,} tokens")


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("root")
    ap.add_argument("--out", type=Path, default=Path("."))
    ap.add_argument("--tokenizer", default="gpt2")
    ap.add_argument("--block", type=int, default=1024)
    args = ap.parse_args()

    tok = AutoTokenizer.from_pretrained(args.tokenizer)
    if len(tok) > 65535:
        ap.error("vocabulary does not fit uint16")
    train, val = TokenStream(tok.eos_token_id), TokenStream(tok.eos_token_id)
    for name, doc in iter_docs(args.root):
        ids = tok(doc, add_special_tokens=False).input_ids
        (val if in_val(name) else train).append(ids)
    args.out.mkdir(parents=True, exist_ok=True)
    write(train, args.out / "train.bin", args.block)
    write(val, args.out / "val.bin", args.block)


if __name__ == "__main__":
    main()
