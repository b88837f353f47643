"""Estimates what a training step needs, from the shape alone: enough to avoid what cannot fit.

training_bytes() is arithmetic, for PyTorch's operations: growth of resident memory over one forward and backward pass
on a 2-core CPU with torch 2.13 (preset modern, packed rows). worker_bytes() starts from a trace of the step's tensors
(trace.py), for our CPU kernels. tests/tune/test_memory.py holds the points of both and how far off they are.
"""

from intone.config import ModelConfig
from intone.model.cost import num_parameters, training_state_bytes

BASE_BYTES = 400 * 2**20  # interpreter and torch, before the model; CUDA's context is about as large
# bytes per token and block width, and per token and vocabulary entry, at the worst moment (measured as said above)
BYTES_PER_CHANNEL = {("fp32", False): 105, ("bf16", False): 80, ("fp32", True): 70, ("bf16", True): 35}
BYTES_PER_LOGIT = {("fp32", False): 38, ("bf16", False): 38, ("fp32", True): 7, ("bf16", True): 6}
OUTER_BLOCKS = 1.2  # embedding, first and middle streams and final norm, counted in blocks
MASK_BYTES = 8  # per query and key of a row: boolean masks of two window sizes and the kernel's float copy
STACK_BYTES = 8  # per matrix parameter: the optimizer stacks weights and gradients of one shape


# of a worker on our CPU kernels in fp32, whatever its allocator: fitted on an EPYC 7003 to the first shapes that
# tests/tune/test_memory.py names. Huge pages and the C library's own way took up to 4 % less or more than memory kept
PROCESS_BYTES = 240 * 2**20  # interpreter, torch and our kernels, before the model
STATE_HOLES = 1.03  # resident bytes over those of weights and moments
FIRST_STEP_BYTES = 72 * 2**20  # what the first steps touch once: libraries' pages and buffers, holes that stay
HOLES = 1.3  # the same of what a pass makes and frees: slivers of aligned pieces keep freed neighbours apart (LOG.md)
UPDATE_BYTES = 3  # per matrix parameter: of what the update makes and frees, passes reuse a part only


def worker_bytes(config: ModelConfig, live_bytes: int, packed_bytes: int) -> tuple[int, int]:
    """(resident bytes of a worker before its first step, growth at the worst moment of steps of two passes or more).

    live_bytes: of all tensors alive at that moment beside weights and moments, gradients included. packed_bytes: of
    the copy that our products keep, counted from their shapes and no part of the fit. Both are in trace.Worst.
    Left out: 0.2 MiB a thread for the other side of a product.
    """
    sizes = num_parameters(config)
    grads = 4 * sizes["total"]
    start = PROCESS_BYTES + int(STATE_HOLES * (training_state_bytes(config) - grads))
    once = FIRST_STEP_BYTES + UPDATE_BYTES * sizes["matrices"] + packed_bytes
    return start, once + grads + int(HOLES * (live_bytes - grads))


def training_bytes(config: ModelConfig, device_batch: int, *, dtype: str, compiled: bool) -> int:
    """Bytes at the worst moment of a training step with rows of config.context tokens, compiling left out.

    dtype fp32, bf16 or fp16.
    """
    return fixed_bytes(config) + int(device_batch * config.context * bytes_per_token(config, dtype, compiled))


def bytes_per_token(config: ModelConfig, dtype: str, compiled: bool) -> float:
    """Activations and their gradients at the worst moment, per token of a pass."""
    case = ("fp32" if dtype == "fp32" else "bf16", compiled)
    blocks = (config.depth + OUTER_BLOCKS) * config.width * BYTES_PER_CHANNEL[case]
    return blocks + config.padded_vocab * BYTES_PER_LOGIT[case] + config.context * MASK_BYTES


def fixed_bytes(config: ModelConfig) -> int:
    """The part that does not depend on the micro-batch: process, weights, gradients, optimizer."""
    return BASE_BYTES + training_state_bytes(config) + STACK_BYTES * num_parameters(config)["matrices"]
