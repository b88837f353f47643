"""The one GPT: every architecture option is a field of ModelConfig, training and cached decoding share its code."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from intone.config import ModelConfig
from intone.model.attention import FLEX_BLOCK, Backend, attend, block_mask, packed_mask, rotary_tables, rotate
from intone.model.head import loss_in_pieces
from intone.model.native import trunk as native
from intone.model.native.ops import NarrowWeights

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

SMEAR_CHANNELS = 24  # leading channels of the embedding that gate the smear (nanochat 92d63d4)
VALUE_GATE_CHANNELS = 12  # leading channels of the block input that gate a value embedding (nanochat 92d63d4)


Kernels = Literal["torch", "native"]


class CacheView(Protocol):
    """What the model asks of a key-value cache for one forward pass; engine/kv.py implements it.

    positions (B, T) int64: absolute positions of the new tokens.
    """

    positions: Tensor

    def previous(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Normed embedding (B, D) of the token before the new ones, and (B,) bool whether there is one."""

    def keep_previous(self, x: Tensor) -> None:
        """Stores the normed embedding of each row's last new token out of x (B, T, D)."""

    def append(self, block: int, k: Tensor, v: Tensor, window: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Stores k, v (B, T, K, C); returns keys and values (B, K, S, C) and a mask (B, 1, T, S) of who sees what."""

    def commit(self) -> None:
        """Makes the new tokens part of their rows; called once at the end of a forward pass."""


class Linear(nn.Linear):
    """A bias-free product whose float32 master weight is cast to the activations' dtype in the forward pass."""

    def __init__(self, num_in: int, num_out: int) -> None:
        super().__init__(num_in, num_out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        # scan: ok[S41] training needs fp32 masters; generation lays its weights out once, in engine/products.py
        return F.linear(x, self.weight.to(x.dtype))


class Table(nn.Embedding):
    """One row per entry of the vocabulary, zero at first: the random start of PyTorch is drawn only to be thrown away.

    On a model without memory (device meta) drawing it imports sympy and PyTorch's compiler: 1.8 s before a first token.
    """

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)


class Attention(nn.Module):
    """Rotary, query-key-normed attention with optional value embedding and grouped key heads."""

    def __init__(self, config: ModelConfig, block: int) -> None:
        super().__init__()
        self.config = config
        self.block = block
        self.window = config.window(block)
        self.q = Linear(config.width, config.num_heads * config.head_width)
        self.k = Linear(config.width, config.num_kv_heads * config.head_width)
        self.v = Linear(config.width, config.num_kv_heads * config.head_width)
        self.out = Linear(config.num_heads * config.head_width, config.width)
        gated = config.has_value_embedding(block)
        self.value_gate = Linear(VALUE_GATE_CHANNELS, config.num_kv_heads) if gated else None

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, T, D) -> q (B, T, H, C), k and v (B, T, K, C); one product over the three weights."""
        config = self.config
        weight = torch.cat((self.q.weight, self.k.weight, self.v.weight)).to(x.dtype)
        heads = F.linear(x, weight).unflatten(-1, (-1, config.head_width))
        q, k, v = heads.split((config.num_heads, config.num_kv_heads, config.num_kv_heads), dim=2)
        return q, k, v

    def gate(self, x: Tensor) -> Tensor:
        """x (B, T, D) -> (B, T, K): how much of its value embedding each key head adds, 0 to 3."""
        assert self.value_gate is not None, "only blocks with a value embedding have a gate"
        return 3 * torch.sigmoid(self.value_gate(x[..., :VALUE_GATE_CHANNELS]))

    def forward(
        self, x: Tensor, value: Tensor | None, cos: Tensor, sin: Tensor, mask: "Tensor | BlockMask | None",
        backend: Backend, cache: CacheView | None,
    ) -> Tensor:  # fmt: skip
        """x (B, T, D), value (B, T, K * C) or None -> (B, T, D).

        Without a cache nothing is read that differs from block to block: they share what is compiled for one.
        """
        config = self.config
        q, k, v = self.project(x)
        if value is not None:
            v = v + self.gate(x).unsqueeze(-1) * value.unflatten(-1, (-1, config.head_width))
        q = norm(rotate(q, cos, sin), config.norm_eps) * config.qk_scale
        k = norm(rotate(k, cos, sin), config.norm_eps) * config.qk_scale
        if cache is None:
            keys, values = k.transpose(1, 2), v.transpose(1, 2)
        else:
            keys, values, mask = cache.append(self.block, k, v, self.window)
        y = attend(q.transpose(1, 2), keys, values, mask, backend=backend)
        return self.out(y.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Up-projection, squared ReLU (So et al. 2021, Primer), down-projection."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.up = Linear(config.width, config.mlp_ratio * config.width)
        self.down = Linear(config.mlp_ratio * config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.relu(self.up(x)).square())


class Block(nn.Module):
    """Pre-norm attention and MLP, each added to the stream."""

    def __init__(self, config: ModelConfig, block: int) -> None:
        super().__init__()
        self.eps = config.norm_eps
        self.block = block
        self.attention = Attention(config, block)
        self.mlp = Mlp(config)

    def forward(
        self, x: Tensor, value: Tensor | None, cos: Tensor, sin: Tensor, mask: "Tensor | BlockMask | None",
        backend: Backend, cache: CacheView | None,
    ) -> Tensor:  # fmt: skip
        x = x + self.attention(norm(x, self.eps), value, cos, sin, mask, backend, cache)
        return x + self.mlp(norm(x, self.eps))


class GPT(nn.Module):
    """A decoder-only transformer. Master weights are float32; compute_dtype is the dtype of activations.

    Weights are zero or random garbage until init_weights() or load_state_dict().
    """

    cos: Tensor  # (positions, C / 2) float32, like sin: the rotary tables, no part of the weights
    sin: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.compute_dtype = torch.float32
        self.attention_backend: Backend = "sdpa"
        self.head_pieces = 1  # parts of a pass whose logits exist at the same time: all, or one after the other
        self.kernels: Kernels = "torch"  # native: training runs on model/native, in bfloat16 or float32 on a CPU
        self.narrow_weights = NarrowWeights()
        width, vocab = config.width, config.padded_vocab
        kv_width = config.num_kv_heads * config.head_width
        self.embedding = Table(vocab, width)
        self.blocks = nn.ModuleList(Block(config, i) for i in range(config.depth))
        self.head = Linear(width, vocab)
        self.value_embeddings = nn.ModuleDict(
            {str(i): Table(vocab, kv_width) for i in range(config.depth) if config.has_value_embedding(i)}
        )
        if config.residual_scalars:
            self.residual_scale = nn.Parameter(torch.ones(config.depth))
            self.embedding_scale = nn.Parameter(torch.zeros(config.depth))
        if config.smear:
            self.smear_gate = Linear(SMEAR_CHANNELS, 1)
            self.smear_scale = nn.Parameter(torch.zeros(1))
        if config.backout:
            self.backout_scale = nn.Parameter(torch.full((1,), 0.2))
        self.register_buffer("cos", torch.empty(0), persistent=False)
        self.register_buffer("sin", torch.empty(0), persistent=False)
        self.ensure_positions(config.context)

    def ensure_positions(self, positions: int) -> None:
        """Grows the rotary tables to this many positions; call it outside compiled code."""
        config, device = self.config, self.embedding.weight.device
        if self.cos.shape[0] < positions and device.type == "meta":
            self.cos = self.sin = torch.empty((positions, config.head_width // 2), device=device)
        elif self.cos.shape[0] < positions:
            self.cos, self.sin = rotary_tables(
                positions, config.head_width, config.rope_base, device, as_bf16=config.rope_bf16
            )

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Random start, the same for the same seed on every device (drawn on the CPU).

        Scales are nanochat's at 92d63d4 (modern) and of its 2025 era (classic): zero output projections,
        uniform inputs with standard deviation 1 / sqrt(D), a nearly silent head.
        """
        generator = torch.Generator().manual_seed(seed)
        config = self.config
        modern = config.residual_scalars

        def normal(weight: Tensor, std: float) -> None:
            weight.copy_(torch.randn(weight.shape, generator=generator) * std)

        def uniform(weight: Tensor, low: float, high: float) -> None:
            weight.copy_(torch.rand(weight.shape, generator=generator) * (high - low) + low)

        bound = (3 / config.width) ** 0.5
        normal(self.embedding.weight, 0.8 if modern else 1.0)
        if modern:
            normal(self.head.weight, 0.001)
        else:
            self.head.weight.zero_()
        for block in self.blocks:
            assert isinstance(block, Block), "only blocks are in blocks"
            for linear in (block.attention.q, block.attention.k, block.attention.v):
                uniform(linear.weight, -bound, bound)
            reach = 0.4 * bound if modern else bound
            uniform(block.mlp.up.weight, -reach, reach)
            block.attention.out.weight.zero_()
            block.mlp.down.weight.zero_()
            if block.attention.value_gate is not None:
                uniform(block.attention.value_gate.weight, 0.0, 0.02)
        for table in self.value_embeddings.values():
            assert isinstance(table, nn.Embedding), "only tables are in value_embeddings"
            uniform(table.weight, -bound, bound)
        if config.residual_scalars:
            ramp = torch.arange(config.depth) / max(config.depth - 1, 1)
            self.residual_scale.copy_(1.15 - 0.10 * ramp)
            self.embedding_scale.copy_(0.20 - 0.15 * ramp)
        if config.smear:
            uniform(self.smear_gate.weight, 0.0, 0.02)
            self.smear_scale.zero_()
        if config.backout:
            self.backout_scale.fill_(0.2)

    def forward(
        self, ids: Tensor, targets: Tensor, documents: Tensor | None = None, weights: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """ids, targets (B, T) int32 or int64, targets -1 where nothing is learned; documents (B, T) or None.

        -> loss_sum () float32 in nats, summed over supervised tokens, and num_supervised () int64.
        A row in which nothing is learned adds exactly zero to both and to every gradient.
        weights (B, T) float32: what the loss of each token counts in the sum, any number; None: 1.
        """
        if self.kernels == "native":
            return native.forward(self, self.narrow_weights, ids, targets, documents, weights)
        x = self.trunk(ids, documents, None)
        flat = targets.flatten().long()
        if self.head_pieces > 1 and torch.is_grad_enabled():
            loss_sum = loss_in_pieces(
                x.flatten(0, 1), self.head.weight, flat, vocab_size=self.config.vocab_size,
                softcap=self.config.softcap, pieces=self.head_pieces,
                weights=None if weights is None else weights.flatten(),
            )  # fmt: skip
            return loss_sum, (flat >= 0).sum()
        logits = self.head_logits(x).flatten(0, 1)
        if weights is None:
            loss_sum = F.cross_entropy(logits, flat, ignore_index=-1, reduction="sum")
        else:
            loss_sum = (F.cross_entropy(logits, flat, ignore_index=-1, reduction="none") * weights.flatten()).sum()
        return loss_sum, (flat >= 0).sum()

    def logits(
        self, ids: Tensor, *, documents: Tensor | None = None, cache: CacheView | None = None,
        last: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """ids (B, T) -> (B, T, V) float32 softcapped logits; with last (B,) only those positions: (B, 1, V).

        With a cache, ids are the next tokens of its rows and the cache is advanced.
        """
        x = self.trunk(ids, documents, cache)
        if last is not None:
            x = x.gather(1, last.long()[:, None, None].expand(-1, 1, x.shape[-1]))
        return self.head_logits(x)

    def head_logits(self, x: Tensor) -> Tensor:
        """Normed stream (..., D) -> (..., V) in float32 (float64 stays), squashed to +-softcap."""
        logits = self.head(x)[..., : self.config.vocab_size]
        logits = logits.to(torch.promote_types(x.dtype, torch.float32))
        if logits.is_cuda and torch.compiler.is_compiling():
            return softcapped(logits, self.config.softcap)
        return self.config.softcap * torch.tanh(logits / self.config.softcap)

    def trunk(self, ids: Tensor, documents: Tensor | None, cache: CacheView | None) -> Tensor:
        """ids (B, T) -> final normed stream (B, T, D) in compute_dtype."""
        config = self.config
        ids = ids.long()
        length = ids.shape[1]
        dtype = self.compute_dtype
        if cache is None:
            cos, sin = self.cos[:length, None], self.sin[:length, None]
            by_blocks = self.attention_backend == "flex" and torch.compiler.is_compiling() and length % FLEX_BLOCK == 0
            make = block_mask if by_blocks else packed_mask  # flex_attention in eager code would keep all scores
            masks = {w: make(documents, length, w, ids.device) for w in self.windows()}
        else:
            cos, sin = self.cos[cache.positions][:, :, None], self.sin[cache.positions][:, :, None]
            masks = {}
        cos, sin = cos.to(dtype), sin.to(dtype)
        x = norm(self.embedding(ids).to(dtype), config.norm_eps)
        if config.smear:
            x = self.smeared(x, documents, cache)
        x0, middle = x, x
        for i, block in enumerate(self.blocks):
            if config.residual_scalars:
                x = scaled_sum(self.residual_scale[i], x, self.embedding_scale[i], x0)
            value = self.value_embeddings[str(i)](ids).to(dtype) if config.has_value_embedding(i) else None
            x = block(x, value, cos, sin, masks.get(config.window(i)), self.attention_backend, cache)
            if i == config.depth // 2:
                middle = x
        if config.backout:
            x = scaled_sum(None, x, -self.backout_scale, middle)
        if cache is not None:
            cache.commit()
        return norm(x, config.norm_eps)

    def windows(self) -> set[int]:
        """The distinct window sizes of the blocks."""
        return {self.config.window(i) for i in range(self.config.depth)}

    def smeared(self, x: Tensor, documents: Tensor | None, cache: CacheView | None) -> Tensor:
        """x (B, T, D) plus a gated share of each previous token's embedding; nothing before a document's start."""
        gate = torch.sigmoid(self.smear_gate(x[..., :SMEAR_CHANNELS]).to(self.smear_scale.dtype))
        gate = self.smear_scale * gate
        if cache is None:
            before = F.pad(x[:, :-1], (0, 0, 1, 0))
            if documents is not None:
                starts = F.pad(documents[:, 1:] != documents[:, :-1], (1, 0), value=True)
                gate = gate.masked_fill(starts.unsqueeze(-1), 0.0)
        else:
            first, has_first = cache.previous(x)
            cache.keep_previous(x)
            first = torch.where(has_first[:, None], first.to(x.dtype), 0.0)
            before = torch.cat((first[:, None], x[:, :-1]), dim=1)
        return x + (gate * before.to(gate.dtype)).to(x.dtype)

    def matrices(self) -> Iterable[tuple[str, nn.Parameter]]:
        """Names and parameters of the blocks' matrices: what Muon trains."""
        return ((name, p) for name, p in self.named_parameters() if name.startswith("blocks."))


def norm(x: Tensor, eps: float) -> Tensor:
    """x / rms(x) over the last dimension, without learned weights."""
    return F.rms_norm(x, (x.shape[-1],), eps=eps)


def softcapped(x: Tensor, cap: float) -> Tensor:
    """cap * tanh(x / cap) by an exponential, for which GPUs have an instruction; within rounding of cap."""
    power = torch.exp((x * (2 / cap)).clamp(max=40.0))  # tanh is 1 by then; without it the gradient would be inf / inf
    return cap * (1 - 2 / (power + 1))


def scaled_sum(a: Tensor | None, x: Tensor, b: Tensor, y: Tensor) -> Tensor:
    """a * x + b * y in the scalars' float32, rounded once to x's dtype; a None is 1.

    The gradients of a and b are sums over the whole batch: in bfloat16 they would be noise (docs/decisions).
    """
    wide = torch.promote_types(b.dtype, x.dtype)
    left = x.to(wide) if a is None else a * x.to(wide)
    return (left + b * y.to(wide)).to(x.dtype)
