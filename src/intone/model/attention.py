"""Causal attention over packed rows: who may see whom, and the ways to compute it."""

import contextlib
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

# sdpa: PyTorch's fused kernel; products: plain batched matrix products that a compiler fuses around; flex: a kernel
# that a compiler makes for the mask and that leaves out blocks of it, in compiled code on a GPU
Backend = Literal["sdpa", "products", "flex"]
BACKENDS: tuple[Backend, ...] = ("sdpa", "products", "flex")
FLEX_BLOCK = 128  # tokens; flex_attention's own default
# on Hopper (H200, 16 rows of 2,048 tokens, 6 heads of 128, bf16, forward and backward): cuDNN 0.89 ms, flash 1.59 ms
HOPPER = 9  # major number of its compute capability
HOPPER_ORDER = [
    SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH,
]


def packed_mask(documents: Tensor | None, positions: int, window: int, device: torch.device) -> Tensor | None:
    """Boolean mask (B, 1, T, T) or (1, 1, T, T), True where a query (row) sees a key (column).

    A token sees the window's latest tokens of its own document, itself included. documents (B, T) int32
    numbers the segments of each row, None: a row is one document. Returns None where plain causal
    attention is meant: one document and a window that covers the row.
    """
    if documents is None and window >= positions:
        return None
    place = torch.arange(positions, device=device)
    distance = place[:, None] - place[None, :]
    allowed = (distance >= 0) & (distance < window)
    if documents is None:
        return allowed[None, None]
    same = documents[:, :, None] == documents[:, None, :]
    return (allowed & same)[:, None]


def block_mask(documents: Tensor | None, positions: int, window: int, device: torch.device) -> "BlockMask | None":
    """packed_mask() for flex_attention: which blocks of 128 x 128 tokens are seen in part, and which as a whole.

    positions is a multiple of FLEX_BLOCK; documents must not fall along a row, as those of packed rows never do. A
    block that is listed and of which nothing is seen costs time and changes nothing. Call it in compiled code.
    """
    from torch.nn.attention.flex_attention import BlockMask

    if documents is None and window >= positions:
        return None
    assert positions % FLEX_BLOCK == 0, f"{positions} tokens are not whole blocks of {FLEX_BLOCK}"
    place = torch.arange(positions // FLEX_BLOCK, device=device)
    behind = (place[:, None] - place[None, :]) * FLEX_BLOCK  # from the beginning of a key block to that of a query's
    some = (behind >= 0) & (behind - (FLEX_BLOCK - 1) < window)
    whole = (behind > 0) & (behind + (FLEX_BLOCK - 1) < window)
    some, whole = some[None], whole[None]
    if documents is not None:
        first, last = documents[:, ::FLEX_BLOCK], documents[:, FLEX_BLOCK - 1 :: FLEX_BLOCK]
        some = some & (first[:, :, None] <= last[:, None, :])
        whole = whole & (last[:, :, None] == first[:, None, :])

    def sees(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        allowed = (query >= key) & (query - key < window)
        return allowed if documents is None else allowed & (documents[row, query] == documents[row, key])

    (num_some, some_places), (num_whole, whole_places) = (_listed(part[:, None]) for part in (some & ~whole, whole))
    return BlockMask.from_kv_blocks(
        num_some, some_places, num_whole, whole_places, BLOCK_SIZE=FLEX_BLOCK, mask_mod=sees
    )  # fmt: skip


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """blocks (B, 1, Q, K) bool -> for every query block how many are true (B, 1, Q), and their places first."""
    places = torch.argsort(blocks.int(), dim=-1, descending=True, stable=True)
    return blocks.sum(-1, dtype=torch.int32), places.int()


def fused_kernels(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Inside it PyTorch's fused attention takes the kernel that is fastest on this device; elsewhere its own order."""
    if device.type != "cuda" or torch.version.hip or torch.cuda.get_device_capability(device)[0] != HOPPER:
        return contextlib.nullcontext()
    return sdpa_kernel(HOPPER_ORDER, set_priority=True)


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: "Tensor | BlockMask | None", *, backend: Backend = "sdpa"
) -> Tensor:
    """q (B, H, T, C), k and v (B, K, S, C) -> (B, H, T, C); mask broadcasts to (B, H, T, S), None: causal, T == S.

    K divides H: each key head serves H / K query heads. Softmax in float32 or better.
    A query that sees nothing gives undefined values: callers must let every query see itself.
    A mask of blocks (block_mask) goes to flex_attention, whatever the backend.
    """
    if mask is not None and not isinstance(mask, Tensor):
        from torch.nn.attention.flex_attention import flex_attention

        return flex_attention(q, k, v, block_mask=mask, enable_gqa=q.shape[1] != k.shape[1])
    if q.shape[1] != k.shape[1]:
        repeat = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(repeat, dim=1), v.repeat_interleave(repeat, dim=1)
    if backend != "products":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
    scores = (q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5
    if mask is None:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    scores = scores.to(torch.promote_types(q.dtype, torch.float32)).masked_fill(~mask, float("-inf"))
    return scores.softmax(-1).to(v.dtype) @ v


def rotary_tables(
    positions: int, head_width: int, base: float, device: torch.device, *, as_bf16: bool = False
) -> tuple[Tensor, Tensor]:
    """Cosines and sines (positions, C / 2) float32 for rotary positions (Su et al. 2021, RoFormer).

    as_bf16 rounds them to bfloat16. The angles are then float32, as in the code that trained with such tables:
    near position 2,000 one entry in 300 of the exact ones would round to the bfloat16 beside it, up to 0.8 % away.
    """
    dtype = torch.float32 if as_bf16 else torch.float64
    channel = torch.arange(0, head_width, 2, dtype=dtype, device=device)
    frequency = 1.0 / base ** (channel / head_width) if as_bf16 else base ** -(channel / head_width)
    angle = torch.outer(torch.arange(positions, dtype=dtype, device=device), frequency)
    cos, sin = angle.cos(), angle.sin()
    return (cos.bfloat16().float(), sin.bfloat16().float()) if as_bf16 else (cos.float(), sin.float())


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (B, T, H, C) with its halves rotated by minus the position's angle; cos, sin broadcast to (B, T, 1, C / 2).

    The sign is nanochat's (and of the checkpoints written by it); only differences of angles matter.
    """
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    return torch.cat((a * cos + b * sin, b * cos - a * sin), dim=-1)
