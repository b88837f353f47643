"""Which models our CPU kernels can compute, from their shape alone and without torch"""

from intone.config import ModelConfig

LANES = 16  # values in a register: rows of activations are taken in such pieces


def shape_obstacle(config: ModelConfig) -> str | None:
    """Why a model of this shape cannot run on our kernels; None: it can."""
    for name, value in (("head width", config.head_width), ("width", config.width)):
        if value % LANES:
            return f"our kernels need a {name} that is a multiple of {LANES}, this model has {value}"
    return None
