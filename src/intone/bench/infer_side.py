"""Our side of `intone bench infer`: an engine with random weights that answers blocks of prompts, timed.

`python -m intone.bench.infer_side '{"preset": ..., ...}'` speaks the protocol of blocks.py. A block is
{"prompts": [[ids]], "new_tokens": N}: all of them together -> {"seconds", "tokens", "ids" of the first text}.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from intone.bench.gpu_suites.synthetic import synthetic_tokenizer
from intone.blocks import Exchange, whole_number
from intone.config import ModelConfig, model_config
from intone.data.chat import SPECIALS
from intone.data.tokenizer import Tokenizer
from intone.engine.collector import spare_loaded
from intone.engine.engine import Engine
from intone.engine.load import DTYPES
from intone.engine.requests import Request
from intone.errors import UserError
from intone.model.checkpoint import save_checkpoint
from intone.model.gpt import GPT
from intone.records import Outcome

NUM_TEXTS = 48  # of the loads that are counted
SCALE = 0.02  # standard deviation of weights that a fresh model has at zero: no product may be skipped


def shape_of(asked: dict[str, Any]) -> ModelConfig:
    """The model that is measured: heads of 128 as nanochat has them, where the width allows it."""
    head_width = 128 if asked["depth"] % 2 == 0 else 64
    return model_config(
        asked["preset"],
        depth=asked["depth"],
        vocab_size=asked["vocab_size"],
        context=asked["context"],
        head_width=head_width,
    )


def random_model(config: ModelConfig, tokenizer: Tokenizer, seed: int = 0) -> GPT:
    """Random weights, none of them zero, that never end a text by themselves."""
    model = GPT(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, SCALE, generator=generator)
            else:
                parameter.fill_(0.1)
        if config.residual_scalars:
            model.residual_scale.fill_(1.0)
        # a logit of zero is never the largest of many around zero
        model.head.weight[[tokenizer.special(name) for name in SPECIALS]] = 0.0
    return model.eval().requires_grad_(False)


def make_requests(prompts: list[list[int]], new_tokens: int) -> list[Request]:
    return [Request(ids, max_tokens=new_tokens, temperature=0.0, tools=False) for ids in prompts]


def timed(engine: Engine, prompts: list[list[int]], new_tokens: int) -> dict[str, Any]:
    """All prompts together -> what was measured. Raises UserError where a text is shorter than asked for."""
    begin_s = time.perf_counter()
    answers = engine.generate(make_requests(prompts, new_tokens))
    seconds = time.perf_counter() - begin_s
    lengths = {len(completion.ids) for (completion,) in answers}
    if lengths != {new_tokens}:
        raise UserError(f"texts of {sorted(lengths)} tokens instead of {new_tokens}", value=sorted(lengths))
    return {"seconds": seconds, "tokens": len(prompts) * new_tokens, "ids": answers[0][0].ids}


def open_engine(asked: dict[str, Any]) -> tuple[Engine, GPT]:
    """The engine that a description asks for, and its model."""
    if asked["threads"]:
        torch.set_num_threads(asked["threads"])
    config = shape_of(asked)
    tokenizer = synthetic_tokenizer(config.vocab_size)
    model = random_model(config, tokenizer)
    model.compute_dtype = DTYPES[asked["dtype"]]
    if asked.get("export"):
        export(model, tokenizer, asked["export"])
    model.to(asked["device"])
    engine = Engine(model, tokenizer, num_slots=asked["slots"], weights=asked["weights"])
    spare_loaded()  # as every process of ours that generates
    return engine, model


def export(model: GPT, tokenizer: Tokenizer, folder: str) -> None:
    """The model as transformers loads it."""
    from safetensors.torch import save_file

    from intone.exchange import transformers_folder
    from intone.paths import write_json

    path = Path(folder)
    weights = transformers_folder.to_weights(dict(model.state_dict()), model.config.vocab_size)
    write_json(path / "config.json", transformers_folder.to_settings(model.config, tokenizer))
    # scan: ok[S60] into a folder of this measurement alone, read after this function is done
    save_file({name: value.contiguous() for name, value in weights.items()}, path / transformers_folder.WEIGHTS,
              metadata={"format": "pt"})  # fmt: skip


def save(asked: dict[str, Any], folder: Path) -> None:
    """A save that load_newest() reads, with its tokenizer beside it."""
    config = shape_of(asked)
    tokenizer = synthetic_tokenizer(config.vocab_size)
    tokenizer.save(folder / "tokenizer")
    weights = dict(random_model(config, tokenizer).state_dict())
    save_checkpoint(
        folder, 0, model=config, weights=weights, optimizer={}, state={}, tokenizer_hash=tokenizer.hash
    )  # fmt: skip


def cache_counts(asked: dict[str, Any], num_rounds: int) -> dict[str, Any]:
    """Per round, with new texts: the used share of held key and value bytes while texts of many lengths are written,
    and tokens fed to distinct ones where many prompts begin alike and have several samples."""
    asked = asked | {"depth": min(asked["depth"], 4), "vocab_size": min(asked["vocab_size"], 512)}
    config = shape_of(asked)
    tokenizer = synthetic_tokenizer(config.vocab_size)
    model = random_model(config, tokenizer)
    found: dict[str, Any] = {"kv_used_share": [], "prefill_ratio": []}
    reach = config.context
    for number in range(num_rounds):
        rng = np.random.default_rng(number)
        ordinary = config.vocab_size - len(SPECIALS)
        lengths = (reach * rng.beta(1, 3, NUM_TEXTS)).astype(int).clip(8, reach * 3 // 4)
        mixed = [
            Request(rng.integers(0, ordinary, length).tolist(), max_tokens=int(rng.integers(16, reach // 8)),
                    temperature=0.0, tools=False)
            for length in lengths
        ]  # fmt: skip
        systems = [rng.integers(0, ordinary, int(rng.integers(reach // 32, reach // 4))).tolist() for _ in range(4)]
        alike = [
            Request(systems[place % 4] + rng.integers(0, ordinary, int(rng.integers(4, 60))).tolist(), max_tokens=8,
                    temperature=1.0, n=1 + 3 * (place % 2), seed=place, tools=False)
            for place in range(NUM_TEXTS)
        ]  # fmt: skip
        for name, requests in (("kv_used_share", mixed), ("prefill_ratio", alike)):
            with Engine(model, tokenizer, num_guesses=0) as engine:
                engine.generate(requests)
                value = getattr(engine.stats(), name)
                assert value is not None, "there were steps"
                found[name].append(value)
    found["load"] = (
        f"depth {config.depth}; shares: {NUM_TEXTS} texts of 8 to {reach * 3 // 4:,} tokens; ratio: {NUM_TEXTS} "
        "prompts with 4 beginnings, 1 or 4 samples each"
    )
    return found


def main(words: list[str]) -> int:
    if words[0] == "--save":
        save(json.loads(words[2]), Path(words[1]))
        return 0
    if words[0] == "--cache":
        print(json.dumps(cache_counts(json.loads(words[2]), int(words[1]))))
        return 0
    exchange = Exchange.on_standard_streams()
    try:
        asked = json.loads(words[0])
        engine, _ = open_engine(asked)
        with engine:
            first_s = timed(engine, [[1, 2, 3]], 2)["seconds"]
            facts = {"torch": torch.__version__, "threads": torch.get_num_threads()}
            exchange.ready(first_s, 0.0, facts | {name: str(value) for name, (value, _) in engine.settings.items()})
            for block in exchange.blocks(("prompts", "new_tokens")):
                exchange.answer(timed(engine, block["prompts"], whole_number(block, "new_tokens")))
    except (UserError, RuntimeError, OSError) as error:
        exchange.fail(Outcome("error", None, str(error)))
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
