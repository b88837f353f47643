"""The engine's hold on the device: packed weights, the cache, and one forward pass with its draws."""

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from intone.config import ModelConfig
from intone.engine import sample
from intone.engine.kv import KVCache, slot_bytes
from intone.engine.rows import Row

# memory for keys and values where nobody chose num_slots (guess: a quarter of a small laptop's, a tenth of a GPU's)
CACHE_BYTES = {"cpu": 1 << 30, "other": 8 << 30}
# more rows than this no longer make a token cheaper (guess: a CPU's products are compute-bound from 16 rows on)
MAX_SLOTS = {"cpu": 64, "other": 256}
MASK64 = (1 << 64) - 1


@dataclass(frozen=True)
class Drawn:
    """The next token of one row; id None where the logits were not finite."""

    id: int | None
    logprob: float
    top: tuple[tuple[int, float], ...]


def default_num_slots(config: ModelConfig, *, capacity: int, dtype: torch.dtype, device: torch.device) -> int:
    """Rows at once where nobody chose: what fits in CACHE_BYTES, at least 1."""
    kind = "cpu" if device.type == "cpu" else "other"
    fitting = CACHE_BYTES[kind] // slot_bytes(config, capacity=capacity, dtype=dtype)
    return max(1, min(MAX_SLOTS[kind], fitting))


def packed(model: Any, *, device: torch.device, dtype: torch.dtype) -> Any:
    """The model with its matrices in dtype on device, for inference.

    Shares the weights of `model`, and so follows its training, where they are that already; else a snapshot.
    Scalars and gates keep float32, as in training.
    """
    is_same = all(p.device.type == device.type for p in model.parameters()) and all(
        m.weight.dtype == dtype for m in model.modules() if isinstance(m, nn.Linear | nn.Embedding)
    )
    if is_same:
        if model.compute_dtype == dtype:
            return model
        shared = copy.copy(model)  # shallow: other attributes, same tensors
        shared.compute_dtype = dtype
        return shared
    snapshot = copy.deepcopy(model).to(device).requires_grad_(False)
    for module in snapshot.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            module.to(dtype)
    snapshot.compute_dtype = dtype
    return snapshot


class Runner:
    """Runs the model for rows of the scheduler. For one thread, inside torch.inference_mode."""

    def __init__(self, model: Any, *, device: torch.device, dtype: torch.dtype, num_slots: int, capacity: int) -> None:
        self.model = packed(model, device=device, dtype=dtype)
        self.device = device
        self.cache = KVCache(model.config, num_slots=num_slots, capacity=capacity, dtype=dtype, device=device)
        self.vocab_size: int = model.config.vocab_size
        self.num_token_forwards = 0
        # prompt tokens per pass: enough for fast products, few enough to bound the activations (guess)
        self.prefill_tokens = 2048 if device.type == "cpu" else 16384

    def feed(self, rows: list[Row]) -> Tensor:
        """Feeds every row's pending tokens -> logits (B, V) after each row's last; pending is emptied."""
        counts = [len(row.pending) for row in rows]
        longest = max(counts)
        padded = [row.pending + [0] * (longest - len(row.pending)) for row in rows]
        ids = torch.tensor(padded, dtype=torch.int64).to(self.device)
        last = torch.tensor([count - 1 for count in counts]).to(self.device) if longest > 1 else None
        view = self.cache.view([row.slot for row in rows], counts)
        logits = self.model.logits(ids, cache=view, last=last)[:, -1]
        self.num_token_forwards += sum(counts)
        for row in rows:
            row.pending = []
        return logits

    def sync_draw(self, rows: list[Row], logits: Tensor) -> list[Drawn]:
        """The next token of every row from its logits (B, V). Waits for the device: the one wait of a step."""
        settings = self._settings(rows)
        ids = sample.choose(logits, settings)
        result = torch.stack((ids.double(), sample.logprobs_of(logits, ids).double(), sample.usable(logits).double()))
        num_top = min(self.vocab_size, max(row.group.request.top_logprobs for row in rows))
        tops = self._sync_top(logits, num_top) if num_top else [()] * len(rows)
        drawn = []
        for row, chosen, logprob, is_usable, top in zip(rows, *result.tolist(), tops, strict=True):
            wanted = top[: row.group.request.top_logprobs]
            drawn.append(Drawn(int(chosen) if is_usable else None, logprob, wanted))
        return drawn

    def _sync_top(self, logits: Tensor, num_top: int) -> list[tuple[tuple[int, float], ...]]:
        values, ids = logits.log_softmax(-1).topk(num_top)
        return [tuple(zip(*pair, strict=True)) for pair in zip(ids.tolist(), values.tolist(), strict=True)]

    def _settings(self, rows: list[Row]) -> sample.Settings:
        requests = [row.group.request for row in rows]
        vocab = self.vocab_size
        return sample.Settings(
            temperature=np.array([request.temperature for request in requests]),
            top_k=np.array([min(request.top_k or vocab, vocab) for request in requests]),
            top_p=np.array([request.top_p for request in requests]),
            min_p=np.array([request.min_p for request in requests]),
            uniform=sample.uniforms(
                np.array([row.group.handle.seed & MASK64 for row in rows], dtype=np.uint64),
                np.array([row.sample for row in rows]),
                np.array([row.position for row in rows]),
            ),
        )

    def score(self, texts: list[list[int]]) -> list[np.ndarray]:
        """Log-probabilities (T - 1,) float32 in nats of each text's tokens after its first, in order."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        results: list[np.ndarray] = [np.zeros(0, dtype=np.float32)] * len(texts)
        while order:
            longest = len(texts[order[-1]])
            # float32 logits of a batch stay below a quarter of a GiB
            num_rows = max(1, (1 << 26) // (longest * self.vocab_size))
            batch, order = order[-num_rows:], order[:-num_rows]
            ids = torch.tensor([texts[i] + [0] * (longest - len(texts[i])) for i in batch]).to(self.device)
            logits = self.model.logits(ids)
            self.num_token_forwards += sum(len(texts[i]) for i in batch)
            chosen = logits[:, :-1].gather(-1, ids[:, 1:, None])[..., 0] - logits[:, :-1].logsumexp(-1)
            scores = chosen.float().cpu().numpy()
            for row, i in enumerate(batch):
                results[i] = scores[row, : len(texts[i]) - 1].copy()
        return results
