"""The rules of the scan; importing this package enters all of them into the rulebook."""

from intone.optimise.scan.rules import (
    accumulation,
    batching,
    cache,
    compiling,
    copies,
    data_order,
    devices,
    evaluation,
    files,
    packing,
    randomness,
    recasting,
    sampling,
    syncs,
)

__all__ = [
    "accumulation",
    "batching",
    "cache",
    "compiling",
    "copies",
    "data_order",
    "devices",
    "evaluation",
    "files",
    "packing",
    "randomness",
    "recasting",
    "sampling",
    "syncs",
]
