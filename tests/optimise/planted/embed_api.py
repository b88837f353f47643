"""Serve embeddings and rewards."""
import threading

import torch
from torch import nn


class RewardHead(nn.Module):
    def __init__(self, trunk, width):
        super().__init__()
        self.trunk = trunk
        self.drop = nn.Dropout(0.1)
        self.score = nn.Linear(width, 1)

    def forward(self, ids):
        return self.score(self.drop(self.trunk(ids)[:, -1])).squeeze(-1)


class Scorer:
    def __init__(self, weights, trunk, width, device):
        self.head = RewardHead(trunk, width)
        self.head.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        self.head.to(device)
        self.device = device
        self.lock = threading.Lock()

    def _encode(self, texts, tokenizer):
        longest = max(len(tokenizer.encode(t)) for t in texts)
        rows = [tokenizer.encode(t) for t in texts]
        return torch.tensor([r + [0] * (longest - len(r)) for r in rows], device=self.device)

    def predict(self, texts, tokenizer):
        with self.lock:
            scores = self.head(self._encode(texts, tokenizer))
        return scores.detach().cpu().tolist()


def rank(scorer, tokenizer, question, answers):
    scores = scorer.predict([question + a for a in answers], tokenizer)
    return [a for _, a in sorted(zip(scores, answers), reverse=True)]
