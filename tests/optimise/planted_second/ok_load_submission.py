"""Open a checkpoint someone uploaded and report its size."""
import ast
import json
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file


def weights(path: Path):
    if path.suffix == ".safetensors":
        return load_file(path)
    payload = torch.load(path, map_location="cpu", weights_only=True)
    return payload.get("state_dict", payload)


def token_counts(path: Path) -> np.ndarray:
    return np.load(path, allow_pickle=False)


def options(text: str) -> dict:
    """Sampling options as the model states them, e.g. {'temperature': 0.7}."""
    try:
        value = json.loads(text)
    except ValueError:
        value = ast.literal_eval(text.strip())
    if not isinstance(value, dict):
        raise ValueError(f"expected a mapping, got {type(value).__name__}")
    return value


def main(argv):
    state = weights(Path(argv[1]))
    total = sum(t.numel() for t in state.values())
    print(f"{len(state)} tensors, {total / 1e6:.1f}M parameters")


if __name__ == "__main__":
    main(sys.argv)
