"""Products of a few rows with fixed weights, laid out once in bfloat16 or 8 bits: what generation on a CPU waits for"""

from typing import Literal

import torch
from torch import Tensor

from intone.model.native.ops import call
from intone.model.native.shapes import LANES

Bits = Literal[8, 16]


class PackedLinear:
    """x (N, D) bfloat16 -> x @ weight.T (N, E), optionally max(0, .) of it.

    bits 16: weights in bfloat16. bits 8: one scale per output channel and 8-bit weights, half the bytes; x is then
    taken in 16 bits of its row's reach, so that only the weights lose (0.7 % of a random matrix's products, root mean
    square). A row's bits do not depend on the number of rows. Later changes of weight (E, D) are not seen. D is a
    multiple of 16.
    """

    def __init__(self, weight: Tensor, *, bits: Bits = 16) -> None:
        self.num_out, self.num_in = weight.shape
        assert self.num_in % LANES == 0, f"{self.num_in} channels are not a multiple of {LANES}"
        self.bits = bits
        blocks = -(-self.num_out // LANES)
        if bits == 16:
            narrow = weight.detach().to(torch.bfloat16).contiguous()
            self._packed = torch.empty((blocks, self.num_in // 2, LANES), dtype=torch.int32)
            call("intone_pack_linear", narrow, self._packed, self.num_out, self.num_in, variant="linear")
        else:
            wide = weight.detach().float().contiguous()
            self._packed = torch.empty((blocks, self.num_in // 4, LANES, 4), dtype=torch.int8)
            self._scale = torch.empty(blocks * LANES)
            self._sum = torch.empty(blocks * LANES, dtype=torch.int32)
            sizes = (self.num_out, self.num_in)
            call("intone_pack_narrow", wide, self._packed, self._scale, self._sum, *sizes, variant="linear")

    @property
    def num_bytes(self) -> int:
        """What one product reads of weights, whatever the number of rows up to about 8."""
        scales = 0 if self.bits == 16 else 8 * len(self._scale)
        return self._packed.numel() * self._packed.element_size() + scales

    def __call__(self, x: Tensor, *, relu: bool = False, wide: bool = False) -> Tensor:
        """wide: the result in float32 instead of bfloat16."""
        assert x.dtype == torch.bfloat16 and x.shape[1:] == (self.num_in,), f"{x.dtype} {tuple(x.shape)}"
        x = x.contiguous()
        out = torch.empty(len(x), self.num_out, dtype=torch.float32 if wide else torch.bfloat16)
        where = (out, None) if wide else (None, out)
        sizes = (len(x), self.num_out, self.num_in, int(relu))
        if self.bits == 16:
            call("intone_linear", x, self._packed, *where, *sizes, variant="linear")
        else:
            scratch = torch.empty(2 * x.numel(), dtype=torch.uint8)
            stored = (self._packed, self._scale, self._sum)
            call("intone_linear_narrow", x, *stored, scratch, *where, *sizes, variant="linear")
        return out
