"""Turn a directory of text files into fixed-length training rows."""
import argparse
from pathlib import Path
from typing import Dict, List

import numpy as np
import tiktoken


def sources(root: Path, mirrors: List[Path]) -> List[str]:
    names = {str(p.relative_to(root)) for p in root.rglob("*.txt")}
    for mirror in mirrors:
        names |= {str(p.relative_to(mirror)) for p in mirror.rglob("*.txt")}
    return list(names)


def encode_all(roots: List[Path], names: List[str], limit: int) -> List[List[int]]:
    enc = tiktoken.get_encoding("gpt2")
    docs = []
    for name in names:
        ids = enc.encode_ordinary(next(r / name for r in roots if (r / name).exists()).read_text(errors="replace"))
        ids.append(enc.eot_token)
        for i in range(0, len(ids), limit):
            docs.append(ids[i : i + limit])
    return docs


def pack(docs: List[List[int]], limit: int) -> List[List[int]]:
    rows: List[List[int]] = []
    for doc in sorted(docs, key=len, reverse=True):
        for row in rows:
            if len(row) + len(doc) <= limit:
                row.extend(doc)
                break
        else:
            rows.append(list(doc))
    return rows


def to_array(rows: List[List[int]], limit: int, fill: int = 50256) -> np.ndarray:
    table = np.full((len(rows), limit), fill, dtype=np.uint16)
    for i, row in enumerate(rows):
        table[i, : len(row)] = row
    return table


def summary(table: np.ndarray) -> Dict[str, int]:
    return {"rows": int(table.shape[0]), "tokens": int(table.size)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--mirror", type=Path, action="append", default=[])
    parser.add_argument("--ctx", type=int, default=2048)
    a = parser.parse_args()
    files = sources(a.root, a.mirror)
    table = to_array(pack(encode_all([a.root, *a.mirror], files, a.ctx), a.ctx), a.ctx)
    np.save(a.out, table)
    print(summary(table))
