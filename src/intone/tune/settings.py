"""What a person can ask of `intone tune infer`"""

from dataclasses import dataclass
from typing import Literal

from intone.fields import setting
from intone.settings import Checked


@dataclass(frozen=True, kw_only=True)
class TuneInferSettings(Checked):
    """`intone tune infer`: how many texts the engine runs at once here, and how much of their prompts in a step."""

    # run whose model is measured: NAME, NAME/STAGE, a path, or latest
    from_run: str = setting("latest", flag="from")
    # where to compute
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    # number format; auto: the one it was trained in
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    # how a CPU keeps matrices; auto: as chat and serve choose it for this run
    weights: Literal["auto", "fp32", "bf16", "int8"] = "auto"
    # measure again instead of reading what is kept
    fresh: bool = False
