"""Makes the numbers in tests/exchange/fixtures by running the reference code of a checkout beside ours.

    python -m tests.exchange.make_fixtures --case modern --checkout PATH [--out FOLDER] [--keep FOLDER] [--large]

PATH is a checkout of nanochat at the revision of the case (reference.CASES), with its requirements installed; for the
case `transformers` none is needed. nanochat writes its own checkpoint and tokenizer into --keep (default: thrown away),
reads them back as its chat does, and computes. --large: a model of depth 4 with 65,536 entries instead of the tiny one.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tests.exchange.reference import (
    CASES,
    FIXTURES,
    NUM_GREEDY,
    PROMPT_LENGTH,
    Case,
    encoding,
    is_table,
    sample_ids,
    weights_for,
)  # fmt: skip

POSITIONS = (0, 1, 2, 3, 5, 17, 64, 95, 96, 97, 98, 127, 128, 129, 130, 131, 150, 160, 169, 170)
LENGTH = 171  # odd, and beyond every short window of a context of 192
LARGE = {"sequence_len": 2048, "vocab_size": 65_536, "n_layer": 4, "n_head": 2, "n_kv_head": 2, "n_embd": 256}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--case", choices=CASES, required=True)
    parser.add_argument("--checkout", type=Path)
    parser.add_argument("--out", type=Path, default=FIXTURES)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--large", action="store_true")
    asked = parser.parse_args()
    torch.manual_seed(0)
    case = CASES[asked.case]
    with tempfile.TemporaryDirectory() as scratch:
        keep = asked.keep or Path(scratch)
        if asked.case == "transformers":
            result = by_transformers(case, keep)
        else:
            result = by_nanochat(case, asked.checkout, keep, is_large=asked.large)
    logits = result.pop("logits")
    asked.out.mkdir(parents=True, exist_ok=True)
    save_file({"logits": logits.contiguous()}, asked.out / f"{asked.case}.safetensors")
    facts = {
        "reference": "transformers" if asked.case == "transformers" else "nanochat",
        "revision": case.revision, "torch": torch.__version__, "machine": platform.machine(), **result,
    }  # fmt: skip
    lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(value)}" for name, value in facts.items())
    (asked.out / f"{asked.case}.json").write_text(f"{{\n{lines}\n}}\n")


def by_nanochat(case: Case, checkout: Path, keep: Path, *, is_large: bool) -> dict[str, Any]:
    """Writes a checkpoint with nanochat's code, loads it with nanochat's code, and runs its model and engine."""
    os.environ["NANOCHAT_BASE_DIR"] = str(keep)
    sys.path.insert(0, str(checkout))
    sys.modules["rustbpe"] = types.ModuleType("rustbpe")  # trains tokenizers: not needed, not everywhere installed
    from nanochat.checkpoint_manager import build_model, save_checkpoint  # type: ignore[import-not-found]
    from nanochat.engine import Engine  # type: ignore[import-not-found]
    from nanochat.gpt import GPT, GPTConfig  # type: ignore[import-not-found]
    from nanochat.tokenizer import RustBPETokenizer  # type: ignore[import-not-found]

    shape = {**case.config, **(LARGE if is_large else {})}
    RustBPETokenizer(encoding(shape["vocab_size"] - 9), "<|bos|>").save(str(keep / "tokenizer"))
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in GPT(GPTConfig(**shape)).state_dict().items()}
    weights = weights_for(shapes, case.seed)
    stored = {name: value.bfloat16() if is_table(name) else value for name, value in weights.items()}
    meta = {"step": 7, "val_bpb": 1.5, "model_config": shape, "user_config": {"run": "dummy"}}
    folder = keep / "chatsft_checkpoints" / f"d{shape['n_layer']}"
    save_checkpoint(str(folder), 7, stored, None, meta)
    model, tokenizer, _ = build_model(str(folder), 7, torch.device("cpu"), "eval")
    ids = sample_ids(LENGTH, shape["vocab_size"], case.seed)
    greedy = None
    if case.engine:
        new = Engine(model, tokenizer).generate(ids[:PROMPT_LENGTH], max_tokens=NUM_GREEDY, temperature=0.0)
        greedy = [column[0] for column, _ in new]
        assert len(greedy) == NUM_GREEDY, "the text ended early: choose another seed"
    with torch.no_grad():
        logits = model(torch.tensor([ids]))[0, list(POSITIONS)].float()
    names = {name: [str(value.dtype).removeprefix("torch."), *value.shape] for name, value in stored.items()}
    return {"names": names, "meta": meta, "positions": POSITIONS, "greedy": greedy, "logits": logits}


def by_transformers(case: Case, keep: Path) -> dict[str, Any]:
    """Saves and loads the model by transformers, and runs it."""
    from transformers import AutoModelForCausalLM, NanoChatConfig, NanoChatForCausalLM

    shape = case.config
    config = NanoChatConfig(
        vocab_size=shape["vocab_size"], hidden_size=shape["n_embd"], intermediate_size=4 * shape["n_embd"],
        num_hidden_layers=shape["n_layer"], num_attention_heads=shape["n_head"],
        num_key_value_heads=shape["n_kv_head"], max_position_embeddings=shape["sequence_len"],
    )  # fmt: skip
    model = NanoChatForCausalLM(config)
    weights = weights_for({name: tuple(value.shape) for name, value in model.state_dict().items()}, case.seed)
    model.load_state_dict(weights)
    model.save_pretrained(keep)
    model = AutoModelForCausalLM.from_pretrained(keep).eval()
    ids = torch.tensor([sample_ids(LENGTH, shape["vocab_size"], case.seed)])
    with torch.no_grad():
        logits = model(ids).logits[0, list(POSITIONS)].float()
    prompt = ids[:, :PROMPT_LENGTH]
    ends = {"eos_token_id": None, "pad_token_id": 0}
    whole = model.generate(prompt, max_new_tokens=NUM_GREEDY, do_sample=False, **ends)
    names = {name: ["float32", *value.shape] for name, value in weights.items()}
    meta = json.loads((keep / "config.json").read_text())
    greedy = whole[0, PROMPT_LENGTH:].tolist()
    return {"names": names, "meta": meta, "positions": POSITIONS, "greedy": greedy, "logits": logits}


if __name__ == "__main__":
    main()
