"""A minimal batched decoding engine: prefill once, fork into n branches, decode."""
from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


class LayerKV:
    def __init__(self, heads: int, max_len: int, dim: int, device, dtype):
        self.max_len = max_len
        self.k = torch.zeros(1, heads, max_len, dim, device=device, dtype=dtype)
        self.v = torch.zeros_like(self.k)

    def write(self, at: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        k, v = self._trim(at, k), self._trim(at, v)
        end = at + k.shape[2]
        self.k[:, :, at:end] = k
        self.v[:, :, at:end] = v
        return self.k[:, :, :end], self.v[:, :, :end]

    def _trim(self, at: int, t: Tensor) -> Tensor:
        room = max(self.max_len - at, 0)
        return t[:, :, :room]

    def branch(self, n: int) -> None:
        self.k = self.k.repeat(n, 1, 1, 1)
        self.v = self.v.repeat(n, 1, 1, 1)


@dataclass
class DecodeState:
    layers: list[LayerKV]
    position: int = 0
    last: Tensor | None = None
    history: Tensor | None = None

    def branch(self, n: int) -> "DecodeState":
        for layer in self.layers:
            layer.branch(n)
        self.last = self.last.repeat(n, 1)
        self.history = self.history.repeat(n, 1)
        return self


class Engine:
    def __init__(self, model, max_len: int = 2048, temperature: float = 1.0):
        self.model = model.eval()
        self.max_len = max_len
        self.temperature = temperature

    def _blank(self) -> DecodeState:
        cfg, p = self.model.cfg, next(self.model.parameters())
        kv = [LayerKV(cfg.kv_heads, self.max_len, cfg.head_dim, p.device, p.dtype)
              for _ in range(cfg.layers)]
        return DecodeState(kv)

    def _draw(self, logits: Tensor) -> Tensor:
        probs = torch.softmax(logits / self.temperature, dim=-1)
        return torch.multinomial(probs, 1)

    def prefill(self, prompt: Tensor) -> DecodeState:
        state = self._blank()
        logits = self.model(prompt[None], state.layers, state.position)
        state.position = prompt.numel()
        state.last = self._draw(logits[:, -1])
        state.history = state.last
        return state

    def advance(self, state: DecodeState) -> None:
        logits = self.model(state.last, state.layers, state.position)
        state.position += 1
        state.last = self._draw(logits[:, -1])
        state.history = torch.cat([state.history, state.last], dim=1)

    @torch.inference_mode()
    def sample(self, prompt: Tensor, n: int, steps: int) -> Tensor:
        """n continuations of one prompt, [n, steps]."""
        state = self.prefill(prompt).branch(n)
        for _ in range(steps - 1):
            self.advance(state)
        return state.history
