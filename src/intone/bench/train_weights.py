"""nanochat's weights under our names: a common start for both sides and one evaluator for both, in a child process."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from intone.child import ChildFailed, ask_child
from intone.config import ModelConfig
from intone.errors import UserError

if TYPE_CHECKING:
    from intone.model.gpt import GPT

MODULE = "intone.bench.train_weights"
TIMEOUT_S = 3600.0  # a large validation text in fp32 takes minutes


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


# --- the child's side -------------------------------------------------------------------------------------------------


def answer(question: dict[str, Any]) -> dict[str, Any]:
    """What ask() returns."""
    from intone.model.checkpoint import load_weights, save_checkpoint
    from intone.model.gpt import GPT

    if question.get("weights"):
        model = foreign_model(ModelConfig.from_json(question["model"]), Path(question["weights"]))
    else:
        config, state, _ = load_weights(Path(question["folder"]))
        model = GPT(config)
        model.load_state_dict(state)
    if question["do"] == "score":
        rows = Path(question["rows"])
        return row_scores(model, rows, question["num_rows"], as_one_text=bool(question.get("weights")))
    save_checkpoint(
        Path(question["folder"]), 0, model=model.config, weights=model.state_dict(), optimizer={}, state={},
        tokenizer_hash=question["tokenizer_hash"],
    )  # fmt: skip
    return {}


def foreign_model(config: ModelConfig, path: Path) -> "GPT":
    """Our model with the weights of an .npz file under nanochat's names. Exits where a name has no partner."""
    import numpy as np
    import torch

    from intone.exchange.nanochat import their_name
    from intone.model.gpt import GPT

    model = GPT(config)
    ours = {their_name(name): name for name, _ in model.named_parameters()}
    with np.load(path, allow_pickle=False) as arrays:
        found = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    strange = sorted(found.keys() ^ ours.keys())
    if strange:
        raise SystemExit(f"{strange[0]} is only on one side: not nanochat at 92d63d4, or another shape")
    model.load_state_dict({ours[name]: tensor for name, tensor in found.items()})
    return model


def row_scores(model: "GPT", folder: Path, num_rows: int | None, *, as_one_text: bool) -> dict[str, Any]:
    """score() of a model; as_one_text: every token sees all before it in its row, whatever document they are of."""
    import numpy as np
    import torch

    from intone.data.loader import Batch
    from intone.evals.bpb import row_sums

    ids, targets, documents = (
        np.load(folder / f"val_{name}.npy")[:num_rows] for name in ("ids", "targets", "documents")
    )
    if as_one_text:
        documents = np.zeros_like(documents)
    token_bytes = np.load(folder / "token_bytes.npy")
    batch = Batch(ids, targets, documents)
    sums = row_sums(model, [batch], token_bytes, device=torch.device("cpu"), dtype=torch.float32)
    return {"nats": sums[:, 0].tolist(), "bytes": [int(size) for size in sums[:, 1]]}


if __name__ == "__main__":
    print(json.dumps(answer(json.load(sys.stdin))))
