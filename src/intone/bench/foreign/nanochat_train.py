"""Trains nanochat's model with nanochat's optimizer on rows of ours, a block of steps at a time as it is told.

`PYTHON nanochat_train.py --nanochat CHECKOUT --rows FOLDER ...`: needs torch, numpy and the checkout. Model, kernels,
compiling, optimizer and dtype rule are nanochat's; how its base_train puts them together (92d63d4) is done here in the
same order with the same numbers. Two things are not: rows come tokenised and packed from FOLDER, so that both sides
train on the same tokens, and the wait for the loss after each step is followed by reading all its parts.

One JSON object a line, as blocks.py of intone says: first {"ready": true, "first_s", "warm_s", "facts"}, then for each
{"do": "block", "steps": N} | {"do": "evaluate", "rows": N} | {"do": "weights", "path": P} on stdin one answer, until
{"do": "quit"}. What cannot be done: {"error", "outcome", "fix"} and exit status 2. NANOCHAT_DTYPE and OMP_NUM_THREADS
are read by nanochat and torch as ever.
"""

import argparse
import contextlib
import gc
import importlib
import json
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch

# nanochat 92d63d4, scripts/base_train.py: its defaults, by which everything scales
REFERENCE_DEPTH = 12
REFERENCE_BATCH_TOKENS = 2**19
TOKENS_PER_PARAMETER = 12
BATCH_EXPONENT = 0.383
RATES = {"unembedding_lr": 0.008, "embedding_lr": 0.3, "scalar_lr": 0.5, "matrix_lr": 0.02}
WEIGHT_DECAY = 0.28
WARMUP_STEPS = 40
WARMDOWN_SHARE = 0.65
FINAL_SHARE = 0.05
MOMENTUM = (0.85, 0.97, 0.90)  # at the start, after MOMENTUM_STEPS, at the end of the warmdown
MOMENTUM_STEPS = 400
SEED = 42
FIX = "git clone https://github.com/karpathy/nanochat && git -C nanochat checkout 92d63d4"
NEEDED = {"GPT": ("init_weights", "setup_optimizer", "num_scaling_params", "estimate_flops"), "GPTConfig": ()}


class Unusable(Exception):
    """Why this checkout, these rows or these numbers cannot be trained, and what to do about it."""

    def __init__(self, message: str, fix: str | None = None) -> None:
        super().__init__(message)
        self.fix = fix


@dataclass(frozen=True)
class Recipe:
    """What base_train derives from the model's size and the tokens of a step."""

    batch_tokens: int
    steps: int  # that the schedules run over
    rate_scale: float
    weight_decay: float

    def rate(self, step: int) -> float:
        """The factor on all learning rates at a step, counted from 0."""
        down = round(WARMDOWN_SHARE * self.steps)
        if step < WARMUP_STEPS:
            return (step + 1) / WARMUP_STEPS
        if step <= self.steps - down:
            return 1.0
        left = (self.steps - step) / down
        return left + (1 - left) * FINAL_SHARE

    def momentum(self, step: int) -> float:
        """Muon's momentum at a step."""
        first, middle, last = MOMENTUM
        down = round(WARMDOWN_SHARE * self.steps)
        begin = self.steps - down
        if step < MOMENTUM_STEPS:
            return first + (middle - first) * step / MOMENTUM_STEPS
        return middle if step < begin else middle + (last - middle) * (step - begin) / down

    def decay(self, step: int) -> float:
        """Muon's weight decay at a step."""
        return self.weight_decay * 0.5 * (1 + math.cos(math.pi * step / self.steps))


def recipe_for(size: int, reference_size: int, *, batch_tokens: int, steps: int) -> Recipe:
    """size, reference_size: parameters of matrices and head, of this model and of depth 12. 0: as nanochat derives."""
    tokens, reference_tokens = TOKENS_PER_PARAMETER * size, TOKENS_PER_PARAMETER * reference_size
    if not batch_tokens:
        wanted = REFERENCE_BATCH_TOKENS * (tokens / reference_tokens) ** BATCH_EXPONENT
        batch_tokens = 2 ** round(math.log2(wanted))
    scale = math.sqrt(batch_tokens / REFERENCE_BATCH_TOKENS)
    decay = WEIGHT_DECAY * scale * reference_tokens / tokens
    return Recipe(batch_tokens, steps or max(1, tokens // batch_tokens), scale, decay)


def import_nanochat(checkout: Path) -> tuple[Any, Any]:
    """(nanochat.gpt, nanochat.common) of the checkout. Raises Unusable where they are missing or of another version."""
    if not (checkout / "nanochat" / "gpt.py").is_file():
        raise Unusable(f"{checkout} is no checkout of nanochat: nanochat/gpt.py is missing", FIX)
    sys.path.insert(0, str(checkout))
    try:
        gpt, common = (importlib.import_module(f"nanochat.{name}") for name in ("gpt", "common"))
    except ImportError as error:
        raise Unusable(
            f"{sys.executable} cannot import nanochat from {checkout}: {error}",
            "install what is missing for that Python, or name another one",
        ) from error
    for name, methods in NEEDED.items():
        owner = getattr(gpt, name, None)
        missing = [name] if owner is None else [f"{name}.{part}" for part in methods if not hasattr(owner, part)]
        if missing:
            raise Unusable(f"nanochat in {checkout} has no {missing[0]}: it is another version", FIX)
    if not hasattr(common, "COMPUTE_DTYPE"):
        raise Unusable(f"nanochat in {checkout} has no COMPUTE_DTYPE: it is another version", FIX)
    return gpt, common


class Rows:
    """Rows of a folder made by our side: ids.npy, targets.npy (N, T) int32, val_*.npy, token_bytes.npy, rows.json."""

    def __init__(self, folder: Path) -> None:
        try:
            self.facts = json.loads((folder / "rows.json").read_text())
            names = ("ids", "targets", "val_ids", "val_targets", "token_bytes")
            self.ids, self.targets, self.val_ids, self.val_targets, self.token_bytes = (
                np.load(folder / f"{name}.npy", mmap_mode="r") for name in names
            )
        except (OSError, ValueError) as error:
            raise Unusable(f"the rows in {folder} cannot be read: {error}") from error


class Trainer:
    """nanochat's model and optimizer, and the state of its training loop."""

    def __init__(self, asked: argparse.Namespace) -> None:
        self.rows = Rows(asked.rows)
        self.gpt, self.common = import_nanochat(asked.nanochat)
        self.device = torch.device(asked.device)
        self.context, self.micro_rows, self.repeat = asked.context, asked.micro_rows, asked.repeat
        if self.rows.ids.shape[1] != self.context:
            raise Unusable(f"the rows have {self.rows.ids.shape[1]} tokens, --context is {self.context}")
        torch.manual_seed(asked.seed)
        if self.device.type == "cuda":
            torch.set_float32_matmul_precision("high")
        self.model = self._on_meta(asked, asked.depth)
        self.model.to_empty(device=self.device)
        self.model.init_weights()
        self.compiled = torch.compile(self.model, dynamic=False)
        self.recipe = recipe_for(
            scaling_size(self.model),
            scaling_size(self._on_meta(asked, REFERENCE_DEPTH)),
            batch_tokens=asked.batch_tokens,
            steps=asked.steps,
        )
        tokens_per_pass = self.micro_rows * self.context
        if self.recipe.batch_tokens % tokens_per_pass:
            raise Unusable(
                f"{self.recipe.batch_tokens:,} tokens per step are no multiple of {self.micro_rows} x {self.context}"
            )
        self.num_passes = self.recipe.batch_tokens // tokens_per_pass
        rates = {name: rate * self.recipe.rate_scale for name, rate in RATES.items()}
        rates["scalar_lr"] *= asked.scalar_rates
        self.optimizer = self.model.setup_optimizer(weight_decay=self.recipe.weight_decay, **rates)
        if asked.scalar_rates != 1:
            self._slow_gates(asked.scalar_rates)
        self.step = 0
        shape = (self.micro_rows, self.context)
        self.x, self.y = (torch.empty(shape, dtype=torch.long, device=self.device) for _ in range(2))

    def _on_meta(self, asked: argparse.Namespace, depth: int) -> Any:
        """A model of this depth without storage; its width is rounded up to whole heads."""
        heads = -(-depth * asked.aspect_ratio // asked.head_width)
        config = self.gpt.GPTConfig(
            sequence_len=self.context, vocab_size=asked.vocab_size, n_layer=depth, n_head=heads, n_kv_head=heads,
            n_embd=heads * asked.head_width, window_pattern=asked.window_pattern,
        )  # fmt: skip
        with torch.device("meta"):
            return self.gpt.GPT(config)

    def _slow_gates(self, factor: float) -> None:
        """Lowers the gates' rate, which is fixed in nanochat's code. Raises Unusable where none is found."""
        gate = getattr(self.model, "backout_lambda", None)
        groups = [group for group in self.optimizer.param_groups if any(p is gate for p in group.get("params", ()))]
        if not groups:
            raise Unusable("nanochat's optimizer has no group with backout_lambda: its rate cannot be lowered", FIX)
        for group in groups:
            group["initial_lr"] *= factor

    def facts(self) -> dict[str, Any]:
        """What somebody who reads a number of this program must know."""
        return {
            "parameters": {name: int(count) for name, count in self.model.num_scaling_params().items()},
            "flops_per_token": int(self.model.estimate_flops()),
            "dtype": str(self.common.COMPUTE_DTYPE).removeprefix("torch."),
            "width": self.model.config.n_embd,
            "windows": [int(window[0]) for window in self.model.window_sizes],
            "batch_tokens": self.recipe.batch_tokens,
            "steps": self.recipe.steps,
            "rate_scale": self.recipe.rate_scale,
            "weight_decay": self.recipe.weight_decay,
            "micro_rows": self.micro_rows,
            "threads": torch.get_num_threads(),
            "device": str(self.device),
            "torch": torch.__version__,
            "python": sys.version.split()[0],
        }

    def run_step(self) -> tuple[float, int]:
        """One optimizer step -> (mean loss over its supervised tokens, their number)."""
        first = self.step * self.num_passes * self.micro_rows
        losses, counts = [], []
        for number in range(self.num_passes):
            counts.append(self._load(first + number * self.micro_rows))
            loss = self.compiled(self.x, self.y)
            losses.append(loss.detach())
            (loss / self.num_passes).backward()
        recipe = self.recipe
        rate, momentum, decay = recipe.rate(self.step), recipe.momentum(self.step), recipe.decay(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * rate
            if group["kind"] == "muon":
                group["momentum"], group["weight_decay"] = momentum, decay
        self.optimizer.step()
        self.model.zero_grad(set_to_none=True)
        losses[-1].item()  # scan: ok[S30] base_train waits for the device here
        self.step += 1
        if self.step == 1:  # as base_train does: no collections from here on
            gc.collect()
            gc.freeze()
            gc.disable()
            reset_peak(self.device)
        return sum(float(loss) * n for loss, n in zip(losses, counts, strict=True)) / sum(counts), sum(counts)

    def _load(self, first: int) -> int:
        """Copies rows into the buffers of a pass -> supervised tokens. Raises Unusable behind the last row."""
        if self.repeat:
            first %= len(self.rows.ids) // self.micro_rows * self.micro_rows
        rows = slice(first, first + self.micro_rows)
        if rows.stop > len(self.rows.ids):
            raise Unusable(f"step {self.step + 1} needs row {rows.stop:,}, there are {len(self.rows.ids):,}")
        targets = self.rows.targets[rows]
        self.x.copy_(torch.from_numpy(self.rows.ids[rows].astype(np.int64)))
        self.y.copy_(torch.from_numpy(targets.astype(np.int64)))
        return int((targets >= 0).sum())

    def block(self, steps: int) -> dict[str, Any]:
        """Runs steps and times them together, the device waited for at both ends; first_step: steps done before."""
        first_step, losses, supervised = self.step, [], 0
        self._wait()
        begin_s = time.perf_counter()
        for _ in range(steps):
            loss, count = self.run_step()
            losses.append(loss if math.isfinite(loss) else None)
            supervised += count
        self._wait()
        seconds = time.perf_counter() - begin_s
        return {
            "steps": steps, "seconds": seconds, "tokens": steps * self.recipe.batch_tokens, "supervised": supervised,
            "losses": losses, "peak_bytes": peak_bytes(self.device), "first_step": first_step,
        }  # fmt: skip

    def warm_up(self, steps: int) -> tuple[float, float]:
        """(seconds of the first step, with compiling; of the others together); 0 where no step is asked for."""
        first_s = self.block(1)["seconds"] if steps else 0.0
        return first_s, self.block(steps - 1)["seconds"] if steps > 1 else 0.0

    @torch.no_grad()
    def evaluate(self, num_rows: int) -> dict[str, Any]:
        """Nats and bytes over the first validation rows; targets that are -1 or stand for no bytes count in neither."""
        sizes = torch.from_numpy(np.array(self.rows.token_bytes, dtype=np.int64)).to(self.device)
        nats = num_bytes = 0.0
        num_rows = min(num_rows, len(self.rows.val_ids))
        for begin in range(0, num_rows, self.micro_rows):
            part = slice(begin, min(begin + self.micro_rows, num_rows))
            x, y = (
                torch.from_numpy(array[part].astype(np.int64)).to(self.device)
                for array in (self.rows.val_ids, self.rows.val_targets)
            )
            loss = self.model(x, y, loss_reduction="none").view(y.shape).double()
            size = torch.where(y >= 0, sizes[y.clamp(min=0)], 0)
            nats += float((loss * (size > 0)).sum())
            num_bytes += int(size.sum())
        return {"nats": nats, "bytes": int(num_bytes), "rows": num_rows, "step": self.step}

    def write_weights(self, path: str) -> dict[str, Any]:
        """Every parameter as float32 in an .npz file under nanochat's own name."""
        arrays = {name: p.detach().float().cpu().numpy() for name, p in self.model.named_parameters()}
        np.savez(path, **arrays)  # scan: ok[S60] into a folder of one measurement, read after this is done
        return {"path": path, "tensors": len(arrays), "step": self.step}

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def scaling_size(model: Any) -> int:
    """Parameters of matrices and head, nanochat's measure of a model's size."""
    counts = model.num_scaling_params()
    return int(counts["transformer_matrices"] + counts["lm_head"])


def reset_peak(device: torch.device) -> None:
    """Starts the peak of memory anew, where the kernel allows it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes(device: torch.device) -> int | None:
    """Bytes at the worst moment: allocated on a GPU, else resident; None where unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return None


@contextlib.contextmanager
def own_channel() -> Iterator[TextIO]:
    """A stream of our own to stdout; whatever nanochat or torch print goes to stderr from here on."""
    sys.stdout.flush()
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    with channel:
        yield channel


def answer(trainer: Trainer, question: dict[str, Any]) -> dict[str, Any]:
    """What one line on stdin asks for. Raises Unusable for an unknown question."""
    kind = question.get("do")
    if kind == "block":
        return trainer.block(int(question["steps"]))
    if kind == "evaluate":
        return trainer.evaluate(int(question["rows"]))
    if kind == "weights":
        return trainer.write_weights(question["path"])
    raise Unusable(f"unknown question {kind!r}: block, evaluate, weights or quit")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="nanochat_train.py", description=__doc__)
    parser.add_argument("--nanochat", type=Path, required=True)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--depth", type=int, required=True)
    parser.add_argument("--context", type=int, required=True)
    parser.add_argument("--vocab-size", type=int, required=True)
    parser.add_argument("--aspect-ratio", type=int, default=64)
    parser.add_argument("--head-width", type=int, default=128)
    parser.add_argument("--window-pattern", default="SSSL")
    parser.add_argument("--batch-tokens", type=int, default=0, help="tokens per step; 0: by nanochat's rule")
    parser.add_argument("--steps", type=int, default=0, help="that the schedules run over; 0: by nanochat's rule")
    parser.add_argument("--micro-rows", type=int, default=32)
    parser.add_argument("--seed", type=int, default=SEED, help="of the random start")
    parser.add_argument("--scalar-rates", type=float, default=1.0, help="factor on the rates of scalars and gates")
    parser.add_argument("--warm", type=int, default=2, help="steps before the ready line")
    parser.add_argument("--repeat", action="store_true", help="begin with the first row again behind the last")
    parser.add_argument("--device", default="cpu")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """Serves questions until quit or the end of stdin -> exit status, 2 where something cannot be done."""
    asked = parse(argv)
    with own_channel() as channel:

        def send(value: dict[str, Any]) -> None:
            channel.write(json.dumps(value, allow_nan=False) + "\n")
            channel.flush()

        try:
            trainer = Trainer(asked)
            first_s, warm_s = trainer.warm_up(asked.warm)
            send({"ready": True, "first_s": first_s, "warm_s": warm_s, "facts": trainer.facts()})
            for line in sys.stdin:
                question = json.loads(line)
                if question.get("do") == "quit":
                    break
                send(answer(trainer, question))
        except Unusable as problem:
            send({"error": str(problem), "outcome": "bad_input", "fix": problem.fix})
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
