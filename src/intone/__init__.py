"""The package: its version, and the Python interface imported only when it is used."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from intone.api import compare, load, train

__version__ = "0.1.0"
__all__ = ["__version__", "compare", "load", "train"]


def __getattr__(name: str) -> Any:
    """The Python interface, imported at first use: `import intone` alone loads no torch."""
    if name in ("compare", "load", "train"):
        from intone import api

        return getattr(api, name)
    raise AttributeError(f"module 'intone' has no attribute {name!r}")
