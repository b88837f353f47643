"""How much memory the cache gets where nobody said, and why."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from intone.config import ModelConfig
from intone.engine.kv import PageGroup
from intone.engine.pages import PAGE
from intone.errors import UserError
from intone.log import human_bytes
from intone.system import memory

# the rest is for weights still being read, activations and everybody else on the machine (guess)
FREE_SHARE = 0.5
UNKNOWN_BYTES = 1 << 30  # where the system does not say what is free (guess)
# copies of half-filled pages: one for a prompt that waits for its other samples, one for the sample that goes on
SPARE_PAGES = 2


@dataclass(frozen=True)
class CacheSize:
    """Pages per group, their bytes, and the reason in words."""

    num_pages: tuple[int, ...]
    bytes: int
    reason: str


def page_bytes(config: ModelConfig, group: PageGroup, dtype: torch.dtype) -> int:
    """Bytes of one page: keys and values of PAGE tokens in all blocks of the group."""
    return PAGE * 2 * config.num_kv_heads * config.head_width * len(group.blocks) * dtype.itemsize


def pages_per_text(group: PageGroup, *, context: int, step_tokens: int) -> int:
    """Pages that a text of the whole context holds at its worst moment, with step_tokens being written."""
    whole = -(-context // PAGE)
    if group.reach is None:
        return whole
    return min(whole, -(-(group.reach + step_tokens) // PAGE) + 1)


def settle_cache(
    config: ModelConfig, groups: Sequence[PageGroup], *, context: int, num_slots: int, step_tokens: int,
    dtype: torch.dtype, device: torch.device, cache_bytes: int | None,
) -> CacheSize:  # fmt: skip
    """Room for num_slots texts of the whole context if memory allows, less in proportion if not.

    Raises UserError where not even one such text fits.
    """
    per_text = [pages_per_text(group, context=context, step_tokens=step_tokens) for group in groups]
    sizes = [page_bytes(config, group, dtype) for group in groups]
    text_bytes = sum(count * size for count, size in zip(per_text, sizes, strict=True))
    spare_bytes = SPARE_PAGES * sum(sizes)
    wanted = num_slots * text_bytes + spare_bytes
    limit, source = _limit(device, cache_bytes)
    if limit < text_bytes + spare_bytes:
        raise UserError(
            f"the cache may have {human_bytes(limit)} ({source}), but one text of {context:,} tokens takes "
            f"{human_bytes(text_bytes + spare_bytes)}",
            value=limit,
            fix="choose a smaller context, or give the cache more memory",
        )
    share = min(1.0, (limit - spare_bytes) / (num_slots * text_bytes))
    num_pages = tuple(max(count, int(count * num_slots * share)) + SPARE_PAGES for count in per_text)
    total = sum(count * size for count, size in zip(num_pages, sizes, strict=True))
    if wanted <= limit:
        reason = f"{num_slots:,} texts of {context:,} tokens; {human_bytes(limit)} would be allowed ({source})"
    else:
        reason = f"{source}; {num_slots:,} texts of {context:,} tokens would take {human_bytes(wanted)}"
    return CacheSize(num_pages, total, reason)


def _limit(device: torch.device, cache_bytes: int | None) -> tuple[int, str]:
    """Bytes that the cache may have, and why."""
    if cache_bytes is not None:
        return cache_bytes, "as asked"
    if device.type == "cuda":
        free: int | None = torch.cuda.mem_get_info(device)[0]
    else:
        free = memory()[1]
    if free is None:
        return UNKNOWN_BYTES, "free memory is unknown"
    return int(free * FREE_SHARE), f"half of the {human_bytes(free)} that are free"
