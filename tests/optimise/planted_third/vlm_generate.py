"""Captioning wrapper: a frozen image tower, a projector and a decoder-only LM."""
import torch
from torch import nn


class Captioner(nn.Module):
    def __init__(self, tower, lm, width, prefix_len=32, eos_id=2, max_positions=1024):
        super().__init__()
        self.tower = tower.requires_grad_(False)
        self.lm = lm
        self.project = nn.Linear(width, lm.config.hidden_size)
        self.queries = nn.Parameter(torch.randn(prefix_len, width) * 0.02)
        self.pool = nn.MultiheadAttention(width, 8, batch_first=True)
        self.eos_id = eos_id
        self.max_positions = max_positions

    def train(self, mode=True):
        super().train(mode)
        self.tower.eval()
        return self

    def prefix(self, pixels):
        with torch.no_grad():
            patches = self.tower(pixels)
        q = self.queries.expand(len(patches), -1, -1)
        pooled, _ = self.pool(q, patches, patches, need_weights=False)
        return self.project(pooled)

    def forward(self, pixels, ids, labels=None):
        embeds = self._join(self.prefix(pixels), ids)
        hidden = self.lm.trunk(inputs_embeds=embeds)
        logits = self.lm.head(hidden[:, -ids.shape[1] - 1:-1])
        if labels is None:
            return logits
        return logits, nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())

    def _join(self, prefix, ids):
        return torch.cat([prefix, self.lm.embed(ids)], dim=1)

    def _next_logits(self, prefix, written):
        hidden = self.lm.trunk(inputs_embeds=self._join(prefix, written))
        return self.lm.head(hidden[:, -1])

    def _draw(self, logits, temperature):
        probs = torch.softmax(logits / temperature, dim=-1)
        return torch.multinomial(probs, 1).squeeze(1)

    @torch.inference_mode()
    def captions(self, pixels, per_image=4, length=48, temperature=0.9):
        """per_image sampled captions of one image [3, H, W] -> LongTensor [per_image, length]."""
        if self.queries.shape[0] + length > self.max_positions:
            raise ValueError("caption length does not fit the decoder")
        mode = self.training
        self.eval()
        prefix = self.prefix(pixels[None]).expand(per_image, -1, -1)
        out = torch.full((per_image, length), self.eos_id, device=pixels.device)
        done = torch.zeros(per_image, dtype=torch.bool, device=pixels.device)
        for t in range(length):
            logits = self._next_logits(prefix, out[:, :t])
            out[:, t] = self._draw(logits[:1], temperature)
            out[:, t] = out[:, t].masked_fill(done, self.eos_id)
            done |= out[:, t] == self.eos_id
        self.train(mode)
        return out


def describe(model, tokenizer, images, transform, device="cuda"):
    results = {}
    for name, image in images.items():
        ids = model.captions(transform(image).to(device))
        results[name] = tokenizer.batch_decode(ids.cpu(), skip_special_tokens=True)
    return results
