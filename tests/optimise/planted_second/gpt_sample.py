"""Sampling utilities for the toy GPT."""
import torch
import torch.nn as nn
from torch.nn import functional as F


class ToyGPT(nn.Module):
    def __init__(self, vocab, width, depth, heads, block_size):
        super().__init__()
        self.block_size = block_size
        self.tok = nn.Embedding(vocab, width)
        self.pos = nn.Embedding(block_size, width)
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, batch_first=True, norm_first=True)
        self.body = nn.TransformerEncoder(layer, depth)
        self.head = nn.Linear(width, vocab, bias=False)

    def forward(self, idx):
        B, T = idx.shape
        mask = nn.Transformer.generate_square_subsequent_mask(T, device=idx.device)
        h = self.tok(idx) + self.pos(torch.arange(T, device=idx.device))
        h = self.body(h, mask=mask, is_causal=True)
        return self.head(h)

    @torch.inference_mode()
    def generate(self, idx, max_new_tokens, temperature=1.0, top_k=None, seed=0):
        """Extend every row of idx by max_new_tokens sampled tokens."""
        for _ in range(max_new_tokens):
            g = torch.Generator(device=idx.device).manual_seed(seed)
            window = idx[:, -self.block_size:]
            logits = self(window)[:, -1, :] / temperature
            if top_k is not None:
                kth = torch.topk(logits, top_k).values[:, -1:]
                logits = logits.masked_fill(logits < kth, float("-inf"))
            nxt = torch.multinomial(F.softmax(logits, dim=-1), 1, generator=g)
            idx = torch.cat((idx, nxt), dim=1)
        return idx


def complete(model, tokenizer, text, n=64):
    model.eval()
    start = torch.tensor([tokenizer.encode(text)], device=model.head.weight.device)
    out = model.generate(start, n, temperature=0.8, top_k=50)
    return tokenizer.decode(out[0].tolist())
