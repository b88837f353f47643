"""Turn tokenised shards into fixed-size training rows.

Every worker handles its own slice of the shards and writes one .npz per
shard, with token ids and segment ids (for block-diagonal attention).
"""
import argparse
import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from transformers import AutoTokenizer


@dataclass
class Row:
    room: int
    docs: list = field(default_factory=list)

    def put(self, ids):
        self.docs.append(ids)
        self.room -= len(ids)


def read_docs(path, tok, ctx):
    with path.open(encoding="utf-8") as fh:
        for line in fh:
            ids = tok.encode(json.loads(line)["text"], add_special_tokens=False)
            ids.append(tok.eos_token_id)
            for i in range(0, len(ids), ctx):
                yield ids[i:i + ctx]


def assemble(docs, ctx):
    rows = []
    for ids in docs:
        row = next((r for r in rows if r.room >= len(ids)), None)
        if row is None:
            row = Row(ctx)
            rows.append(row)
        row.put(ids)
    return rows


def to_arrays(rows, ctx, pad_id):
    tokens = np.full((len(rows), ctx), pad_id, dtype=np.int32)
    segments = np.zeros((len(rows), ctx), dtype=np.int32)
    for i, row in enumerate(rows):
        at = 0
        for j, ids in enumerate(row.docs, start=1):
            tokens[i, at:at + len(ids)] = ids
            segments[i, at:at + len(ids)] = j
            at += len(ids)
    return tokens, segments


def write(path, tokens, segments):
    tmp = path.with_suffix(".part")
    with tmp.open("wb") as fh:
        np.savez(fh, tokens=tokens, segments=segments)
        fh.flush()
        os.fsync(fh.fileno())
    os.replace(tmp, path)


def my_shards(root, worker, workers):
    every = [p for p in Path(root).rglob("*.jsonl") if p.stat().st_size]
    return every[worker::workers]


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("root")
    ap.add_argument("dest")
    ap.add_argument("--tokenizer", default="EleutherAI/gpt-neox-20b")
    ap.add_argument("--ctx", type=int, default=4096)
    ap.add_argument("--worker", type=int, default=int(os.getenv("SLURM_PROCID", "0")))
    ap.add_argument("--workers", type=int, default=int(os.getenv("SLURM_NTASKS", "1")))
    args = ap.parse_args()

    tok = AutoTokenizer.from_pretrained(args.tokenizer)
    dest = Path(args.dest)
    dest.mkdir(parents=True, exist_ok=True)
    for n, shard in enumerate(my_shards(args.root, args.worker, args.workers)):
        rows = assemble(read_docs(shard, tok, args.ctx), args.ctx)
        tokens, segments = to_arrays(rows, args.ctx, tok.eos_token_id)
        write(dest / f"rows-{args.worker:04d}-{n:05d}.npz", tokens, segments)
        fill = (segments > 0).mean()
        print(f"[{args.worker}] {shard.name}: {len(rows)} rows, {fill:.1%} full")


if __name__ == "__main__":
    main()
