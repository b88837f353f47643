"""Perplexity of an uploaded checkpoint on held-out text.

    python evaluate_ppl.py uploads/alice/ckpt.pt wikitext.u16
"""
import argparse
import math
import sys

import numpy as np
import torch
from torch.nn import functional as F

from leaderboard.models import build


def load_submission(path):
    payload = torch.load(path, map_location="cpu", weights_only=False)
    net = build(payload["arch"], **payload["config"])
    net.load_state_dict(payload["weights"])
    return net


def windows(path, ctx, batch):
    flat = np.fromfile(path, dtype=np.uint16)
    n = (len(flat) - 1) // ctx
    x = torch.from_numpy(flat[: n * ctx].astype(np.int64)).view(n, ctx)
    y = torch.from_numpy(flat[1 : n * ctx + 1].astype(np.int64)).view(n, ctx)
    yield from zip(x.split(batch), y.split(batch))


def perplexity(net, path, ctx, batch):
    where = next(net.parameters()).device
    half = where in ("cuda", "cuda:0")
    net.eval()
    nll = torch.zeros((), dtype=torch.float64, device=where)
    count = 0
    for x, y in windows(path, ctx, batch):
        x, y = x.to(where), y.to(where)
        with torch.autocast(where.type, torch.bfloat16, enabled=half):
            logits = net(x)
        nll += F.cross_entropy(logits.flatten(0, 1).float(), y.flatten(), reduction="sum")
        count += y.numel()
    return math.exp(nll.item() / count)


def main(argv=None):
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("checkpoint")
    ap.add_argument("text")
    ap.add_argument("--ctx", type=int, default=1024)
    ap.add_argument("--batch", type=int, default=16)
    ap.add_argument("--device", default="cuda:0")
    ns = ap.parse_args(argv)
    net = load_submission(ns.checkpoint).to(ns.device)
    print(f"ppl {perplexity(net, ns.text, ns.ctx, ns.batch):.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
