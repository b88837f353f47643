"""One optimizer step: the rows of a step in micro-batches through the model, then the update."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from intone.data.loader import Batch
from intone.model.attention import fused_kernels
from intone.model.gpt import GPT
from intone.model.optim import Optimizer, StepScale
from intone.team import ALONE, Team

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# fp16 gradients below 6e-8 vanish: the loss is multiplied by this, halved after an overflow, doubled after 1,000
# good steps (Micikevicius et al. 2018, section 3.2)
FIRST_LOSS_SCALE = 2.0**15
GROW_EVERY = 1000


@dataclass(frozen=True)
class StepResult:
    """What a step says about itself, over all processes; tensors are on the device and not yet waited for."""

    loss_sum: Tensor  # () float32, nats over the supervised tokens
    num_supervised: int  # tokens that the mean loss is over
    finite: Tensor  # () bool: the update was applied

    def sync_loss(self) -> float | None:
        """Nats per supervised token; None where it is not finite or nothing was supervised. Waits for the device."""
        if self.num_supervised == 0:
            return None
        value = float(self.loss_sum) / self.num_supervised
        return value if np.isfinite(value) else None


@dataclass(frozen=True)
class Pending:
    """A step that was handed to the device."""

    result: StepResult
    batch: Batch
    lr: float
    begin_s: float
    data_s: float


def step_lag(device: torch.device, dtype: str) -> int:
    """How many steps later a loss is read: 1 on a device with a queue, which would otherwise run empty.

    fp16 needs to know at once whether a step overflowed: its loss scale must not depend on when it was read.
    """
    return 0 if device.type == "cpu" or dtype == "fp16" else 1


class TrainStep:
    """Runs steps with one plan: dtype, compiled or not, rows per micro-batch.

    The plan never changes the mathematics: gradients are those of the mean over all supervised tokens of the
    step, however the rows are split.
    """

    def __init__(
        self, model: GPT, optimizer: Optimizer, *, device: torch.device, dtype: str, device_batch: int, compiled: bool,
        by_block: bool = False, one_text: bool = False, team: Team = ALONE,
    ) -> None:  # fmt: skip
        """by_block: compile the blocks, which share their code, and leave what is around them eager.

        one_text: every row is one document, so that attention needs no mask for them.
        team: those who have the other rows of every step, and optimizers of the same team.
        """
        self.device_batch = device_batch
        self.compiled = compiled
        self.loss_scale = FIRST_LOSS_SCALE if dtype == "fp16" else 1.0
        self.good_steps = 0  # since the loss scale last changed
        self._device = device
        self._optimizer = optimizer
        self._team = team
        self._one_text = one_text
        self._parameters = list(model.parameters())
        self._model: nn.Module = model
        if compiled and torch.are_deterministic_algorithms_enabled():
            # tells the compiler too, and imports it: 2.4 s of a core that eager training does without
            torch.use_deterministic_algorithms(True)
        for block in model.blocks:
            block._compiled_call_impl = None  # of an earlier plan
            if compiled and by_block:
                block.compile(dynamic=False)
        if compiled and not by_block:
            self._model = torch.compile(model, dynamic=False)  # type: ignore[assignment]

    def run(self, batch: Batch, scale: StepScale) -> StepResult:
        """One step over the rows of batch, which is a team's share of the step. Does not wait for the device."""
        (num_supervised, num_rows) = self._team.sums(batch.num_counted, len(batch))
        loss_sum = torch.zeros((), device=self._device)
        if num_supervised == 0 or num_rows == 0:
            return StepResult(loss_sum, num_supervised, torch.tensor(True, device=self._device))
        factor = self.loss_scale / num_supervised
        for rows in micro_batches(batch, self.device_batch, padded=self.compiled):
            ids, targets = self._upload(rows.ids), self._upload(rows.targets)
            documents = None if self._one_text else self._upload(rows.documents)
            more = () if rows.weights is None else (self._upload(rows.weights),)
            with fused_kernels(self._device):
                part, _ = self._model(ids, targets, documents, *more)
            (part * factor).backward()
            loss_sum = loss_sum + part.detach()
        finite = self._unscale()
        if self._team.size > 1:
            both = torch.stack([loss_sum, (~finite).to(loss_sum.dtype)])
            self._team.sum_(both)
            loss_sum, finite = both[0], both[1] == 0
        finite = torch.isfinite(loss_sum) & finite
        self._optimizer.step(scale, finite)
        return StepResult(loss_sum, num_supervised, finite)

    def note_finite(self, applied: bool) -> None:
        """Adapts the fp16 loss scale to a step that is known by now; nothing to do for other dtypes."""
        if self.loss_scale == 1.0:
            return
        self.good_steps = self.good_steps + 1 if applied else 0
        if not applied:
            self.loss_scale = max(2.0, self.loss_scale / 2)
        elif self.good_steps == GROW_EVERY:
            self.loss_scale *= 2
            self.good_steps = 0

    def _unscale(self) -> Tensor:
        """Takes the loss scale out of the gradients -> () bool, whether all of them are finite.

        A finite loss can have gradients that are not; one such update would spoil the weights for good.
        """
        grads = [p.grad for p in self._parameters if p.grad is not None]
        if self.loss_scale != 1.0:
            torch._foreach_mul_(grads, 1.0 / self.loss_scale)
        return torch.isfinite(torch.stack(torch._foreach_norm(grads))).all()

    def _upload(self, array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        if self._device.type != "cuda":
            return tensor.to(self._device)
        # pinned memory belongs to PyTorch's caching host allocator, which keeps it until the copy is done
        return tensor.pin_memory().to(self._device, non_blocking=True)


def micro_batches(batch: Batch, device_batch: int, *, padded: bool) -> list[Batch]:
    """The rows of a step in balanced parts of at most device_batch rows.

    10 rows by 4 make 3 + 3 + 4. padded: every part gets the size of the largest, filled with rows in which
    nothing is learned, because compiled code knows one shape only.
    """
    rows = len(batch)
    parts = -(-rows // device_batch)
    size = -(-rows // parts)
    cuts = [rows * i // parts for i in range(parts + 1)]
    pieces = [batch.rows(a, b) for a, b in zip(cuts, cuts[1:], strict=False)]
    return [padded_batch(piece, size) for piece in pieces] if padded else pieces


def padded_batch(batch: Batch, rows: int) -> Batch:
    """The batch with rows appended in which nothing is learned."""
    missing = rows - len(batch)
    if missing <= 0:
        return batch

    def fill(array: np.ndarray, value: int) -> np.ndarray:
        return np.concatenate([array, np.full((missing, array.shape[1]), value, array.dtype)])

    weights = None if batch.weights is None else fill(batch.weights, 0)
    return Batch(fill(batch.ids, 0), fill(batch.targets, -1), fill(batch.documents, 0), weights)
