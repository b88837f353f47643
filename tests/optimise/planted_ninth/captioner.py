"""Image captioning: timm backbone + transformer decoder, greedy search."""
from typing import List

import timm
import torch
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor, nn


class CaptionNet(nn.Module):
    def __init__(
        self,
        vocab: int,
        dim: int = 512,
        layers: int = 6,
        heads: int = 8,
        max_len: int = 64,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.backbone = timm.create_model("vit_base_patch16_224", num_classes=0)
        self.bridge = nn.Linear(self.backbone.num_features, dim)
        self.tok = nn.Embedding(vocab, dim)
        self.pos = nn.Parameter(torch.zeros(1, max_len, dim))
        self.drop = nn.Dropout(dropout)
        layer = nn.TransformerDecoderLayer(
            dim, heads, 4 * dim, dropout=dropout, batch_first=True, norm_first=True
        )
        self.decoder = nn.TransformerDecoder(layer, layers, norm=nn.LayerNorm(dim))
        self.out = nn.Linear(dim, vocab, bias=False)
        self.max_len = max_len

    def encode(self, pixels: Tensor) -> Tensor:
        return self.bridge(self.backbone.forward_features(pixels))

    def hidden(self, tokens: Tensor, memory: Tensor) -> Tensor:
        n = tokens.size(1)
        x = self.drop(self.tok(tokens) + self.pos[:, :n])
        mask = nn.Transformer.generate_square_subsequent_mask(n, device=tokens.device)
        return self.decoder(x, memory, tgt_mask=mask, tgt_is_causal=True)

    def forward(self, pixels: Tensor, tokens: Tensor) -> Tensor:
        return self.out(self.hidden(tokens, self.encode(pixels)))

    @torch.no_grad()
    def greedy(self, pixels: Tensor, bos: int, steps: int) -> Tensor:
        memory = self.encode(pixels)
        seq = torch.full((pixels.size(0), 1), bos, dtype=torch.long, device=pixels.device)
        for _ in range(min(steps, self.max_len - 1)):
            h = self.hidden(seq, memory)
            best = self.out(h[:, -1]).argmax(-1, keepdim=True)
            seq = torch.cat([seq, best], dim=1)
        return seq[:, 1:]


class CaptionService:
    def __init__(self, weights: str, vocab_file: str, device: str = "cuda") -> None:
        self.tokenizer = Tokenizer.from_file(vocab_file)
        self.device = torch.device(device)
        net = CaptionNet(self.tokenizer.get_vocab_size())
        state = torch.load(weights, map_location="cpu", weights_only=True)
        net.load_state_dict(state["model"])
        self.net = net.requires_grad_(False).to(self.device)
        cfg = timm.data.resolve_model_data_config(net.backbone)
        self.transform = timm.data.create_transform(**cfg, is_training=False)
        self.bos = self.tokenizer.token_to_id("<s>")
        self.eos = self.tokenizer.token_to_id("</s>")

    def _trim(self, ids: List[int]) -> List[int]:
        return ids[: ids.index(self.eos)] if self.eos in ids else ids

    def caption(self, images: List[Image.Image], steps: int = 40) -> List[str]:
        pixels = torch.stack([self.transform(im.convert("RGB")) for im in images])
        ids = self.net.greedy(pixels.to(self.device), self.bos, steps).tolist()
        return self.tokenizer.decode_batch([self._trim(row) for row in ids])
