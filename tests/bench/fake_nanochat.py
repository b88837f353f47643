"""A package with nanochat's interface around our own model and optimizer, for tests of what drives nanochat.

Parameters have nanochat's names.
"""

from pathlib import Path

import numpy as np

from intone.bench.train_nanochat import Checkout

GPT = """
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from intone.config import ModelConfig, OptimConfig
from intone.exchange.nanochat import their_name
from intone.model.cost import num_parameters, train_flops_per_token
from intone.model.gpt import GPT as Inner
from intone.model.optim import Optimizer as InnerOptimizer
from intone.model.optim import StepScale
from nanochat.common import COMPUTE_DTYPE

print("nanochat talks on stdout")  # as it really does, where only answers may stand


@dataclass
class GPTConfig:
    sequence_len: int
    vocab_size: int
    n_layer: int
    n_head: int
    n_kv_head: int
    n_embd: int
    window_pattern: str


class Optimizer:
    def __init__(self, inner, matrix_lr, weight_decay, **rates):
        self.scale = matrix_lr / 0.02
        self.inner = InnerOptimizer(inner, OptimConfig(
            matrix_lr=0.02, embedding_lr=rates["embedding_lr"] / self.scale,
            head_lr=rates["unembedding_lr"] / self.scale, residual_scale_lr=0.01 * rates["scalar_lr"] / self.scale,
            embedding_scale_lr=rates["scalar_lr"] / self.scale, gate_lr=0.2 / self.scale, weight_decay=weight_decay,
        ))
        self.param_groups = [{"kind": "muon", "initial_lr": matrix_lr}, {"kind": "adamw", "initial_lr": 1.0}]

    def step(self):
        group = self.param_groups[0]
        decay = group["weight_decay"] / self.inner.config.weight_decay
        self.inner.step(StepScale(group["lr"] / 0.02, group["momentum"], decay))


class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.shape = ModelConfig(
            vocab_size=config.vocab_size, context=config.sequence_len, depth=config.n_layer, width=config.n_embd,
            num_heads=config.n_head, num_kv_heads=config.n_kv_head, head_width=config.n_embd // config.n_head,
            window_pattern=config.window_pattern,
        )
        self.inner = Inner(self.shape)
        self.window_sizes = [(min(self.shape.window(i), config.sequence_len), 0) for i in range(config.n_layer)]

    def init_weights(self):
        self.inner.init_weights(int(torch.randint(1000, (1,))))
        self.inner.cos = torch.empty(0)
        self.inner.ensure_positions(self.config.sequence_len)
        self.inner.compute_dtype = COMPUTE_DTYPE

    def named_parameters(self, *args, **kwargs):
        return [(their_name(name), p) for name, p in self.inner.named_parameters()]

    def num_scaling_params(self):
        counts = num_parameters(self.shape)
        return {
            "wte": counts["embedding"], "value_embeds": counts["value_embeddings"], "lm_head": counts["head"],
            "transformer_matrices": counts["matrices"], "scalars": counts["scalars"], "total": counts["total"],
        }

    def estimate_flops(self):
        return train_flops_per_token(self.shape, self.shape.context)

    def setup_optimizer(self, **rates):
        return Optimizer(self.inner, **rates)

    def forward(self, idx, targets, loss_reduction="mean"):
        logits = self.inner.logits(idx).flatten(0, 1)
        return F.cross_entropy(logits, targets.flatten(), ignore_index=-1, reduction=loss_reduction)
"""
COMMON = """
import os

import torch

COMPUTE_DTYPE = getattr(torch, os.environ.get("NANOCHAT_DTYPE", "float32"))
"""


def write_checkout(folder: Path, *, gpt: str = GPT, common: str = COMMON) -> Path:
    """The package's files below folder -> folder."""
    package = folder / "nanochat"
    package.mkdir(parents=True)
    for name, text in {"__init__": "", "gpt": gpt, "common": common}.items():
        (package / f"{name}.py").write_text(text)
    return folder


def checkout_of(folder: Path, python: str) -> Checkout:
    return Checkout(folder, python, "fake")


def write_rows(folder: Path, *, num_rows: int, context: int, vocab_size: int, num_val: int = 5) -> Path:
    """Random rows as train_ours.export_rows writes them, a few targets of which are not learned -> folder."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for part, count in (("", num_rows), ("val_", num_val)):
        ids = rng.integers(0, vocab_size, (count, context + 1), dtype=np.int32)
        targets = ids[:, 1:].copy()
        targets[rng.random(targets.shape) < 0.1] = -1
        np.save(folder / f"{part}ids.npy", ids[:, :-1])
        np.save(folder / f"{part}targets.npy", targets)
    documents = np.zeros((num_val, context), np.int32)
    documents[:, context // 2 :] = 1
    np.save(folder / "val_documents.npy", documents)
    token_bytes = rng.integers(0, 4, vocab_size, dtype=np.int32)  # 0: a special token
    np.save(folder / "token_bytes.npy", token_bytes)
    (folder / "rows.json").write_text(f'{{"format": 1, "num_rows": {num_rows}}}')
    return folder
