"""Steps of generation on our CPU kernels: matrices packed for reading, and the call that computes a whole step"""

import ctypes
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from intone.config import ModelConfig
from intone.model.native import build
from intone.model.native.arena import LINE, Arena

StoredAs = Literal["fp32", "bf16", "int8"]

COLUMNS = 16  # of a block of weights; generate_products.h
SMEAR_CHANNELS = 24
WIDEST_HEAD = 256
# Kind of generate_products.h: what our own products read, and what those of linear.cpp do
KIND: dict[StoredAs, int] = {"fp32": 0, "bf16": 1, "int8": 2}
KIND_OF_512: dict[StoredAs, int] = {"bf16": 3, "int8": 4}
DTYPE: dict[StoredAs, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}

_WHOLE, _REAL, _POINTER = ctypes.c_int64, ctypes.c_float, ctypes.c_void_p


class Weight(ctypes.Structure):
    """struct Weight of generate_products.h."""

    _fields_ = [
        ("kind", _WHOLE), ("columns", _WHOLE), ("width", _WHOLE), ("packed", _POINTER), ("scale", _POINTER),
        ("sum", _POINTER), ("product", _POINTER),
    ]  # fmt: skip


class StepBlock(ctypes.Structure):
    """struct Block of generate.cpp."""

    _fields_ = [
        ("qkv", Weight), ("out", Weight), ("up", Weight), ("down", Weight), ("group", _WHOLE), ("reach", _WHOLE),
        ("value", _WHOLE), ("gate", _POINTER), ("has_scale", _WHOLE), ("scale", _REAL), ("embedding_scale", _REAL),
        ("stored", _POINTER),
    ]  # fmt: skip


class StepModel(ctypes.Structure):
    """struct Model of generate.cpp."""

    _fields_ = [
        *((name, _WHOLE) for name in ("depth", "width", "heads", "kv_heads", "head_width", "num_values", "middle")),
        ("is_half", _WHOLE),
        *((name, _REAL) for name in ("eps", "scale", "softcap", "smear_scale", "backout")),
        ("has_smear", _WHOLE), ("has_backout", _WHOLE),
        *((name, _POINTER) for name in ("embedding", "values", "smear_gate", "cos", "sin", "blocks")),
        ("head", Weight),
    ]  # fmt: skip


class StepBatch(ctypes.Structure):
    """struct Batch of generate.cpp."""

    _fields_ = [
        ("count", _WHOLE), ("num_wanted", _WHOLE), ("num_texts", _WHOLE),
        *((name, _POINTER) for name in ("ids", "previous", "positions", "wanted", "text", "pages", "scratch")),
    ]  # fmt: skip


class StepBurst(ctypes.Structure):
    """struct Burst of generate.cpp."""

    _fields_ = [
        *((name, _WHOLE) for name in ("steps", "num_stops", "is_summed")),
        *((name, _POINTER) for name in ("drawing", "streams", "stops", "left", "found")),
    ]  # fmt: skip


# struct Drawing of generate_draw.h, one per row: see sample.Settings; top_k at most the columns
DRAWING = np.dtype(
    [("temperature", np.float64), ("top_p", np.float64), ("min_p", np.float64), ("uniform", np.float64),
     ("top_k", np.int64)]
)  # fmt: skip
# struct Found of generate.cpp, one per step and row
FOUND = np.dtype([("id", np.int64), ("chosen", np.float32), ("largest", np.float32), ("total", np.float64)])


def step_obstacle(config: ModelConfig) -> str | None:
    """Why a model of this shape cannot generate on our kernels; None: it can."""
    for name, value in (("head width", config.head_width), ("width", config.width)):
        if value % COLUMNS:
            return f"our kernels need a {name} that is a multiple of {COLUMNS}, this model has {value}"
    if config.head_width > WIDEST_HEAD or config.num_heads // config.num_kv_heads > COLUMNS:
        return "our kernels have no room for so wide a head, or for so many heads to a key"
    if config.width < SMEAR_CHANNELS:
        return f"our kernels need a width of at least {SMEAR_CHANNELS}, this model has {config.width}"
    return None


def packed_bytes(num_out: int, width: int, stored_as: StoredAs) -> int:
    """What the numbers of a packed weight (num_out, width) take of an arena."""
    size = -(-num_out // COLUMNS) * COLUMNS * width * DTYPE[stored_as].itemsize
    return size + -size % LINE


class Packed:
    """A weight (E, D) float32 laid out for reading: x (N, D) -> x @ weight.T (N, columns). D is a multiple of 16.

    Later changes of the weight are not seen. On processors with AVX-512 for bfloat16 the products of linear.cpp are
    used where there are some; they round x to bfloat16.
    """

    def __init__(
        self, weight: Tensor | Sequence[Tensor], stored_as: StoredAs, *, columns: int | None = None, wide: bool = True,
        arena: Arena | None = None,
    ) -> None:  # fmt: skip
        """columns: how many of the E outputs are wanted; None: all. wide False: never the products of linear.cpp.
        arena: where the numbers are kept; None: in memory of their own.

        Several weights are one below the other; all but the last have a multiple of 16 outputs.
        """
        parts = [weight] if isinstance(weight, Tensor) else list(weight)
        num_out, width = sum(len(part) for part in parts), parts[0].shape[1]
        assert width % COLUMNS == 0, f"{width} channels are not a multiple of {COLUMNS}"
        assert all(len(part) % COLUMNS == 0 for part in parts[:-1]), "a block of columns would be of two weights"
        uses_512 = wide and stored_as in KIND_OF_512 and build.obstacle("linear") is None
        blocks = -(-num_out // COLUMNS)
        self._scale = torch.empty(blocks * COLUMNS if stored_as == "int8" else 0)
        self._sum = torch.empty(blocks * COLUMNS if stored_as == "int8" and uses_512 else 0, dtype=torch.int32)
        arena = arena or Arena(packed_bytes(num_out, width, stored_as))
        self._packed = arena.give(blocks * COLUMNS * width, DTYPE[stored_as])
        first = 0
        for part in parts:
            self._pack(part, stored_as, first, uses_512=uses_512)
            first += len(part)
        kind, product = KIND[stored_as], None
        if uses_512:
            kind = KIND_OF_512[stored_as]
            name = "intone_linear" if stored_as == "bf16" else "intone_linear_narrow"
            product = ctypes.cast(getattr(build.library("linear"), name), _POINTER)
        packed, scale, sums = (_POINTER(part.data_ptr()) for part in (self._packed, self._scale, self._sum))
        self.weight = Weight(kind, columns or num_out, width, packed, scale, sums, product)
        self.num_bytes = self._packed.nbytes + 4 * len(self._scale) + 4 * len(self._sum)

    def _pack(self, weight: Tensor, stored_as: StoredAs, first: int, *, uses_512: bool) -> None:
        """Lays out one weight as the outputs from first on."""
        num_out, width = weight.shape
        weight = weight.float().contiguous()
        packed = _POINTER(self._packed.data_ptr() + first * width * self._packed.element_size())
        scale, sums = (_POINTER(part.data_ptr() + 4 * first) for part in (self._scale, self._sum))
        library = build.library("linear" if uses_512 and stored_as == "int8" else "generate")
        source, sizes = _POINTER(weight.data_ptr()), (_WHOLE(num_out), _WHOLE(width), torch.get_num_threads())
        if stored_as == "fp32":
            library.intone_pack_float(source, packed, *sizes)
        elif stored_as == "bf16":
            library.intone_pack_half(source, packed, *sizes)
        elif uses_512:
            library.intone_pack_narrow(source, packed, scale, sums, *sizes)
        else:
            library.intone_pack_byte(source, packed, scale, *sizes)

    def __call__(self, x: Tensor, *, squared_relu: bool = False) -> Tensor:
        """x (N, D) float32 -> (N, columns) float32, squared where positive and 0 elsewhere if asked."""
        assert x.dtype == torch.float32 and x.shape[1:] == (self.weight.width,), f"{x.dtype} {tuple(x.shape)}"
        x = x.contiguous()
        out = torch.empty(len(x), self.weight.columns)
        build.library("generate").intone_packed_product(
            ctypes.byref(self.weight), _POINTER(x.data_ptr()), _POINTER(out.data_ptr()), _WHOLE(len(x)),
            _WHOLE(int(squared_relu)), torch.get_num_threads(),
        )  # fmt: skip
        return out


def summary(logits: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of logits (B, V) float32, finite or NaN: (B,) the first of the largest; (B,) its value, NaN where the row has
    one; and (B,) float64 the sum of exp(logit - largest). A row's numbers do not depend on the others."""
    count, columns = logits.shape
    logits = logits.contiguous()
    best, largest, total = np.empty(count, dtype=np.int64), np.empty(count, dtype=np.float32), np.empty(count)
    build.library("generate").intone_summary(
        _POINTER(logits.data_ptr()), _WHOLE(count), _WHOLE(columns),
        *(_POINTER(part.__array_interface__["data"][0]) for part in (best, largest, total)), torch.get_num_threads(),
    )  # fmt: skip
    return best, largest, total


def draw(logits: Tensor, drawing: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What drawing (B,) DRAWING takes from logits (B, V) float32, which may hold -inf and NaN: ids (B,), and the
    largest of each row (B,), NaN where it has one. Ids of rows without a finite largest are arbitrary.

    The rules are those of engine/sample.py's choose(), whose exponentials differ in their last bits.
    """
    count, columns = logits.shape
    logits = logits.contiguous()
    ids, largest = np.empty(count, dtype=np.int64), np.empty(count, dtype=np.float32)
    build.library("generate").intone_draw(
        _POINTER(logits.data_ptr()), _WHOLE(count), _WHOLE(columns), place_of(drawing), place_of(ids),
        place_of(largest), torch.get_num_threads(),
    )  # fmt: skip
    return ids, largest


class WorkSpace:
    """Buffers of steps that follow each other, for one thread at a time; free() once."""

    def __init__(self) -> None:
        make = build.library("generate").intone_new_work
        make.restype = _POINTER
        self.pointer = _POINTER(make())

    def free(self) -> None:
        build.library("generate").intone_free_work(self.pointer)


def work_space() -> WorkSpace:
    return WorkSpace()


def address(tensor: Tensor) -> int:
    """Where a contiguous tensor's numbers are; whoever keeps the address keeps the tensor."""
    assert tensor.is_contiguous(), "kernels read what lies side by side"
    return tensor.data_ptr()


def place_of(array: np.ndarray) -> ctypes.c_void_p:
    """Where an array's numbers are; whoever keeps the address keeps the array."""
    return _POINTER(array.__array_interface__["data"][0])


def burst(
    model: StepModel, batch: StepBatch, asked: StepBurst, work: WorkSpace, logits: Tensor, *, threads: int
) -> int:
    """Up to asked.steps steps of texts with one new token each -> how many were made, the last one with an end in it.

    Tokens are drawn as draw() does, with each stream's uniform of its position. logits (B, V): room, and afterwards
    those of the last step.
    """
    made: int = build.library("generate").intone_burst(
        ctypes.byref(model), ctypes.byref(batch), ctypes.byref(asked), work.pointer, _POINTER(logits.data_ptr()),
        threads,
    )  # fmt: skip
    return made


def step(model: StepModel, batch: StepBatch, work: WorkSpace, logits: Tensor, *, threads: int) -> None:
    """Computes a step into logits (num_wanted, V) float32; keys and values are written where the batch says."""
    build.library("generate").intone_step(
        ctypes.byref(model), ctypes.byref(batch), work.pointer, _POINTER(logits.data_ptr()), threads
    )
