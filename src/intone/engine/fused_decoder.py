"""A GPTDecoder's step on Triton kernels: as few launches as a token's dependencies leave, for captured steps"""

import importlib.util
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from intone.engine.decoder import Decoder, GPTDecoder, Matrices
from intone.engine.kv import PageStore
from intone.engine.pages import PAGE
from intone.model.gpt import SMEAR_CHANNELS

StepKernels = Literal["auto", "torch", "triton"]
Flags = tuple[int, int, int]  # of a result: the row runs, its logits are finite, its token is decided
Ending = Literal["store", "add", "square", "cap"]

HEAD_WIDTHS = (32, 64, 128, 256)  # whole lines of memory, and few enough registers
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
# more rows are PyTorch's products: a tile of the tensor cores has 16, and from there on they are bound by other things
FEW_ROWS = 16
MOST_SPLITS = 32  # guess: one page each at 2,048 tokens
# programs per multiprocessor that hide each other's waits (guess), and how many there are of these where nobody can ask
PROGRAMS_PER_UNIT = 2
UNITS_UNKNOWN = 4
WARP_READS = 256  # numbers of 2 bytes that 32 threads read at once, 16 bytes each
ENDING_BLOCK = 1024
LOGITS_BLOCK = 8192
OVERLAPS = True  # four blocks of depth 12 and the head, one row on an H200: 120 us, overlapping 93, the same bits (LOG)
EVERYTHING = 1 << 30  # a reach beyond every context


def fused_obstacle(decoder: Decoder, device: torch.device) -> str | None:
    """Why these kernels cannot compute a decoder's steps on a device; None: they can.

    Triton's interpreter (TRITON_INTERPRET=1) runs them on a CPU, for tests: very slowly.
    """
    if not isinstance(decoder, GPTDecoder):
        return "they are made for a GPT that PyTorch computes"
    if decoder.deterministic:
        return "their numbers depend on how many rows there are"
    width = decoder.config.head_width
    if width not in HEAD_WIDTHS:
        return f"heads are {width} wide, they take {', '.join(map(str, HEAD_WIDTHS))}"
    if decoder.dtype not in DTYPES:
        return f"they do not compute in {str(decoder.dtype).removeprefix('torch.')}"
    if device.type != "cuda" and not (device.type == "cpu" and is_interpreted()):
        return f"they are for NVIDIA's GPUs, not for {device.type}"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    return _failure(device)


def _failure(device: torch.device) -> str | None:
    """Why no kernel can be built and launched here, None: one was."""
    try:
        from intone.engine import step_kernels

        x = torch.zeros((1, 16), device=device)
        with torch.cuda.device_of(x):
            step_kernels.ending_kernel[(1, 1)](x, x, 1.0, 16, 16, ENDING="square", BLOCK=16, OVERLAPS=False)
    except Exception as error:  # whatever the driver, the compiler of launchers or triton itself may raise
        return f"triton does not run here: {error}"
    return None


def can_overlap(device: torch.device) -> bool:
    """Whether a kernel may begin before the one before it has ended: NVIDIA's GPUs from compute capability 9.0 on."""
    return device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device) >= (9, 0)


def is_interpreted() -> bool:
    """Whether Triton's interpreter runs kernels, on a CPU; Triton asks once, when it is imported."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@dataclass(frozen=True)
class StepRows:
    """The state of a step's rows on the device, all (B,) int64: what is fed, the token before it (-1: none), its
    position, whether the row runs; and per group of blocks its pages (B, pages)."""

    token: Tensor
    before: Tensor
    position: Tensor
    running: Tensor
    tables: Sequence[Tensor]


@dataclass(frozen=True)
class Sum:
    """Where a product's numbers are added: stream becomes scale[0] (stream + y) + scale[1] base, all (B, D) float32.

    keep: gets stream + y, None: nothing does.
    """

    stream: Tensor
    base: Tensor
    scale: tuple[float, float] = (1.0, 0.0)
    keep: Tensor | None = None


class FusedDecoder:
    """The logits of GPTDecoder with FixedAttention, up to rounding, in five kernels a block for up to FEW_ROWS rows.

    Reads the decoder's own weights, where they are at the call. The stream is read in the weights' dtype, so where that
    is float16 it must stay below 65,504: beyond, logits are not finite.
    """

    def __init__(
        self, decoder: GPTDecoder, store: PageStore, *, trash: Sequence[int], scale: float, units: int | None = None,
        overlaps: bool | None = None,
    ) -> None:  # fmt: skip
        """trash: per group the page that rows write to that do not run. units: multiprocessors; None: the device's.

        overlaps: a kernel begins while the one before it ends, and reads weights already; for compute capability 9.0.
        None: OVERLAPS where that is had.
        """
        from intone.engine import step_kernels

        self._kernels: Any = step_kernels
        self._decoder, self._store, self._trash, self._scale = decoder, store, tuple(trash), scale
        if units is None:
            is_cuda = store.device.type == "cuda"
            units = torch.cuda.get_device_properties(store.device).multi_processor_count if is_cuda else UNITS_UNKNOWN
        self._units = units
        self._options = launch_options(OVERLAPS and can_overlap(store.device) if overlaps is None else overlaps)
        # of rows and heads, for as many as are ever split
        self._arrived = torch.zeros(PROGRAMS_PER_UNIT * units, dtype=torch.int32, device=store.device)

    def logits(self, rows: StepRows, *, context: int) -> Tensor:
        """The logits (B, V) float32 of every row's next token; keys and values go to the rows' pages.

        context: tokens seen by any row at most; how the work is split depends on it.
        """
        config, matrices = self._decoder.config, self._decoder.matrices()
        count, width, dtype = len(rows.token), config.width, self._decoder.dtype
        first = torch.empty((count, width), dtype=torch.float32, device=rows.token.device)
        stream, middle = torch.empty_like(first), torch.empty_like(first)
        copy = torch.empty_like(first, dtype=dtype)  # of the stream, as products read it
        scales = [block.scale or (1.0, 0.0) for block in matrices.blocks]
        gate, share = matrices.smear or (first, first)
        self._kernels.embed_kernel[(count,)](
            rows.token, rows.before, matrices.embedding, gate, share, first, stream, copy, *scales[0], config.norm_eps,
            WIDTH=width, BLOCK=power_of_two(width), SMEAR=SMEAR_CHANNELS if matrices.smear else 0,
            NORMED=count > FEW_ROWS, **self._options,
        )  # fmt: skip
        # behind each block: the next one's share of the first stream, and behind the last the middle's is taken out
        sums = [Sum(stream, first, scale) for scale in (*scales[1:], (1.0, 0.0))]
        if matrices.backout is not None:
            sums[-1] = Sum(stream, middle, (1.0, -matrices.backout))
            place = config.depth // 2
            if place == config.depth - 1:  # a middle that is the end takes its share from itself
                sums[-1] = Sum(stream, first, (1.0 - matrices.backout, 0.0))
            else:
                sums[place] = replace(sums[place], keep=middle)
        for index, (block, after) in enumerate(zip(matrices.blocks, sums, strict=True)):
            found = self._product(copy, block.qkv)
            y = self._attended(index, found, rows, matrices, context)
            self._add(copy, y, block.out, Sum(stream, first))
            self._add(copy, self._product(copy, block.up, "square"), block.down, after)
        logits = torch.empty((count, config.vocab_size), dtype=torch.float32, device=first.device)
        return self._product(copy, matrices.head, "cap", out=logits)

    def take_likeliest(self, logits: Tensor, state: Tensor, stops: Tensor, out: Tensor, flags: Flags) -> None:
        """Every row takes its likeliest token, and state and out become what FixedSteps makes of it; B rows of each.

        logits (B, V) float32, contiguous. state (7, rows) int64, stops (rows, most) int64, out (3, rows) float64.
        """
        assert state.stride(0) == out.stride(0), "both are rows of one length"
        self._kernels.likeliest_kernel[(len(logits),)](
            logits, state, stops, out, logits.shape[1], state.stride(0), *flags, MOST_STOPS=stops.shape[1],
            BLOCK=LOGITS_BLOCK, num_warps=16, **self._options,
        )  # fmt: skip

    def _product(self, x: Tensor, weight: Tensor, ending: Ending = "store", *, out: Tensor | None = None) -> Tensor:
        """ending(normed x (B, K) @ weight (N, K)^T) -> out (B, N or fewer): the first of its columns."""
        config = self._decoder.config
        if len(x) <= FEW_ROWS:
            out = x.new_empty((len(x), len(weight))) if out is None else out
            small_product(
                x, weight, out, ending=ending, options=self._options, norm_eps=config.norm_eps, cap=config.softcap
            )
            return out
        y = F.linear(x, weight)
        if ending == "store":
            return y
        out = y if out is None else out
        columns = out.shape[1]
        self._kernels.ending_kernel[(len(y), -(-columns // ENDING_BLOCK))](
            y, out, config.softcap, y.shape[1], columns, ENDING=ending, BLOCK=ENDING_BLOCK,
            **self._options,
        )  # fmt: skip
        return out

    def _add(self, copy: Tensor, x: Tensor, weight: Tensor, after: Sum) -> None:
        """Adds x (B, K) @ weight (D, K)^T as after says, and renews the stream's copy."""
        eps = self._decoder.config.norm_eps
        if len(x) <= FEW_ROWS:
            small_product(x, weight, copy, ending="add", options=self._options, after=after)
            return
        width = copy.shape[1]
        keep = after.stream if after.keep is None else after.keep
        self._kernels.added_kernel[(len(x),)](
            F.linear(x, weight), after.stream, after.base, keep, copy, *after.scale, eps,
            WIDTH=width, BLOCK=power_of_two(width), KEEPS=after.keep is not None,
            **self._options,
        )  # fmt: skip

    def _attended(self, index: int, found: Tensor, rows: StepRows, matrices: Matrices, context: int) -> Tensor:
        """One block's attention (B, H * C) of queries, keys, values and gates (B, E)."""
        config, store = self._decoder.config, self._store
        heads, width, count = config.num_heads, config.head_width, len(found)
        group, value = store.group_of[index], matrices.blocks[index].value
        reach, table = store.groups[group].reach, rows.tables[group]
        most_pages = -(-context // PAGE) if reach is None else min(-(-context // PAGE), reach // PAGE + 2)
        splits = self._splits(count * heads, most_pages)
        assert splits == 1 or count * heads <= len(self._arrived), "more programs than are split"
        out = found.new_empty((count, heads * width))
        parts = bounds = out
        if splits > 1:
            parts = found.new_empty((count, heads, splits, width), dtype=torch.float32)
            bounds = parts.new_empty((2, count, heads, splits))
        values = found if value is None or matrices.values is None else matrices.values[:, value]
        self._kernels.attention_kernel[(count, heads, splits)](
            found, matrices.cos, matrices.sin, rows.position, rows.running, table, store.blocks[index], values,
            rows.token, out, parts, bounds, self._arrived, found.shape[1], table.stride(0), values.stride(0),
            EVERYTHING if reach is None else reach, self._trash[group], self._scale, config.norm_eps,
            HEADS=heads, KV_HEADS=config.num_kv_heads, WIDTH=width, PAGE=PAGE, SPLITS=splits, GATED=value is not None,
            num_warps=max(4, width // 16), **self._options,
        )  # fmt: skip
        return out

    def _splits(self, num_programs: int, most_pages: int) -> int:
        """Into how many parts what a row sees is cut, a power of two: so that all multiprocessors have work."""
        return power_of_two(min(-(-PROGRAMS_PER_UNIT * self._units // num_programs), most_pages, MOST_SPLITS))


@dataclass(frozen=True)
class Blocks:
    """How a product is cut: columns of a program, what it reads of each at a time, its warps and turns in flight."""

    columns: int
    depth: int
    num_warps: int
    num_stages: int = 1


def blocks_of(num_rows: int, columns: int, depth: int) -> Blocks:
    """The cut of a product of weights (columns, depth) by rule: guesses, nothing was measured.

    One row: warps lie side by side along the depth, each thread reads 16 bytes of every column: so the row's own
    numbers need no exchange between threads, and all weights of a depth of few turns are on their way at once.
    More rows: the fewest columns that the tensor cores take where there are few, so that every multiprocessor has some.
    """
    if num_rows > 1:
        wide = columns >= 8192
        own = 64 if wide else 16 if columns >= 2048 else 8
        return Blocks(own, min(128 if wide else 256, max(16, power_of_two(depth))), 4, 4)
    own = 8 if columns >= 8192 else 4 if columns >= 2048 else 2
    turn = next((turn for turn in (2048, 1024, 512) if depth % turn == 0), min(1024, power_of_two(depth)))
    return Blocks(own, turn, max(1, turn // WARP_READS))


def small_product(
    x: Tensor, weight: Tensor, out: Tensor, *, ending: Ending, options: Mapping[str, bool],
    norm_eps: float | None = None, cap: float = 1.0, after: Sum | None = None, blocks: Blocks | None = None,
) -> None:  # fmt: skip
    """out (B, N) = ending(x (B, K) @ weight (N or more, K)^T), B at most FEW_ROWS, x normed where there is norm_eps.

    options: of launch_options(). ending add takes after, cap its cap. blocks None: by rule.
    """
    from intone.engine import step_kernels

    num_rows, depth = x.shape
    columns = out.shape[1]
    cut = blocks_of(num_rows, columns, depth) if blocks is None else blocks
    keeps = after is not None and after.keep is not None
    # none of these is read but for add
    stream, base, scale = (after.stream, after.base, after.scale) if after is not None else (x, x, (1.0, 0.0))
    keep = after.keep if after is not None and after.keep is not None else x
    given = (x, weight, out, stream, base, keep, *scale, norm_eps or 0.0, cap, columns)
    cuts: dict[str, Any] = dict(
        K=depth, NORM=norm_eps is not None, ENDING=ending, KEEPS=keeps, BLOCK_N=cut.columns, BLOCK_K=cut.depth,
        num_warps=cut.num_warps, num_stages=cut.num_stages, **options,
    )  # fmt: skip
    grid = (-(-columns // cut.columns),)
    if num_rows == 1:
        step_kernels.one_row_kernel[grid](*given, **cuts)
        return
    # tensor cores multiply float32 as TF32, and the interpreter computes products of bfloat16 wrongly
    widens = weight.dtype == torch.float32 or is_interpreted()
    slices = min(cut.num_warps, max(1, cut.depth // 16))  # 16: the least depth that the tensor cores take
    step_kernels.few_rows_kernel[grid](*given, num_rows, **cuts, WIDENS=widens, SLICES=slices)


def launch_options(overlaps: bool) -> dict[str, bool]:
    """What every launch of a step is given."""
    return {"OVERLAPS": True, "launch_pdl": True} if overlaps else {"OVERLAPS": False}


def power_of_two(count: int) -> int:
    """The smallest that is not below count."""
    return 1 << (count - 1).bit_length()
