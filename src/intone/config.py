"""The shape of a model and the two architecture presets, as plain data that needs no torch."""

import dataclasses
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from intone.errors import UserError, unknown_name

Preset = Literal["modern", "classic"]


@dataclass(frozen=True)
class ModelConfig:
    """Everything that determines the function a set of weights computes."""

    vocab_size: int  # entries of the tokenizer; the tables are padded to a multiple of vocab_multiple
    context: int  # T: longest row in tokens
    depth: int  # number of blocks
    width: int  # D
    num_heads: int  # H
    num_kv_heads: int  # K, divides H
    head_width: int  # C
    mlp_ratio: int = 4
    vocab_multiple: int = 64
    rope_base: float = 100_000.0
    rope_bf16: bool = False  # rotary tables rounded to bfloat16 in every dtype, as in nanochat before 2026-03-04
    norm_eps: float = 1.1920929e-07  # float32 epsilon; transformers' NanoChat uses 1e-6
    qk_scale: float = 1.2  # queries and keys are multiplied by it after their norm
    softcap: float = 15.0  # logits are softcap * tanh(x / softcap)
    window_pattern: str = "SSSL"  # tiled over the blocks, S short, L whole context; the last block is L
    short_window: int | None = None  # tokens seen in an S block; None: a quarter of the context, at least 128
    value_embeddings: bool = True  # every second block (the last included) adds an embedding of the token to v
    residual_scalars: bool = True  # x = resid[i] * x + x0[i] * embedding before every block
    smear: bool = True  # a gated share of the previous token's embedding
    backout: bool = True  # a learned share of the middle block's stream is taken out before the head

    def __post_init__(self) -> None:
        for name in ("vocab_size", "context", "depth", "width", "num_heads", "num_kv_heads", "head_width"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}, it must be at least 1", value=getattr(self, name))
        if self.num_heads % self.num_kv_heads:
            raise UserError(
                f"num_kv_heads {self.num_kv_heads} does not divide num_heads {self.num_heads}",
                value=self.num_kv_heads,
                fix=f"use a divisor of {self.num_heads}",
            )
        if self.head_width % 2:
            raise UserError(f"head_width {self.head_width} is odd; rotary positions need an even one")
        if not self.window_pattern or set(self.window_pattern) - {"S", "L"}:
            raise UserError(
                f"window_pattern {self.window_pattern!r} may hold only S and L",
                value=self.window_pattern,
                fix="for example SSSL, or L for full attention everywhere",
            )

    @property
    def padded_vocab(self) -> int:
        """Rows of the embedding and head tables, a multiple of vocab_multiple."""
        return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple

    def window(self, block: int) -> int:
        """Tokens that a query in this block sees, itself included; at least context where it sees all.

        A short window is the token itself and short_window tokens before it, as nanochat counts.
        """
        letter = self.window_pattern[block % len(self.window_pattern)]
        if letter == "L" or block == self.depth - 1:
            return self.context
        short = self.short_window or max(128, -(-self.context // 4 // 128) * 128)
        return min(short + 1, self.context)

    def has_value_embedding(self, block: int) -> bool:
        """Every second block counted from the last one has its own value embedding."""
        return self.value_embeddings and block % 2 == (self.depth - 1) % 2

    def as_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "ModelConfig":
        """Raises UserError for a missing key, and for one that no ModelConfig has: it would change the function."""
        return strict(cls, value, "model setting")


def model_config(
    preset: Preset, *, depth: int, vocab_size: int, context: int, head_width: int = 64, num_kv_heads: int | None = None
) -> ModelConfig:
    """The preset's model at a depth: width 64 x depth rounded up to whole heads.

    nanochat uses 128 wide heads; 64 is our default because at depth 12 and below 128 leaves too few heads.
    """
    width = -(-depth * 64 // head_width) * head_width
    heads = width // head_width
    shape: dict[str, Any] = dict(
        vocab_size=vocab_size,
        context=context,
        depth=depth,
        width=width,
        num_heads=heads,
        num_kv_heads=num_kv_heads or heads,
        head_width=head_width,
    )
    if preset == "modern":
        return ModelConfig(**shape)
    if preset == "classic":
        return ModelConfig(
            **shape,
            rope_base=10_000.0,
            norm_eps=1e-6,
            qk_scale=1.0,
            window_pattern="L",
            value_embeddings=False,
            residual_scalars=False,
            smear=False,
            backout=False,
        )
    raise unknown_name("preset", preset, ("modern", "classic"))


@dataclass(frozen=True)
class OptimConfig:
    """Learning rates and constants of the optimizer at the reference batch; the schedule multiplies them.

    Source of the values: nanochat 92d63d4 (modern recipe); plain_muon gives the original Muon.
    """

    matrix_lr: float = 0.02  # times sqrt(max(1, rows / columns))
    embedding_lr: float = 0.3  # times (width / 768) ** -0.5, like the two below
    value_embedding_lr: float = 0.15
    head_lr: float = 0.008
    residual_scale_lr: float = 0.005
    # nanochat's 0.5 and 0.2 let the backout cross the point where it cancels the stream in the first ten steps:
    # loss 1.71 against 1.37 after 117 steps of 2,048 tokens at depth 4 (LOG.md)
    embedding_scale_lr: float = 0.02
    gate_lr: float = 0.01  # smear and backout
    weight_decay: float = 0.28  # of the matrices, cautious; falls to zero over the run
    second_moment: float = 0.9  # decay of Muon's factored second moment (NorMuon, arXiv 2510.05491)
    plain_muon: bool = False  # original Muon: no row equilibration, snap, second moment; plain decay

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "OptimConfig":
        """Raises UserError for an unknown key."""
        return strict(cls, value, "optimizer setting")


@dataclass(frozen=True)
class ScheduleConfig:
    """How the learning rate, Muon's momentum and the decay move over a stage; see train/schedule.py."""

    lr_scale: float = 1.0  # factor on every learning rate, over the whole stage
    warmup_steps: int = 40
    warmdown_share: float = 0.65  # the last share of the steps over which the rate falls linearly
    final_share: float = 0.05  # of the full rate, at the last step
    momentum_from: float = 0.85
    momentum_to: float = 0.95
    momentum_steps: int = 300
    decay_from: float = 1.0  # factor on the weight decay at the first and the last step, linear between
    decay_to: float = 0.0

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "ScheduleConfig":
        """Raises UserError for an unknown key."""
        return strict(cls, value, "schedule setting")


@dataclass(frozen=True)
class RolloutConfig:
    """What a reinforcement stage asks in each step, and how the model's own answers are drawn."""

    prompts: int  # questions per optimizer step
    samples: int  # answers to each of them
    max_tokens: int  # of an answer
    temperature: float = 1.0
    top_k: int | None = None  # drawn among so many of the likeliest tokens; None: all, as the loss has it
    skills: tuple[str, ...] = ()  # of the starter, whose questions are made; empty: they come from files
    files: tuple[str, ...] = ()
    val_files: tuple[str, ...] = ()  # held-out questions; none: one in ten of the files
    num_items: int = 200  # held-out questions of each kind, or of every starter skill, asked before and after
    # for comparing ways to compute: keep what is written in each step below the job's folder, or learn from what such
    # a folder holds instead of writing anew; see train/kept.py
    keep_answers: bool = False
    answers: str | None = None

    def __post_init__(self) -> None:
        for name, least in (("prompts", 1), ("samples", 2), ("max_tokens", 1), ("num_items", 1)):
            value = getattr(self, name)
            if value < least:
                why = "; one answer alone is no better or worse than its mean" if name == "samples" else ""
                raise UserError(f"{name} is {value}, it must be at least {least}{why}", value=value)
        if not self.temperature > 0:
            raise UserError(f"temperature is {self.temperature:g}: all answers would be equal", value=self.temperature)
        if bool(self.skills) == bool(self.files):
            raise UserError("questions come from the starter's skills or from files, one of them", value=self.skills)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "RolloutConfig":
        """Raises UserError for an unknown key."""
        if isinstance(value, dict):
            value = {key: tuple(entry) if isinstance(entry, list) else entry for key, entry in value.items()}
        found: RolloutConfig = strict(cls, value, "rollout setting")
        return found


@dataclass(frozen=True)
class TrainJob:
    """config.json of a training job: the recipe, complete. How it is computed stands in choices.json."""

    stage: str  # base | mid | sft | rl
    model: ModelConfig
    tokenizer: str  # folder; its content hash is checked
    tokenizer_hash: str
    data: tuple[str, ...]  # folders of token sets that are shuffled together
    val: str | None  # folder of the token set for bits per byte
    context: int  # T, positions in a row of this stage
    weights: tuple[float, ...] | None = field(default=None, kw_only=True)  # how often each set's documents come
    steps: int  # optimizer steps
    rows_per_step: int  # R; tokens per step = R * T. Of a reinforcement stage: its answers, which fill at most R rows
    optim: OptimConfig
    schedule: ScheduleConfig
    seed: int
    learn_all: bool = False  # also learn the person's turns and tool outputs (mid)
    one_text: bool = False  # tokens see the other documents before them in a row too, as nanochat trains
    init_from: str | None = None  # job folder whose newest save gives the weights
    keep_optimizer: bool = False  # take over the optimizer's moments too
    deterministic: bool = False  # on CUDA; a CPU always is
    eval_every: int | None = None  # steps; None: only at the end
    eval_tokens: int = 65_536  # of the validation set
    samples: tuple[str, ...] = ()  # prompts that are continued at each evaluation
    save_every_s: float = 60.0
    keep: int = 2  # newest saves kept, besides the best
    peak_flops: float | None = None  # measured matrix-product rate of all devices, for MFU; None: unknown
    rollouts: RolloutConfig | None = None  # of a reinforcement stage, which learns from its own answers

    def as_json(self) -> dict[str, Any]:
        return {"format": 1, "job": "train", **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "TrainJob":
        """Raises UserError for unknown and missing keys, and values of another kind, at any level."""
        if not isinstance(value, dict):
            raise UserError(f"job settings are {value!r}, they must be an object of names and values", value=value)
        value = {key: entry for key, entry in value.items() if key not in ("format", "job")}
        readers: dict[str, Callable[[Any], Any]] = {
            "model": ModelConfig.from_json,
            "optim": OptimConfig.from_json,
            "schedule": ScheduleConfig.from_json,
            "rollouts": RolloutConfig.from_json,
        }
        for name, read in readers.items():
            if value.get(name) is not None:
                value[name] = read(value[name])
        for name in ("data", "samples", "weights"):
            if isinstance(value.get(name), list):
                value[name] = tuple(value[name])
        return strict(cls, value, "job setting")


def strict(cls: Any, value: dict[str, Any], what: str) -> Any:
    """cls(**value), but an unknown key raises UserError with the nearest known name, and so does a missing one."""
    if not isinstance(value, dict):
        raise UserError(f"{what}s are {value!r}, they must be an object of names and values", value=value)
    known = {field.name: field for field in dataclasses.fields(cls)}
    for key in value:
        if key not in known:
            raise unknown_name(what, key, known)
    for name, entry in known.items():
        if name not in value and entry.default is entry.default_factory is dataclasses.MISSING:
            raise UserError(f"{what} {name!r} is missing", value=name)
    hints = typing.get_type_hints(cls)
    for key, entry in value.items():
        if not fits(hints[key], entry):
            raise UserError(f"{what} {key!r} is {entry!r}, it must be {words_for(hints[key])}", value=entry)
    return cls(**value)


def fits(hint: Any, value: Any) -> bool:
    """Whether a value read from JSON is of an annotated type. Lists and tuples are the same; what is in a mapping is
    not looked at.
    """
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(fits(part, value) for part in parts)
    if origin is Literal:
        return value in parts and not isinstance(value, bool)
    if origin is tuple:
        return isinstance(value, (list, tuple)) and all(fits(parts[0], entry) for entry in value)
    if hint is Any:
        return True
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, origin or hint)


def words_for(hint: Any) -> str:
    """A type as a person would call it."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(words_for(part) for part in parts)
    if origin is Literal:
        return "one of " + ", ".join(map(str, parts))
    if origin is tuple:
        return "a list" if parts[0] is Any else f"a list, of each {words_for(parts[0])}"
    words = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", types.NoneType: "null"}
    return words.get(hint, "an object")


def check_keys(value: Any, what: str, *, needed: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    """Raises UserError for a config that is no object, has a key that nobody reads or a value of another kind, or
    lacks a key that is needed. needed and other: types by key, as fits() knows them.
    """
    if not isinstance(value, dict):
        raise UserError(f"{what} is {value!r}, it must be an object of names and values", value=value)
    known = {**needed, **other}
    for key in value:
        if key not in known:
            raise unknown_name(f"{what} setting", key, known)
    for key in needed:
        if key not in value:
            raise UserError(f"{what} setting {key!r} is missing", value=key)
    for key, entry in value.items():
        if not fits(known[key], entry):
            words = words_for(known[key])
            raise UserError(f"{what} setting {key!r} is {entry!r}, it must be {words}", value=entry)
