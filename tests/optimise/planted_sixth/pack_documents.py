"""Turn downloaded document shards into fixed blocks of tokens."""
import argparse
import pickle
import urllib.request
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer


def download(url, cache):
    dst = cache / url.rsplit("/", 1)[-1]
    if not dst.exists():
        part = dst.with_suffix(".part")
        urllib.request.urlretrieve(url, part)
        part.rename(dst)
    return dst


def read_shard(path):
    with open(path, "rb") as f:
        return pickle.load(f)


def pack_best_fit(docs, block):
    """Best-fit: put each document in the fullest block it still fits."""
    bins = []
    space = []
    for doc in sorted(docs, key=len, reverse=True):
        best = None
        for i, free in enumerate(space):
            if free >= len(doc) and (best is None or free < space[best]):
                best = i
        if best is None:
            bins.append([doc])
            space.append(block - len(doc))
        else:
            bins[best].append(doc)
            space[best] -= len(doc)
    return bins


def to_rows(bins, block, eos):
    rows = np.full((len(bins), block), eos, dtype=np.uint16)
    starts = []
    for r, docs in enumerate(bins):
        pos, s = 0, []
        for d in docs:
            rows[r, pos : pos + len(d)] = d
            s.append(pos)
            pos += len(d)
        starts.append(s)
    return rows, starts


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("urls", type=Path)
    ap.add_argument("--out", type=Path, default=Path("packed"))
    ap.add_argument("--block", type=int, default=2048)
    ap.add_argument("--tokenizer", default="tokenizer.json")
    a = ap.parse_args()
    a.out.mkdir(exist_ok=True)
    tok = Tokenizer.from_file(a.tokenizer)
    eos = tok.token_to_id("</s>")
    for n, url in enumerate(a.urls.read_text().split()):
        texts = read_shard(download(url, a.out))
        docs = []
        for enc in tok.encode_batch(texts):
            ids = enc.ids + [eos]
            docs.extend(ids[i : i + a.block] for i in range(0, len(ids), a.block))
        rows, starts = to_rows(pack_best_fit(docs, a.block), a.block, eos)
        torch.save({"rows": torch.from_numpy(rows.astype(np.int32)), "starts": starts},
                   a.out / f"{n:05d}.pt")
        print(url, rows.shape)


if __name__ == "__main__":
    main()
