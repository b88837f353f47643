"""The model as generation runs it: weights fused and laid out once, all new tokens of all texts in one flat row.

The same function as model/gpt.py (a test compares them to 1e-9), without rows, padding and gradients.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from intone.config import ModelConfig
from intone.engine.products import TILE, PlainProduct, Product, by_tiles, make_product
from intone.model.attention import rotary_tables
from intone.model.gpt import GPT, SMEAR_CHANNELS, VALUE_GATE_CHANNELS, norm


class Attention(Protocol):
    """One step's attention over stored and new keys; engine/attend.py implements it."""

    def __call__(self, block: int, q: Tensor, kv: Tensor) -> Tensor:
        """q (N, H, C), kv (N, 2, K, C) -> (N, H, C)."""


@dataclass(frozen=True)
class Batch:
    """N new tokens of any number of texts, one text after another, those with a single token first.

    ids, positions (N,) int64. previous (N,) int64: the token before each in its text, -1 where there is none.
    wanted (M,) int64: the places whose logits are asked for.
    """

    ids: Tensor
    previous: Tensor
    positions: Tensor
    wanted: Tensor
    attention: Attention


class Decoder(Protocol):
    """What the runner asks of a model; a test may bring its own."""

    @property
    def config(self) -> ModelConfig: ...

    @property
    def dtype(self) -> torch.dtype:
        """Of activations and weights; keys and values are stored in it."""

    def logits(self, batch: Batch) -> Tensor:
        """The logits (M, V) float32 or better of the wanted places; keys and values go to batch.attention."""

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Replaces the weights. Raises RuntimeError where names or shapes differ, with nothing changed."""


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """What sums are made in: float32, or better where the weights are."""
    return torch.promote_types(dtype, torch.float32)


@dataclass(frozen=True)
class _Block:
    qkv: Product  # D -> (H + 2 K) * C, and K gates (K + 1 if odd) where the block has a value embedding
    out: Product
    up: Product
    down: Product
    scale: tuple[float, float] | None  # of the stream and of the embedding
    value: int | None  # which of the value embeddings


@dataclass(frozen=True)
class BlockMatrices:
    """One block's weights as GPTDecoder keeps them, (outputs, inputs): rows of queries and keys have channels in pairs,
    behind the values' rows are those of their gates. scale and value as in _Block."""

    qkv: Tensor
    out: Tensor
    up: Tensor
    down: Tensor
    scale: tuple[float, float] | None
    value: int | None


@dataclass(frozen=True)
class Matrices:
    """All weights of a GPTDecoder, not copied. values: (V, value embeddings, K * C). smear: its gate's weight
    (1, SMEAR_CHANNELS) and its scale (1,) float32. cos, sin: (positions, C / 2) float32."""

    embedding: Tensor
    values: Tensor | None
    blocks: tuple[BlockMatrices, ...]
    head: Tensor
    smear: tuple[Tensor, Tensor] | None
    backout: float | None
    cos: Tensor
    sin: Tensor


class GPTDecoder:
    """A GPT's weights, copied and packed in one dtype for one device; the model itself is not kept.

    The stream between blocks, norms, rotations and attention are float32 or better, matrix products in dtype.
    deterministic: a token's numbers do not depend on how many others are computed with it.
    """

    def __init__(
        self, config: ModelConfig, weights: Mapping[str, Tensor], *, device: torch.device, dtype: torch.dtype,
        rotary: tuple[Tensor, Tensor] | None = None, deterministic: bool = False,
    ) -> None:  # fmt: skip
        self.config = config
        self.device = device
        self.dtype = dtype
        self.deterministic = deterministic
        self._wide = wide_dtype(dtype)
        self._shapes = weight_shapes(config)
        if rotary is None:
            rotary = rotary_tables(config.context, config.head_width, config.rope_base, torch.device("cpu"))
        # rounded as in training, then widened: the rounded angles are part of the function that was learned
        cos, sin = (table.detach().to(dtype).to(device, self._wide) for table in rotary)
        self._cos, self._sin = cos, sin
        # turning by minus the angle is a product with cos - i sin, one pass over pairs of channels
        self._turns = torch.complex(cos, -sin) if device.type != "mps" else None
        self._pairs = torch.arange(config.head_width).view(2, -1).T.flatten()
        self.load(weights)

    @classmethod
    def of(cls, model: GPT, *, device: torch.device, dtype: torch.dtype, deterministic: bool = False) -> "GPTDecoder":
        """A snapshot of a model's weights as they are now."""
        return cls(
            model.config,
            model.state_dict(),
            device=device,
            dtype=dtype,
            rotary=(model.cos, model.sin),
            deterministic=deterministic,
        )

    @torch.no_grad()
    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Packs new weights. Raises RuntimeError where names or shapes differ, with nothing changed."""
        check_weights(self._shapes, weights)
        config = self.config

        def taken(name: str) -> Tensor:
            # a copy even where nothing changes: a training may go on in the originals
            return weights[name].detach().to(self.device, self.dtype, copy=True)

        self._embedding = taken("embedding.weight")
        self._head = self._product(taken("head.weight"))
        gated = [block for block in range(config.depth) if config.has_value_embedding(block)]
        # one row per token with the values of all blocks: they are gathered at once
        tables = [taken(f"value_embeddings.{block}.weight") for block in gated]
        self._values = torch.stack(tables, dim=1) if tables else None
        self._blocks = [
            self._block(block, taken, weights, gated.index(block) if block in gated else None)
            for block in range(config.depth)
        ]
        if config.smear:
            self._smear_weight = taken("smear_gate.weight")
            self._smear_gate = self._gate(self._smear_weight)
            self._smear_scale = weights["smear_scale"].detach().to(self.device, self._wide, copy=True)
        self._backout = float(weights["backout_scale"]) if config.backout else None

    def matrices(self) -> Matrices:
        """The weights as they are now, for other kernels; where oneDNN or tiles have them there are none to be had."""
        blocks = tuple(
            BlockMatrices(
                _weight(block.qkv), _weight(block.out), _weight(block.up), _weight(block.down), block.scale, block.value
            )
            for block in self._blocks
        )
        smear = (self._smear_weight, self._smear_scale) if self.config.smear else None
        return Matrices(
            self._embedding, self._values, blocks, _weight(self._head), smear, self._backout, self._cos, self._sin
        )

    def logits(self, batch: Batch) -> Tensor:
        """The logits (M, V) of the wanted places in float32 or better; keys and values go to batch.attention."""
        x = self._stream(batch)[batch.wanted]
        count = len(x)
        logits = self._head(self._tiled(x.to(self.dtype)))[:count, : self.config.vocab_size]
        cap = self.config.softcap
        # in place: the product is nobody else's, and a fresh tensor of this size costs more than the pass over it
        return logits.to(self._wide).contiguous().div_(cap).tanh_().mul_(cap)

    def _stream(self, batch: Batch) -> Tensor:
        """The final normed stream (N, D)."""
        config = self.config
        count = len(batch.ids)
        ids, previous, positions = (self._tiled(part) for part in (batch.ids, batch.previous, batch.positions))
        x = norm(self._embedding[ids].to(self._wide), config.norm_eps)
        if config.smear:
            before = norm(self._embedding[previous.clamp(min=0)].to(self._wide), config.norm_eps)
            gate = self._smear_scale * self._smear_gate(x[:, :SMEAR_CHANNELS].to(self.dtype)) * (previous >= 0)[:, None]
            x = x + gate * before
        turns = self._turned_by(positions)
        values = self._values[ids] if self._values is not None else None
        x0, middle = x, x
        for index, block in enumerate(self._blocks):
            if block.scale is not None:
                x = torch.add(x * block.scale[0], x0, alpha=block.scale[1])
            value = values[:, block.value] if values is not None and block.value is not None else None
            x = x + self._attended(index, block, x, value, turns, count, batch.attention)
            h = block.up(norm(x, config.norm_eps).to(self.dtype))
            x = x + block.down(h.square_())
            if index == config.depth // 2:
                middle = x
        if self._backout is not None:
            x = torch.sub(x, middle, alpha=self._backout)
        return norm(x, config.norm_eps)

    def _attended(
        self, index: int, block: _Block, x: Tensor, value: Tensor | None, turns: tuple[Tensor, ...], count: int,
        attention: Attention,
    ) -> Tensor:  # fmt: skip
        """What one block's attention adds to the stream x (N, D); the first count rows are tokens."""
        config = self.config
        heads, kv_heads, width = config.num_heads, config.num_kv_heads, config.head_width
        num_turned = (heads + kv_heads) * width
        found = block.qkv(norm(x, config.norm_eps).to(self.dtype))
        qk = found[:, :num_turned].to(self._wide).unflatten(-1, (-1, width))
        # the norm comes second, as in training: rounded cosines and sines do not quite keep lengths
        qk = norm(self._turn(qk, turns), config.norm_eps)
        v = found[:, num_turned : num_turned + kv_heads * width].unflatten(-1, (-1, width))
        if value is not None:
            gate = found[:, num_turned + kv_heads * width :][:, :kv_heads].sigmoid().mul_(3)
            v = torch.addcmul(v, gate.unsqueeze(-1), value.unflatten(-1, (-1, width)))
        kv = torch.stack((qk[:, heads:].to(self.dtype), v), dim=1)
        y = attention(index, qk[:count, :heads], kv[:count])
        return block.out(self._tiled(y.flatten(1).to(self.dtype)))

    def _turned_by(self, positions: Tensor) -> tuple[Tensor, ...]:
        if self._turns is not None:
            return (self._turns[positions][:, None],)
        return self._cos[positions][:, None], self._sin[positions][:, None]

    def _turn(self, x: Tensor, turns: tuple[Tensor, ...]) -> Tensor:
        """x (N, heads, C), channels in pairs, each pair turned by minus its position's angle."""
        pairs = x.unflatten(-1, (-1, 2))
        if len(turns) == 1:
            return torch.view_as_real(torch.view_as_complex(pairs) * turns[0]).flatten(-2)
        (cos, sin), (a, b) = turns, pairs.unbind(-1)
        return torch.stack((a * cos + b * sin, b * cos - a * sin), dim=-1).flatten(-2)

    def _tiled(self, x: Tensor) -> Tensor:
        """x with zero rows added to whole tiles, where results must not depend on the number of rows."""
        rest = -len(x) % TILE if self.deterministic else 0
        return F.pad(x, (0, 0) * (x.dim() - 1) + (0, rest)) if rest else x

    def _product(self, weight: Tensor, *, relu: bool = False) -> Product:
        return make_product(weight, relu=relu, tiled=self.deterministic)

    def _gate(self, weight: Tensor) -> Product:
        """x (N, channels) -> (N, 1), between 0 and 1."""

        def gate(x: Tensor) -> Tensor:
            return F.linear(x, weight).to(self._wide).sigmoid()

        # with AVX-512 a sigmoid has other bits in the last of a run of numbers, and the product in a longer one
        return by_tiles(gate) if self.deterministic else gate

    def _block(
        self, index: int, taken: Callable[[str], Tensor], weights: Mapping[str, Tensor], value: int | None
    ) -> _Block:
        config, start = self.config, f"blocks.{index}."
        parts = [
            taken(f"{start}attention.{name}.weight").unflatten(0, (-1, config.head_width))[:, self._pairs].flatten(0, 1)
            for name in ("q", "k")
        ]
        parts.append(taken(start + "attention.v.weight"))
        if value is not None:
            gate = taken(start + "attention.value_gate.weight")
            # rows of zeros too, up to an even number: pairs of channels are viewed in rows of this width
            parts.append(F.pad(gate, (0, config.width - VALUE_GATE_CHANNELS, 0, len(gate) % 2)))
        scale = None
        if config.residual_scalars:
            scale = (float(weights["residual_scale"][index]), float(weights["embedding_scale"][index]))
        return _Block(
            qkv=self._product(torch.cat(parts)),
            out=self._product(taken(start + "attention.out.weight")),
            up=self._product(taken(start + "mlp.up.weight"), relu=True),
            down=self._product(taken(start + "mlp.down.weight")),
            scale=scale,
            value=value,
        )


def _weight(product: Product) -> Tensor:
    assert isinstance(product, PlainProduct), "a weight that was laid out for the machine"
    return product.weight


def weight_shapes(config: ModelConfig) -> dict[str, torch.Size]:
    """The shapes of a model's weights by name."""
    with torch.device("meta"):
        return {name: tensor.shape for name, tensor in GPT(config).state_dict().items()}


def check_weights(shapes: Mapping[str, torch.Size], weights: Mapping[str, Tensor]) -> None:
    """Raises RuntimeError where names or shapes of weights are not these."""
    problems = [f"Missing key {name!r}" for name in shapes if name not in weights]
    problems += [f"unexpected key {name!r}" for name in weights if name not in shapes]
    problems += [
        f"size mismatch for {name!r}: {tuple(weights[name].shape)} given, the model has {tuple(shape)}"
        for name, shape in shapes.items()
        if name in weights and weights[name].shape != shape
    ]
    if problems:
        raise RuntimeError(f"these weights are not this model's: {'; '.join(problems[:3])}")
