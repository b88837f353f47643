"""Completion endpoint on a compiled network."""
import torch
from torch import nn


class Completer:
    """Greedy and sampled completion."""

    def __init__(self, net: nn.Module, eos: int):
        self.eos = eos
        net.eval()
        self.fast = torch.compile(net, mode="reduce-overhead", fullgraph=True)

    @torch.inference_mode()
    def complete(self, ids, limit):
        alive = torch.ones(ids.size(0), dtype=torch.bool, device=ids.device)
        for _ in range(limit):
            logits = self.fast(ids)
            nxt = logits[:, -1].argmax(-1)
            nxt = torch.where(alive, nxt, torch.full_like(nxt, self.eos))
            alive = alive & (nxt != self.eos)
            ids = torch.cat([ids, nxt[:, None]], 1)
            if not bool(alive.any()):
                break
        return ids


def strip(rows, eos):
    out = []
    for row in rows:
        out.append(row[:row.index(eos)] if eos in row else row)
    return out


def respond(completer, tokenizer, texts, limit=64):
    width = max(len(t) for t in texts)
    ids = [tokenizer.encode(t.rjust(width)) for t in texts]
    done = completer.complete(torch.tensor(ids, device="cuda"), limit)
    return [tokenizer.decode(r) for r in strip(done.tolist(), completer.eos)]
