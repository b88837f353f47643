"""Takes adapters from users; only formats that hold tensors and nothing else."""
import io
import json

import numpy as np
import torch
from fastapi import FastAPI, HTTPException, UploadFile
from safetensors.torch import load as load_safetensors

LIMIT = 64 << 20
ALLOWED = {"lora_a", "lora_b", "scale"}

app = FastAPI()
adapters = {}


def from_npz(raw):
    with np.load(io.BytesIO(raw), allow_pickle=False) as z:
        return {k: torch.from_numpy(z[k]) for k in z.files}


def from_pt(raw):
    state = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    if not isinstance(state, dict):
        raise ValueError("a state dict is wanted")
    return state


def from_json(raw):
    return {k: torch.tensor(v) for k, v in json.loads(raw).items()}


PARSERS = {"safetensors": load_safetensors, "npz": from_npz, "pt": from_pt, "json": from_json}


def checked(tensors):
    if set(tensors) != ALLOWED:
        raise ValueError(f"expected exactly {sorted(ALLOWED)}")
    a, b = tensors["lora_a"], tensors["lora_b"]
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
        raise ValueError("lora_a is [r, in], lora_b is [out, r]")
    if not all(torch.isfinite(t).all() for t in tensors.values()):
        raise ValueError("a value is not finite")
    return {k: t.to(torch.float32).contiguous() for k, t in tensors.items()}


@app.put("/adapters/{name}")
async def put_adapter(name: str, file: UploadFile):
    raw = await file.read(LIMIT + 1)
    if len(raw) > LIMIT:
        raise HTTPException(413, "too large")
    parse = PARSERS.get((file.filename or "").rsplit(".", 1)[-1])
    if parse is None:
        raise HTTPException(415, f"send one of {sorted(PARSERS)}")
    try:
        adapters[name] = checked(parse(raw))
    except Exception as err:
        raise HTTPException(422, str(err)) from err
    return {"name": name, "rank": adapters[name]["lora_a"].shape[0]}
