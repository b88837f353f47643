"""What fixtures and tests share: the weights that both sides use, the little tokenizer, the ids, the cases."""

import hashlib
import json
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tiktoken
import torch
from safetensors.torch import load_file
from torch import Tensor

FIXTURES = Path(__file__).parent / "fixtures"
SPECIALS = (
    "<|bos|>", "<|user_start|>", "<|user_end|>", "<|assistant_start|>", "<|assistant_end|>",
    "<|python_start|>", "<|python_end|>", "<|output_start|>", "<|output_end|>",
)  # fmt: skip
MERGES = (b"th", b"the", b" t", b" the", b"in")
VOCAB_SIZE = 256 + len(MERGES) + len(SPECIALS)  # 270: no multiple of 64
# nanochat 92d63d4, nanochat/tokenizer.py
PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
PROMPT_LENGTH, NUM_GREEDY = 150, 40  # of the continuation by the reference's own engine; the short window is 96 to 128
SHAPE = {"sequence_len": 192, "vocab_size": VOCAB_SIZE, "n_layer": 3, "n_head": 4, "n_kv_head": 4, "n_embd": 64}


@dataclass(frozen=True)
class Case:
    """One published architecture: the nanochat revision that computed the fixture, and the shape of the model."""

    revision: str
    config: Mapping[str, Any]
    seed: int
    engine: bool = True  # whether that revision's engine continues a text rightly on a CPU


CASES = {
    "classic": Case("01f5f10", SHAPE, seed=12),
    # its decoding on a CPU forgets the windows (fixed later): full passes only
    "january": Case("b62a5bc", {**SHAPE, "window_pattern": "SSSL"}, seed=2, engine=False),
    "march": Case("6ed7d1d", {**SHAPE, "window_pattern": "SSSL"}, seed=3),
    "modern": Case("92d63d4", {**SHAPE, "n_kv_head": 2, "window_pattern": "SSSL"}, seed=4),
    "transformers": Case("5.23.0", {**SHAPE, "n_kv_head": 2}, seed=8),
}


@dataclass(frozen=True)
class Fixture:
    """What the reference computed, read back."""

    names: dict[str, list[Any]]  # parameter -> dtype as the checkpoint stored it, then its shape
    meta: dict[str, Any]  # meta_*.json of nanochat, config.json of transformers
    logits: Tensor  # (P, V) float32, of the positions below
    positions: list[int]
    greedy: list[int] | None  # the ids after the first PROMPT_LENGTH, by the reference's engine

    def weights(self, seed: int) -> dict[str, Tensor]:
        """The weights the reference had, in the dtypes it stored."""
        made = weights_for({name: shape for name, (_, *shape) in self.names.items()}, seed)
        return {name: value.to(getattr(torch, self.names[name][0])) for name, value in made.items()}


def read_fixture(name: str, folder: Path = FIXTURES) -> Fixture:
    facts = json.loads((folder / f"{name}.json").read_text())
    logits = load_file(folder / f"{name}.safetensors")["logits"]
    return Fixture(facts["names"], facts["meta"], logits, facts["positions"], facts["greedy"])


def weights_for(shapes: Mapping[str, Sequence[int]], seed: int) -> dict[str, Tensor]:
    """Parameters that depend on name, shape and seed alone, bit for bit on every machine and in every release.

    Raw Philox words become uniforms; no library's normal distribution is involved. No part of the model is silent:
    products keep the scale of their input, the head is three times louder, scalars are away from 0 and 1.
    Tables are rounded to bfloat16, so that storing them in it loses nothing.
    """
    made = {}
    for name, shape in shapes.items():
        size = int(np.prod(shape))
        key = hashlib.sha256(f"{seed} {name}".encode()).digest()
        words = np.random.Philox(key=int.from_bytes(key[:16], "little")).random_raw(size)
        uniform = ((words >> np.uint64(40)).astype(np.float64) / 2**23 - 1.0).astype(np.float32).reshape(shape)
        value = torch.from_numpy(uniform)
        if "lambda" in name:
            center, reach = next(v for key, v in SCALARS.items() if key in name)
            made[name] = center + reach * value
        elif is_table(name):
            made[name] = (3**0.5 * value).bfloat16().float()
        else:
            gain = 3.0 if "lm_head" in name else 1.0
            made[name] = gain * (3 / shape[-1]) ** 0.5 * value
    return made


SCALARS = {"resid": (1.1, 0.2), "x0": (0.2, 0.3), "smear": (0.7, 0.1), "backout": (0.3, 0.1)}


def is_table(name: str) -> bool:
    """Whether nanochat keeps this parameter in bfloat16 on a GPU."""
    return any(part in name for part in ("wte", "value_embeds", "embed_tokens"))


def encoding(num_tokens: int = 256 + len(MERGES)) -> tiktoken.Encoding:
    """What nanochat's tokenizer.pkl holds. More tokens than MERGES has: pairs of bytes, in an order without meaning."""
    tokens = [bytes([value]) for value in range(256)] + list(MERGES)
    seen = set(tokens)
    for number in range(65_536):
        if len(tokens) >= num_tokens:
            break
        pair = bytes(divmod(number * 40_503 % 65_536, 256))
        if pair not in seen:
            tokens.append(pair)
    ranks = {token: rank for rank, token in enumerate(tokens[:num_tokens])}
    specials = {name: len(ranks) + number for number, name in enumerate(SPECIALS)}
    return tiktoken.Encoding("rustbpe", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=specials)


def sample_ids(length: int, vocab_size: int, seed: int) -> list[int]:
    """Ordinary ids, the first one <|bos|>; the same everywhere."""
    words = np.random.Philox(key=seed).random_raw(length - 1)
    ordinary = vocab_size - len(SPECIALS)
    return [ordinary, *(int(word % np.uint64(ordinary)) for word in words)]


def nanochat_folder(
    folder: Path, case: str, *, step: int = 7, weights: Mapping[str, Tensor] | None = None, meta: Any = None
) -> Path:
    """A checkpoint as nanochat's save_checkpoint writes it (same calls), with the tokenizer in nanochat's place.

    -> folder/chatsft_checkpoints/d3; the tokenizer is in folder/tokenizer.
    """
    fixture = read_fixture(case)
    place = folder / "chatsft_checkpoints" / "d3"
    place.mkdir(parents=True, exist_ok=True)
    torch.save(fixture.weights(CASES[case].seed) if weights is None else dict(weights), place / f"model_{step:06d}.pt")
    (place / f"meta_{step:06d}.json").write_text(json.dumps(fixture.meta if meta is None else meta, indent=2))
    (folder / "tokenizer").mkdir(exist_ok=True)
    (folder / "tokenizer" / "tokenizer.pkl").write_bytes(pickle.dumps(encoding()))
    return place
