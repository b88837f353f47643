"""The training loop that base, mid and SFT share: it executes a plan and decides nothing."""

import sys
import types
from typing import Any


class _Door(types.ModuleType):
    """This package can be called: `intone.train("base", ...)` is the verb, also once the package is imported."""

    def __call__(self, stage: str, **settings: Any) -> Any:
        """intone.api.train: one stage of training from Python."""
        from intone.api import train

        return train(stage, **settings)


sys.modules[__name__].__class__ = _Door
