"""A recurrent-free character model; the loop that writes text is in writer.py."""
import torch
import torch.nn as nn


class CharModel(nn.Module):
    def __init__(self, vocab, width=384, layers=6, heads=6, context=256):
        super().__init__()
        self.context = context
        self.symbols = nn.Embedding(vocab, width)
        self.places = nn.Parameter(torch.zeros(context, width))
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, dropout=0.1, batch_first=True, norm_first=True)
        self.stack = nn.TransformerEncoder(layer, layers)
        self.readout = nn.Linear(width, vocab)

    def forward(self, ids):
        t = ids.size(1)
        mask = nn.Transformer.generate_square_subsequent_mask(t, device=ids.device)
        h = self.symbols(ids) + self.places[:t]
        return self.readout(self.stack(h, mask=mask, is_causal=True))

    def after(self, ids):
        """Scores of what comes next."""
        return self(ids[:, -self.context:])[:, -1]
