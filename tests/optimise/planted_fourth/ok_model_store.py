"""Model files: fetched with a digest, read without pickle, written atomically."""
import hashlib
import json
import os
import tempfile
import urllib.request
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


class DigestMismatch(RuntimeError):
    pass


def sha256(path):
    h = hashlib.sha256()
    with open(path, "rb") as f:
        while block := f.read(1 << 20):
            h.update(block)
    return h.hexdigest()


def fetch(url, digest, cache_dir):
    cache = Path(cache_dir)
    cache.mkdir(parents=True, exist_ok=True)
    target = cache / digest
    if target.exists():
        return target
    fd, tmp = tempfile.mkstemp(dir=cache)
    os.close(fd)
    urllib.request.urlretrieve(url, tmp)
    if sha256(tmp) != digest:
        os.unlink(tmp)
        raise DigestMismatch(url)
    os.replace(tmp, target)
    return target


def read_weights(path):
    path = Path(path)
    if path.suffix in (".pt", ".pth", ".bin"):
        return torch.load(path, map_location="cpu", weights_only=True)
    return load_file(path, device="cpu")


def write_weights(state, path):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    fd, tmp = tempfile.mkstemp(dir=path.parent, suffix=".part")
    os.close(fd)
    try:
        save_file({k: v.detach().contiguous() for k, v in state.items()}, tmp)
        with open(tmp, "rb") as f:
            os.fsync(f.fileno())
        os.replace(tmp, path)
    except BaseException:
        os.unlink(tmp)
        raise


def write_config(config, path):
    tmp = f"{path}.part"
    with open(tmp, "w", encoding="utf-8") as f:
        json.dump(config, f, indent=2, sort_keys=True)
        f.flush()
        os.fsync(f.fileno())
    os.replace(tmp, path)


def load_for_inference(build, directory, device):
    directory = Path(directory)
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    model = build(config)
    model.load_state_dict(read_weights(directory / "model.safetensors"))
    return model.to(device, torch.bfloat16).eval().requires_grad_(False)
