"""Matrix products with fixed weights: each weight is laid out once for the machine, not at every call."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# x (N, D) -> (N, E), its weight inside
Product = Callable[[Tensor], Tensor]

# rows computed at a time where results must not depend on how many there are: fp32 products gave a row other bits in
# batches of fewer than 16 rows (measured, CONTRACTS)
TILE = 16


def make_product(weight: Tensor, *, relu: bool = False, tiled: bool = False) -> Product:
    """The product x @ weight.T for weight (E, D), followed by max(0, .) where relu.

    tiled: rows are computed TILE at a time, so a row's bits do not depend on how many there are; their number must
    be a multiple of TILE. The weight may be copied; changes of it later are not seen.
    """
    product = _packed(weight, relu=relu) if can_pack(weight) else PlainProduct(weight, relu)
    return by_tiles(product) if tiled else product


def by_tiles(product: Product) -> Product:
    """The same function of rows, computed TILE at a time; their number must be a multiple of TILE."""

    def tiled(x: Tensor) -> Tensor:
        assert len(x) % TILE == 0, f"{len(x)} rows are not whole tiles of {TILE}"
        if len(x) == TILE:
            return product(x)
        return torch.cat([product(tile) for tile in x.split(TILE)])

    return tiled


def can_pack(weight: Tensor) -> bool:
    """Whether oneDNN can lay out this weight beforehand.

    Ops that torch's compiler uses and that are private: 2.11 and 2.13 have them, another version may not. With them
    a step of 110M weights in bfloat16 took 13 ms instead of 25 for one row, 24 instead of 39 for 16 (one core of an
    EPYC 9004, torch 2.13).
    """
    return (
        weight.device.type == "cpu"
        and weight.dtype in (torch.float32, torch.bfloat16)
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and (weight.dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )


def _packed(weight: Tensor, *, relu: bool) -> Product:
    # the number of rows it asks for made no difference from 1 to 64 (measured)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), TILE)
    follow = "relu" if relu else "none"
    run = torch.ops.mkldnn._linear_pointwise.default

    def product(x: Tensor) -> Tensor:
        found: Tensor = run(x, packed, None, follow, [], "")
        return found

    return product


@dataclass(frozen=True)
class PlainProduct:
    """The product by PyTorch, its weight (E, D) as it is."""

    weight: Tensor
    relu: bool

    def __call__(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.weight)
        return y.relu_() if self.relu else y
