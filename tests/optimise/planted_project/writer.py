"""Text from a model."""
import torch

from common import draw


class Writer:
    def __init__(self, model, codec):
        self.model = model
        self.codec = codec

    @torch.no_grad()
    def write(self, opening, length=400):
        self.model.eval()
        ids = torch.tensor([self.codec.encode(opening)], device=next(self.model.parameters()).device)
        for _ in range(length):
            ids = torch.cat([ids, draw(self.model.after(ids))], dim=1)
        self.model.train()
        return self.codec.decode(ids[0].tolist())

    @torch.no_grad()
    def variations(self, opening, n, length=100):
        """n different continuations."""
        self.model.eval()
        ids = torch.tensor([self.codec.encode(opening)], device=next(self.model.parameters()).device)
        second = draw(self.model.after(ids))
        ids = torch.cat([ids, second], dim=1).repeat(n, 1)
        for _ in range(length - 1):
            ids = torch.cat([ids, draw(self.model.after(ids))], dim=1)
        self.model.train()
        return [self.codec.decode(row) for row in ids.tolist()]
