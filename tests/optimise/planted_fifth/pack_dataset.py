"""
Tokenise a folder of .txt / .jsonl documents and pack them in rows of T tokens.

usage: python pack_dataset.py raw/ packed.npy --seq-len 2048
"""
import argparse
import json
import os
import random

import numpy as np
import tiktoken
from tqdm import tqdm

enc = tiktoken.get_encoding("gpt2")
EOT = enc.eot_token


def list_files(root):
    names = [n for n in os.listdir(root) if n.endswith((".txt", ".jsonl"))]
    random.shuffle(names)
    return [os.path.join(root, n) for n in names]


def read_documents(path):
    if path.endswith(".txt"):
        with open(path, encoding="utf-8") as f:
            yield f.read()
        return
    with open(path, encoding="utf-8") as f:
        for line in f:
            yield json.loads(line)["text"]


def encode(text, seq_len):
    ids = enc.encode_ordinary(text)
    ids.append(EOT)
    for i in range(0, len(ids), seq_len):
        yield ids[i : i + seq_len]


def pack(pieces, seq_len):
    """Puts each piece in the fullest row that still has room for it."""
    rows = []
    for piece in tqdm(pieces, desc="packing"):
        best = None
        for row in rows:
            room = seq_len - len(row)
            if room >= len(piece) and (best is None or len(row) > len(best)):
                best = row
        if best is None:
            rows.append(list(piece))
        else:
            best.extend(piece)
    return rows


def write(rows, path, seq_len):
    out = np.full((len(rows), seq_len), EOT, dtype=np.uint16)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    np.save(path, out)
    used = sum(map(len, rows))
    print(f"{len(rows)} rows, {used / out.size:.1%} full -> {path}")


def main():
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("root")
    ap.add_argument("out")
    ap.add_argument("--seq-len", type=int, default=2048)
    ap.add_argument("--max-docs", type=int, default=0)
    args = ap.parse_args()

    pieces, n_docs = [], 0
    for path in list_files(args.root):
        for doc in read_documents(path):
            pieces.extend(encode(doc, args.seq_len))
            n_docs += 1
            if args.max_docs and n_docs >= args.max_docs:
                break
        if args.max_docs and n_docs >= args.max_docs:
            break
    print(f"{n_docs} documents, {len(pieces)} pieces")
    write(pack(pieces, args.seq_len), args.out, args.seq_len)


if __name__ == "__main__":
    main()
