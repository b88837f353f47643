"""nanochat's weights under our names: a common start for both sides and one evaluator for both, in a child process."""

import json
import sys
from pathlib import Path
from typing import Any

from intone.child import ChildFailed, ask_child
from intone.config import ModelConfig
from intone.errors import UserError

MODULE = "intone.bench.train_weights"
TIMEOUT_S = 3600.0
# nanochat's names (92d63d4) -> ours; {i} is the number of a block
NAMES = {
    "transformer.wte.weight": "embedding.weight",
    "lm_head.weight": "head.weight",
    "resid_lambdas": "residual_scale",
    "x0_lambdas": "embedding_scale",
    "smear_gate.weight": "smear_gate.weight",
    "smear_lambda": "smear_scale",
    "backout_lambda": "backout_scale",
    "value_embeds.{i}.weight": "value_embeddings.{i}.weight",
    "transformer.h.{i}.attn.c_q.weight": "blocks.{i}.attention.q.weight",
    "transformer.h.{i}.attn.c_k.weight": "blocks.{i}.attention.k.weight",
    "transformer.h.{i}.attn.c_v.weight": "blocks.{i}.attention.v.weight",
    "transformer.h.{i}.attn.c_proj.weight": "blocks.{i}.attention.out.weight",
    "transformer.h.{i}.attn.ve_gate.weight": "blocks.{i}.attention.value_gate.weight",
    "transformer.h.{i}.mlp.c_fc.weight": "blocks.{i}.mlp.up.weight",
    "transformer.h.{i}.mlp.c_proj.weight": "blocks.{i}.mlp.down.weight",
}


def save_start(model: ModelConfig, weights: Path, job_folder: Path, tokenizer_hash: str) -> None:
    """Writes nanochat's weights as the save of a job that others can start from. Raises UserError."""
    ask({"do": "start", "model": model.as_json(), "weights": str(weights), "folder": str(job_folder),
         "tokenizer_hash": tokenizer_hash})  # fmt: skip


def score(rows: Path, *, job_folder: Path | None = None, model: ModelConfig | None = None,
          weights: Path | None = None, num_rows: int | None = None) -> dict[str, Any]:  # fmt: skip
    """{"nats": [...], "bytes": [...]} per validation row, in fp32: of a job's newest save, or of nanochat's weights.

    Ours sees the documents of a row apart, as it was trained; nanochat's model sees the row as one text, as it was.
    Raises UserError.
    """
    return ask({
        "do": "score", "rows": str(rows), "folder": None if job_folder is None else str(job_folder),
        "model": None if model is None else model.as_json(), "weights": None if weights is None else str(weights),
        "num_rows": num_rows,
    })  # fmt: skip


def ask(question: dict[str, Any]) -> dict[str, Any]:
    try:
        return ask_child(MODULE, question, timeout_s=TIMEOUT_S)
    except ChildFailed as failure:
        raise UserError(f"the weights could not be read or scored: {failure}", value=question["do"]) from failure


def mapped_names(model: ModelConfig) -> dict[str, str]:
    """nanochat's name -> ours for every tensor of this model."""
    names = {}
    for theirs, ours in NAMES.items():
        for i in range(model.depth) if "{i}" in theirs else [None]:
            is_table = "value_embeds" in theirs or "ve_gate" in theirs
            if i is None or not is_table or model.has_value_embedding(i):
                names[theirs.format(i=i)] = ours.format(i=i)
    return names


def answer(question: dict[str, Any]) -> dict[str, Any]:
    """The child's side."""
    import numpy as np
    import torch

    from intone.data.loader import Batch
    from intone.evals.bpb import row_sums
    from intone.model.checkpoint import load_weights, save_checkpoint
    from intone.model.gpt import GPT

    if question.get("weights"):
        config = ModelConfig.from_json(question["model"])
        names = mapped_names(config)
        with np.load(question["weights"], allow_pickle=False) as arrays:
            unknown = set(arrays.files) ^ set(names)
            if unknown:
                raise SystemExit(f"{sorted(unknown)[0]} is only on one side: not nanochat at 92d63d4, or another shape")
            state = {names[name]: torch.from_numpy(arrays[name]) for name in arrays.files}
    else:
        config, state, _ = load_weights(Path(question["folder"]))
    model = GPT(config)
    model.load_state_dict(state)
    if question["do"] == "start":
        save_checkpoint(
            Path(question["folder"]), 0, model=config, weights=model.state_dict(), optimizer={}, state={},
            tokenizer_hash=question["tokenizer_hash"],
        )  # fmt: skip
        return {}
    folder = Path(question["rows"])
    ids, targets, documents = (
        np.load(folder / f"val_{name}.npy")[: question["num_rows"]] for name in ("ids", "targets", "documents")
    )
    if question.get("weights"):
        documents = np.zeros_like(documents)
    sums = row_sums(
        model, [Batch(ids, targets, documents)], np.load(folder / "token_bytes.npy"),
        device=torch.device("cpu"), dtype=torch.float32,
    )  # fmt: skip
    return {"nats": sums[:, 0].tolist(), "bytes": [int(size) for size in sums[:, 1]]}


if __name__ == "__main__":
    print(json.dumps(answer(json.load(sys.stdin))))
