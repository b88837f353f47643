"""What a model costs, by arithmetic: parameters by kind and floating-point operations per token."""

from intone.config import ModelConfig


def num_parameters(config: ModelConfig) -> dict[str, int]:
    """Parameters by kind: embedding, value_embeddings, head, matrices, scalars; and their total."""
    d, kv = config.width, config.num_kv_heads * config.head_width
    tables = sum(config.has_value_embedding(i) for i in range(config.depth))
    gates = tables * 12 * config.num_kv_heads
    block = d * (2 * config.num_heads * config.head_width + 2 * kv) + 2 * config.mlp_ratio * d * d
    counts = {
        "embedding": config.padded_vocab * d,
        "value_embeddings": tables * config.padded_vocab * kv,
        "head": config.padded_vocab * d,
        "matrices": config.depth * block + gates,
        "scalars": 2 * config.depth * config.residual_scalars + 25 * config.smear + config.backout,
    }
    return counts | {"total": sum(counts.values())}


def train_flops_per_token(config: ModelConfig, context: int) -> int:
    """Forward and backward operations per token in nanochat's convention.

    6 per parameter of a matrix product, and 12 * H * C * visible tokens per block for attention, counted as
    if every query saw its whole window. Lookups, norms and the optimizer are not counted.
    """
    counts = num_parameters(config)
    products = counts["matrices"] + counts["head"] + (24 if config.smear else 0)
    seen = sum(min(config.window(i), context) for i in range(config.depth))
    return 6 * products + 12 * config.num_heads * config.head_width * seen


def weight_bytes(config: ModelConfig) -> int:
    """Bytes of the float32 master weights."""
    return 4 * num_parameters(config)["total"]


def training_state_bytes(config: ModelConfig) -> int:
    """Bytes of weights, gradients and optimizer moments, all float32.

    Muon keeps one moment of its matrices, AdamW two of everything else.
    """
    counts = num_parameters(config)
    others = counts["total"] - counts["matrices"]
    return 4 * (2 * counts["total"] + counts["matrices"] + 2 * others)
