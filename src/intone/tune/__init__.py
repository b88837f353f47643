"""Every "auto" becomes a value with a reason, by measuring on this machine"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from intone.tune.find import BatchChoice, find_batch

__all__ = ["BatchChoice", "find_batch"]


def __getattr__(name: str) -> Any:
    """The tuner for other people's training steps, imported at first use."""
    if name in __all__:
        from intone.tune import find

        return getattr(find, name)
    raise AttributeError(f"module 'intone.tune' has no attribute {name!r}")
