"""The model as generation runs it on our CPU kernels: one call computes a whole step, from ids to logits.

The same function as engine/decoder.py, with float32 activations whatever the weights are stored in.
"""

import ctypes
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from intone.config import ModelConfig
from intone.engine.attend import PagedAttention, Piece
from intone.engine.decoder import Batch, check_weights, weight_shapes
from intone.engine.kv import PageStore
from intone.engine.pace import Pace
from intone.engine.pages import PAGE
from intone.engine.sample import Settings
from intone.model.attention import rotary_tables
from intone.model.gpt import GPT
from intone.model.native import build
from intone.model.native.arena import Arena
from intone.model.native.steps import (
    DRAWING,
    FOUND,
    Packed,
    StepBatch,
    StepBlock,
    StepBurst,
    StepModel,
    StoredAs,
    WorkSpace,
    address,
    burst,
    packed_bytes,
    place_of,
    step,
    step_obstacle,
    work_space,
)

Weights = Literal["auto", "fp32", "bf16", "int8"]
STORED_AS: dict[torch.dtype, StoredAs] = {torch.float32: "fp32", torch.bfloat16: "bf16"}


def native_obstacle(config: ModelConfig, *, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why a model cannot generate on our kernels here; None: nothing is known to be in the way."""
    if device.type != "cpu":
        return f"our kernels are for CPUs, this runs on {device.type}"
    if dtype not in STORED_AS:
        return f"our kernels keep numbers in float32 or bfloat16, this runs in {str(dtype).removeprefix('torch.')}"
    return step_obstacle(config) or build.obstacle("generate")


class NativeDecoder:
    """A GPT's weights, packed once. A token's numbers never depend on how many others are computed with it.

    dtype: of keys, values and embedding tables. weights: how matrices are stored, auto: in dtype. int8 keeps one scale
    per output channel; activations are then taken in 16 bits of their row's reach.
    """

    def __init__(
        self, config: ModelConfig, weights: Mapping[str, Tensor], *, dtype: torch.dtype, stored_as: Weights = "auto",
        rotary: tuple[Tensor, Tensor] | None = None,
    ) -> None:  # fmt: skip
        self.config = config
        self.dtype = dtype
        self._shapes = weight_shapes(config)
        if rotary is None:
            rotary = rotary_tables(config.context, config.head_width, config.rope_base, torch.device("cpu"))
        # rounded as in training, then widened: the rounded angles are part of the function that was learned
        self._cos, self._sin = (table.detach().to(dtype).float().contiguous() for table in rotary)
        self._work: WorkSpace | None = None
        # apart: a token of a growing text reads keys of its own, so it takes longer than one of a prompt among others
        self._pace, self._burst_pace = Pace(torch.get_num_threads()), Pace(torch.get_num_threads())
        self._stored: weakref.ReferenceType[PageStore] | None = None
        self._scored = torch.empty(0, dtype=dtype)  # keys and values of texts that are only scored
        self._row_logits = torch.empty(0, config.vocab_size)  # of bursts: fresh memory at every step costs its pages
        self.load(weights, stored_as=stored_as)

    @classmethod
    def of(cls, model: GPT, *, dtype: torch.dtype, stored_as: Weights = "auto") -> "NativeDecoder":
        """A snapshot of a model's weights as they are now."""
        rotary = (model.cos, model.sin)
        return cls(model.config, model.state_dict(), dtype=dtype, stored_as=stored_as, rotary=rotary)

    @property
    def num_weight_bytes(self) -> int:
        """What one step reads of matrices, whatever its rows."""
        return sum(part.num_bytes for part in self._packed)

    @torch.no_grad()
    def load(self, weights: Mapping[str, Tensor], *, stored_as: Weights | None = None) -> None:
        """Packs new weights, stored as before or otherwise. Raises RuntimeError where names or shapes differ, with
        nothing changed."""
        check_weights(self._shapes, weights)
        if stored_as is not None:
            self.stored_as: StoredAs = STORED_AS[self.dtype] if stored_as == "auto" else stored_as
        config = self.config

        def wide(name: str) -> Tensor:
            return weights[name].detach().to("cpu", torch.float32)

        gated = [block for block in range(config.depth) if config.has_value_embedding(block)]
        # one row per token with the values of all blocks: they lie side by side
        tables = [weights[f"value_embeddings.{block}.weight"].detach() for block in gated]
        self._values = None
        if tables:
            self._values = torch.empty((len(tables[0]), len(tables), tables[0].shape[1]), dtype=self.dtype)
            for place, table in enumerate(tables):
                self._values[:, place].copy_(table)
        # a copy even where nothing changes: a training may go on in the originals
        self._embedding = weights["embedding.weight"].detach().to("cpu", self.dtype, copy=True)
        self._small = {
            name: wide(name).clone(memory_format=torch.contiguous_format)
            for name in weights
            if name.endswith("_gate.weight")
        }
        # from here on the kernels are needed: until now they may still have been in the making
        if self._work is None:
            self._work = work_space()
            weakref.finalize(self, self._work.free)
        self._packed: list[Packed] = []
        arena = Arena(self._num_packed_bytes())

        def pack(*names: str, columns: int | None = None) -> Packed:
            packed = Packed([wide(name) for name in names], self.stored_as, columns=columns, arena=arena)
            self._packed.append(packed)
            return packed

        self._blocks = (StepBlock * config.depth)()
        for index in range(config.depth):
            self._fill_block(self._blocks[index], index, pack, weights, gated)
        head = pack("head.weight", columns=config.vocab_size)
        self._model = self._described(head, weights)
        self._stored = None

    def logits(self, batch: Batch) -> Tensor:
        """The logits (M, V) float32 of the wanted places; keys and values go to the pages of batch.attention."""
        attention = batch.attention
        assert isinstance(attention, PagedAttention), "our kernels read pages"
        count, num_wanted = len(batch.ids), len(batch.wanted)
        out = torch.empty(num_wanted, self.config.vocab_size)
        self._point_at(attention.store)
        texts = _texts(attention.pieces)
        if texts[0].table is not None:
            addresses = [entry.table.page_addresses() for entry in texts if entry.table is not None]
            pages = [found[group] for group in range(len(attention.store.groups)) for found in addresses]
            scratch = None
            kept: Sequence[np.ndarray] = ()
        else:
            kept, scratch = self._scratch(texts)
            pages = [part.__array_interface__["data"][0] for part in kept] * len(attention.store.groups)
        numbers = np.repeat(np.arange(len(texts), dtype=np.int32), [entry.count for entry in texts])
        pointers = np.array(pages, dtype=np.uintp)
        step_batch = StepBatch(
            count, num_wanted, len(texts), address(batch.ids), address(batch.previous), address(batch.positions),
            address(batch.wanted), numbers.__array_interface__["data"][0], pointers.__array_interface__["data"][0],
            scratch,
        )  # fmt: skip
        work = self._work
        assert work is not None, "load() made it"

        def one(threads: int) -> int:
            step(self._model, step_batch, work, out, threads=threads)
            return 1

        self._pace.run(count, one)
        return out

    def step_s(self, num_rows: int) -> float | None:
        """What a step of so many texts takes in burst(), by the last ones; None: there was none."""
        return self._burst_pace.step_s(num_rows)

    def burst(
        self, store: PageStore, fed: np.ndarray, pages: Sequence[Sequence[int]], drawing: np.ndarray,
        streams: np.ndarray, stops: np.ndarray, left: np.ndarray, *, num_steps: int, has_logprobs: bool,
    ) -> np.ndarray:  # fmt: skip
        """Up to num_steps steps of B texts -> FOUND (steps made, B); the last step made is the first with an end in it.

        fed (3, B) int64: each text's newest token, the one before it, and its place. pages: per text
        Table.page_addresses(), with room for the tokens of all steps. drawing (B,) DRAWING; streams (B,) uint64;
        stops (B, S) int64, -1: none; left (B,) int64: tokens that each may still get. has_logprobs: totals are made.
        """
        count = fed.shape[1]
        self._point_at(store)
        if len(self._row_logits) < count:
            self._row_logits = torch.empty(count, self.config.vocab_size)
        pointers = np.array([found[group] for group in range(len(store.groups)) for found in pages], dtype=np.uintp)
        wanted, numbers = np.arange(count), np.arange(count, dtype=np.int32)
        found = np.empty((num_steps, count), dtype=FOUND)
        batch = StepBatch(
            count, count, count, *(place_of(part) for part in (*fed, wanted, numbers, pointers)), None
        )  # fmt: skip
        asked = StepBurst(
            num_steps, stops.shape[1], int(has_logprobs),
            *(place_of(part) for part in (drawing, streams, stops, left, found)),
        )  # fmt: skip
        work, made = self._work, 0
        assert work is not None, "load() made it"

        def some(threads: int) -> int:
            nonlocal made
            made = burst(self._model, batch, asked, work, self._row_logits, threads=threads)
            return made

        self._burst_pace.run(count, some)
        return found[:made]

    def _scratch(self, texts: Sequence[Piece]) -> tuple[list[np.ndarray], int]:
        """Pages for texts that are only scored, and where they are; every block writes over those of the one before."""
        pages, first = [], 0
        for entry in texts:
            num_pages = -(-entry.count // PAGE)
            pages.append(np.arange(first, first + num_pages, dtype=np.int32))
            first += num_pages
        size = first * PAGE * 2 * self.config.num_kv_heads * self.config.head_width
        if len(self._scored) < size:
            self._scored = torch.empty(size, dtype=self.dtype)
        return pages, self._scored.data_ptr()

    def _point_at(self, store: PageStore) -> None:
        """Tells every block where its keys and values are."""
        if self._stored is not None and self._stored() is store:
            return
        assert store.dtype == self.dtype, f"keys in {store.dtype}, the decoder writes {self.dtype}"
        for index, tensor in enumerate(store.blocks):
            group = store.group_of[index]
            reach = store.groups[group].reach
            self._blocks[index].group = group
            self._blocks[index].reach = -1 if reach is None else reach
            self._blocks[index].stored = address(tensor)
        self._stored = weakref.ref(store)

    def _num_packed_bytes(self) -> int:
        """Of all matrices; query, key and value, packed as one, take no more than each by itself."""
        names = [name for name in self._shapes if name.startswith(("blocks.", "head.")) and "_gate" not in name]
        return sum(packed_bytes(self._shapes[name][0], self._shapes[name][1], self.stored_as) for name in names)

    def _fill_block(
        self, block: StepBlock, index: int, pack: Callable[..., Packed], weights: Mapping[str, Tensor],
        gated: Sequence[int],
    ) -> None:  # fmt: skip
        start = f"blocks.{index}."
        block.qkv = pack(*(f"{start}attention.{name}.weight" for name in ("q", "k", "v"))).weight
        block.out = pack(start + "attention.out.weight").weight
        block.up = pack(start + "mlp.up.weight").weight
        block.down = pack(start + "mlp.down.weight").weight
        block.value = gated.index(index) if index in gated else -1
        gate = self._small.get(start + "attention.value_gate.weight")
        block.gate = None if gate is None else address(gate)
        block.has_scale = int(self.config.residual_scalars)
        if self.config.residual_scalars:
            block.scale = float(weights["residual_scale"][index])
            block.embedding_scale = float(weights["embedding_scale"][index])

    def _described(self, head: Packed, weights: Mapping[str, Tensor]) -> StepModel:
        config = self.config
        smear = self._small.get("smear_gate.weight")
        return StepModel(
            config.depth, config.width, config.num_heads, config.num_kv_heads, config.head_width,
            0 if self._values is None else self._values.shape[1], config.depth // 2,
            int(self.dtype == torch.bfloat16), config.norm_eps, config.qk_scale**2 * config.head_width**-0.5,
            config.softcap, float(weights["smear_scale"]) if config.smear else 0.0,
            float(weights["backout_scale"]) if config.backout else 0.0, int(config.smear), int(config.backout),
            address(self._embedding), None if self._values is None else address(self._values),
            None if smear is None else address(smear), address(self._cos), address(self._sin),
            ctypes.cast(self._blocks, ctypes.c_void_p), head.weight,
        )  # fmt: skip


def _texts(pieces: Sequence[Piece]) -> list[Piece]:
    """Pieces of one text that follow each other as one."""
    texts: list[Piece] = []
    for piece in pieces:
        last = texts[-1] if texts else None
        if last is not None and piece.start == last.start + last.count and _is_same(piece, last):
            texts[-1] = Piece(last.table, last.start, last.count + piece.count, last.origin)
        else:
            texts.append(piece)
    return texts


def _is_same(piece: Piece, last: Piece) -> bool:
    return piece.table is last.table and (piece.table is not None or piece.origin == last.origin)


def as_drawing(settings: Settings, uniform: np.ndarray | None = None) -> np.ndarray:
    """Settings of B rows, and their uniforms (B,) where the kernels do not make them -> (B,) DRAWING."""
    drawing = np.zeros(len(settings.temperature), dtype=DRAWING)
    for name in ("temperature", "top_p", "min_p", "top_k"):
        drawing[name] = getattr(settings, name)
    if uniform is not None:
        drawing["uniform"] = uniform
    return drawing


def as_stored(weights: Weights, dtype: torch.dtype) -> str:
    """How matrices are stored, in words of the setting."""
    if weights != "auto":
        return weights
    return STORED_AS.get(dtype, str(dtype).removeprefix("torch."))
