"""Reading and writing model folders."""
import hashlib
import json
import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file


def _publish(folder: Path, name: str, writer) -> None:
    """Write to a temporary file in the same folder, then rename over the target."""
    fd, tmp = tempfile.mkstemp(dir=folder, prefix=f".{name}.")
    os.close(fd)
    try:
        writer(tmp)
        with open(tmp, "rb+") as f:
            os.fsync(f.fileno())
        os.replace(tmp, folder / name)
    except BaseException:
        os.unlink(tmp)
        raise


def digest(path: Path) -> str:
    h = hashlib.sha256()
    with path.open("rb") as f:
        for block in iter(lambda: f.read(1 << 20), b""):
            h.update(block)
    return h.hexdigest()


class ModelFolder:
    def __init__(self, root):
        self.root = Path(root)
        self.root.mkdir(parents=True, exist_ok=True)

    def save_weights(self, net: torch.nn.Module) -> None:
        tensors = {k: v.detach().cpu().contiguous() for k, v in net.state_dict().items()}
        _publish(self.root, "model.safetensors", lambda p: save_file(tensors, p))

    def save_optimizer(self, opt, extra) -> None:
        """extra: plain numbers and tensors, including the data position."""
        _publish(self.root, "optim.pt", lambda p: torch.save({"opt": opt.state_dict(), "extra": extra}, p))

    def load_weights(self, net: torch.nn.Module) -> None:
        net.load_state_dict(load_file(self.root / "model.safetensors"))

    def load_optimizer(self, opt):
        blob = torch.load(self.root / "optim.pt", map_location="cpu", weights_only=True)
        opt.load_state_dict(blob["opt"])
        return blob["extra"]

    def load_legacy(self, net, name="pytorch_model.bin", sha256=None):
        """Old .bin files are pickles; only tensors are let through."""
        path = self.root / name
        if sha256 is not None and digest(path) != sha256:
            raise ValueError(f"{path} has an unexpected digest")
        net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))

    def vocab(self):
        return json.loads((self.root / "vocab.json").read_text())

    def token_counts(self):
        return np.load(self.root / "counts.npy", allow_pickle=False)
