"""Why compiling may bring a training nothing, or why its authors know of it already."""

import re

from intone.optimise.scan.source import Module

# what measures a training for some steps may well want it as it is
MEASURES = re.compile(r"(^|[/_])(bench\w*|measure|profile\w*|v?ram|memory)([/_.]|$)")
REINFORCES = re.compile(r"\b(advantages?|reward_model|rewards?|ppo|grpo|rloo)\b", re.I)
GENERATES = re.compile(r"\.?generate\w*\(|rollout\w*\(")
QUANTIZED = re.compile(r"^(import|from) (auto_?gptq|gptqmodel|bitsandbytes)\b|load_in_[48]bit\s*=\s*True", re.M)
SWITCH = re.compile(r"use_compile|args\.compile|cfg\.compile|config\.compile|--compile|compile_model")


def why_useless(module: Module, *, is_tried: bool) -> str | None:
    """Why compiling the training of a file may bring nothing, in words; None where nothing says so.

    is_tried: the program compiles, though without effect on this training.
    """
    if MEASURES.search(module.path):
        return "it measures"
    if module.mentions(REINFORCES) and module.mentions(GENERATES):
        return "texts are written for each update, and that takes most of the time"
    if module.mentions(QUANTIZED):
        return "quantized weights have kernels of their own"
    if not is_tried and module.mentions(SWITCH):
        return "the file has a switch for compiling"
    return None
