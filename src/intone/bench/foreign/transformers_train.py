"""Trains transformers' NanoChatForCausalLM on rows of ours with AdamW, a block of steps at a time as it is told.

`PYTHON transformers_train.py --model FOLDER --rows FOLDER ...`: needs torch, numpy and transformers. The model's
FOLDER is what `intone export --format transformers` writes; rows are ids.npy, targets.npy (-1: not learned) and
documents.npy.
The first step's loss is computed once with the documents kept apart by a mask, as ours does (facts: masked_loss);
timed steps go without the mask, which is the fastest that transformers offers for packed rows.

One JSON object a line, as blocks.py of intone says.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch

RATE = 1e-4  # small: what is compared is time, and the weights must stay where losses are numbers
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Trainer:
    """The model, its optimizer, and the rows of every step in turn."""

    def __init__(self, asked: argparse.Namespace) -> None:
        from transformers import NanoChatForCausalLM

        if asked.threads:
            torch.set_num_threads(asked.threads)
        self.asked = asked
        self.rows = {name: np.load(asked.rows / f"{name}.npy") for name in ("ids", "targets", "documents")}
        dtype = DTYPES[asked.dtype]
        model = NanoChatForCausalLM.from_pretrained(asked.model, attn_implementation="sdpa").to(asked.device)
        model.config.use_cache = False
        self.num_parameters = sum(parameter.numel() for parameter in model.parameters())
        self.amp = dtype != torch.float32
        self.dtype = dtype
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, fused=True)
        self.model: Any = torch.compile(model) if asked.compile else model
        self.step = 0

    def loss_sum(self, first: int, count: int, *, masked: bool) -> torch.Tensor:
        """Nats over the learned tokens of some rows."""
        ids, targets, documents = (
            torch.from_numpy(np.ascontiguousarray(self.rows[name][first : first + count])).long().to(self.asked.device)
            for name in ("ids", "targets", "documents")
        )
        options: dict[str, Any] = {}
        if masked:
            length = ids.shape[1]
            causal = torch.ones(length, length, dtype=torch.bool, device=ids.device).tril()
            options["attention_mask"] = (causal & (documents[:, :, None] == documents[:, None, :]))[:, None]
        with torch.autocast(self.asked.device, self.dtype, enabled=self.amp):
            logits = self.model(input_ids=ids, use_cache=False, **options).logits
        flat = targets.flatten()
        # scan: ok[S40] as the losses of that library do it, and that is what is measured
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), flat, ignore_index=-1, reduction="sum")

    def batch(self, step: int) -> tuple[int, int]:
        """(first row, learned tokens) of a step; rows come round again where they end."""
        count = self.asked.rows_per_step
        first = step * count % (len(self.rows["ids"]) - count + 1)
        return first, int((self.rows["targets"][first : first + count] >= 0).sum())

    def masked_loss(self) -> float:
        """The loss of the first step before any update, documents kept apart."""
        first, learned = self.batch(0)
        with torch.no_grad():
            total = sum(float(self.loss_sum(first + part, count, masked=True)) for part, count in self.parts())
        return total / learned

    def parts(self) -> list[tuple[int, int]]:
        """(first row, rows) of the micro-batches of a step, counted from its first row."""
        whole, most = self.asked.rows_per_step, self.asked.micro_rows
        return [(begin, min(most, whole - begin)) for begin in range(0, whole, most)]

    def run(self, steps: int) -> dict[str, Any]:
        """So many optimizer steps -> the answer of a block."""
        wait(self.asked.device)
        begin_s, losses = time.perf_counter(), []
        for _ in range(steps):
            first, learned = self.batch(self.step)
            total = torch.zeros((), dtype=torch.float64, device=self.asked.device)  # read when the block is over
            for part, count in self.parts():
                loss = self.loss_sum(first + part, count, masked=False)
                (loss / learned).backward()
                total += loss.detach()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.step += 1
            losses.append(total / learned)
        wait(self.asked.device)
        seconds = time.perf_counter() - begin_s
        tokens = steps * self.asked.rows_per_step * self.rows["ids"].shape[1]
        return {"steps": steps, "seconds": seconds, "tokens": tokens, "losses": [float(loss) for loss in losses]}


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, type=Path)
    parser.add_argument("--rows", required=True, type=Path)
    parser.add_argument("--micro-rows", required=True, type=int)
    parser.add_argument("--rows-per-step", required=True, type=int)
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="fp32")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Speaks the protocol until it is told to quit -> exit status."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not stand among the answers
    try:
        trainer = Trainer(parse(argv))
        masked_loss = trainer.masked_loss()
        first_s, warm_s = (trainer.run(steps)["seconds"] for steps in (1, 2))
    except Exception as error:
        answer(answers, {"error": f"{type(error).__name__}: {error}", "outcome": "error", "fix": None})
        return 2
    import transformers

    facts = {"device": trainer.asked.device, "torch": torch.__version__, "transformers": transformers.__version__,
             "parameters": trainer.num_parameters, "masked_loss": masked_loss}  # fmt: skip
    answer(answers, {"ready": True, "first_s": first_s, "warm_s": warm_s, "facts": facts})
    for line in sys.stdin:
        question = json.loads(line)
        if question["do"] == "quit":
            break
        answer(answers, trainer.run(question["steps"]))
    return 0


def answer(answers: TextIO, value: dict[str, Any]) -> None:
    answers.write(json.dumps(value) + "\n")
    answers.flush()


if __name__ == "__main__":
    sys.exit(main())
