import json
from bisect import bisect_left, insort
from pathlib import Path

import numpy as np


def read_docs(root):
    for path in sorted(Path(root).glob("*.jsonl")):
        with path.open(encoding="utf8") as f:
            for line in f:
                yield json.loads(line)["ids"]


def pack_best_fit(docs, block):
    """Best-fit decreasing; open bins are held by free space."""
    spaces = []
    by_space = {}
    bins = []
    for doc in sorted(docs, key=len, reverse=True):
        at = bisect_left(spaces, len(doc))
        if at == len(spaces):
            bins.append([doc])
            b, free = len(bins) - 1, block - len(doc)
        else:
            space = spaces[at]
            b = by_space[space].pop()
            if not by_space[space]:
                del by_space[space], spaces[at]
            bins[b].append(doc)
            free = space - len(doc)
        if free not in by_space:
            by_space[free] = []
            insort(spaces, free)
        by_space[free].append(b)
    return bins


def join(docs, eos):
    parts = []
    for d in docs:
        parts.append(np.asarray(d + [eos], dtype=np.uint16))
    return np.concatenate(parts)


def main(root="docs", out="train.bin", eos=2):
    tokens = join(read_docs(root), eos)
    tokens.tofile(out)
    print(f"{len(tokens):,} tokens")


if __name__ == "__main__":
    main()
