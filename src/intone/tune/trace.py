"""Traces a training step without computing it: the bytes of all tensors that are alive at its worst moment.

The real model, autograd graph and optimizer run on tensors that have shapes and no contents, so that nothing about what
is kept for the backward pass is assumed. It is code that is not compiled, on a CPU, PyTorch's or our kernels, which are
then not called; of what kernels use inside, only the copies that products pack are counted, from the calls. traced()
asks the child (`python -m intone.tune.trace`).
"""

import contextlib
import dataclasses
import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from intone.child import ask_child
from intone.config import ModelConfig, OptimConfig

if TYPE_CHECKING:
    from torch import Tensor

    from intone.model.gpt import GPT
    from intone.model.optim import Optimizer

TIMEOUT_S = 120.0  # depth 24 takes a tenth of it on one core


@dataclasses.dataclass(frozen=True)
class Worst:
    """Bytes at the worst moment of a pass and of an update, beside weights and moments; gradients are in both."""

    pass_bytes: int
    update_bytes: int
    packed_bytes: int = 0  # beside them: the largest copy that our products pack, kept from the first step on

    @property
    def growth_bytes(self) -> int:
        return max(self.pass_bytes, self.update_bytes)


def traced(
    config: ModelConfig, rows: list[int], *, dtype: str, head_pieces: int = 1, kernels: str = "torch"
) -> list[Worst]:
    """What a step takes for each of these numbers of rows of config.context tokens. Raises ChildFailed."""
    question = {"config": config.as_json(), "rows": rows, "dtype": dtype, "head_pieces": head_pieces,
                "kernels": kernels}  # fmt: skip
    answer = ask_child("intone.tune.trace", question, timeout_s=TIMEOUT_S)
    return [Worst(**entry) for entry in answer["worst"]]


def measure(config: dict[str, Any], rows: list[int], dtype: str, head_pieces: int, kernels: str) -> dict[str, Any]:
    """The child's side of traced()."""
    shape = ModelConfig.from_json(config)
    found = [trace(shape, number, dtype=dtype, head_pieces=head_pieces, kernels=kernels) for number in rows]
    return {"worst": [dataclasses.asdict(worst) for worst in found]}


def trace(config: ModelConfig, rows: int, *, dtype: str, head_pieces: int = 1, kernels: str = "torch") -> Worst:
    """Two steps of two passes, every token learned: the second finds everything that a step leaves behind."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    from intone.model.gpt import GPT
    from intone.model.optim import Optimizer

    with not_called() as packed, FakeTensorMode(allow_non_fake_inputs=True):
        model = GPT(config)
        model.compute_dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
        model.head_pieces = head_pieces
        optimizer = Optimizer(model, OptimConfig())
        model.kernels = optimizer.kernels = kernels  # type: ignore[assignment]
        worst = worst_of(model, optimizer, torch.zeros(rows, config.context, dtype=torch.int32))
    return dataclasses.replace(worst, packed_bytes=max(packed, default=0))


def worst_of(model: "GPT", optimizer: "Optimizer", ids: "Tensor") -> Worst:
    """Two steps of two passes over ids (B, T), with or without contents -> the worst moments of the second."""
    from intone.model.optim import StepScale

    there = [*model.parameters(), *model.buffers(), *optimizer.state_tensors().values(), ids]
    with live_bytes(there) as live:
        for _ in range(2):
            live.forget_peak()
            for _ in range(2):
                loss, _ = model(ids, ids, ids)
                loss.backward()
                del loss
            pass_bytes = live.peak_bytes
            live.forget_peak()
            optimizer.step(StepScale(1.0, 0.9, 1.0))
            update_bytes = live.peak_bytes
    return Worst(pass_bytes, update_bytes)


@contextlib.contextmanager
def not_called() -> Iterator[list[int]]:
    """Within it our kernels are not called: they work in place on what the caller has allocated.

    Yields the bytes of the copies that products would have packed; a thread keeps the largest (ops.packed_bytes).
    """
    from intone.model import optim
    from intone.model.native import ops

    real, packed = ops.call, list[int]()

    def noted(name: str, *arguments: Any, **_: Any) -> None:
        if name == "intone_product":
            packed.append(ops.packed_bytes(*arguments[4:6]))

    ops.call = optim.call = noted
    try:
        yield packed
    finally:
        ops.call = optim.call = real


def live_bytes(there: "list[Tensor]") -> Any:
    """A context manager with peak_bytes: what tensors made within it held at most at one time, since forget_peak().

    there: tensors from before, which do not count, also where something made within is a view of one of them.
    """
    import torch
    from torch import Tensor
    from torch._subclasses.fake_tensor import FakeTensor
    from torch.multiprocessing.reductions import StorageWeakRef
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_iter

    local_scalar = torch.ops.aten._local_scalar_dense.default

    class LiveBytes(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.peak_bytes = self.bytes = 0
            self._known: dict[int, tuple[StorageWeakRef, int]] = {}
            for tensor in there:
                storage = tensor.untyped_storage()
                self._known[storage._cdata] = (StorageWeakRef(storage), 0)

        def forget_peak(self) -> None:
            self._sweep()
            self.peak_bytes = self.bytes

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is local_scalar and isinstance(args[0], FakeTensor):
                return True if args[0].dtype is torch.bool else 1  # nobody knows: all is learned, finite, and one
            out = func(*args, **(kwargs or {}))
            for tensor in tree_iter(out):
                if isinstance(tensor, Tensor):
                    self._add(tensor)
            if self.bytes > self.peak_bytes:  # what died since the last look is still counted: look again
                self._sweep()
                self.peak_bytes = max(self.peak_bytes, self.bytes)
            return out

        def _add(self, tensor: Tensor) -> None:
            storage = tensor.untyped_storage()
            known = self._known.get(storage._cdata)
            if known is not None:
                if not known[0].expired():
                    return
                self.bytes -= known[1]
            self._known[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
            self.bytes += storage.nbytes()

        def _sweep(self) -> None:
            for key in [key for key, (reference, _) in self._known.items() if reference.expired()]:
                self.bytes -= self._known.pop(key)[1]

    return LiveBytes()


if __name__ == "__main__":
    print(json.dumps(measure(**json.load(sys.stdin))))
