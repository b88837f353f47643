"""Image embedding service. Users may bring their own projection head."""
import io
import pickle
from dataclasses import dataclass

import numpy as np
import torch
from fastapi import FastAPI, HTTPException, UploadFile
from PIL import Image
from safetensors.torch import load as load_safetensors
from torch import nn

from towers import vit_base


@dataclass
class Settings:
    weights: str = "weights/vit_base.safetensors"
    gpu: int = 0
    max_upload: int = 32 << 20

    @property
    def device(self):
        return torch.device("cuda", self.gpu) if torch.cuda.is_available() else torch.device("cpu")


settings = Settings()
app = FastAPI()
heads: dict[str, nn.Linear] = {}

PARSERS = {
    "safetensors": load_safetensors,
    "npz": lambda raw: dict(np.load(io.BytesIO(raw), allow_pickle=False)),
    "pkl": pickle.loads,
}


def on_gpu():
    return settings.device in {"cuda", f"cuda:{settings.gpu}"}


def load_tower():
    net = vit_base()
    with open(settings.weights, "rb") as f:
        net.load_state_dict(load_safetensors(f.read()))
    net = net.to(settings.device).eval()
    return net.half() if on_gpu() else net


tower = load_tower()


def pixels(raw):
    image = Image.open(io.BytesIO(raw)).convert("RGB").resize((224, 224))
    x = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None]
    dtype = next(tower.parameters()).dtype
    return (x.to(settings.device, dtype) / 255 - 0.5) / 0.5


@app.put("/heads/{name}")
async def put_head(name: str, file: UploadFile):
    raw = await file.read(settings.max_upload + 1)
    if len(raw) > settings.max_upload:
        raise HTTPException(413, "head too large")
    parse = PARSERS.get(file.filename.rsplit(".", 1)[-1])
    if parse is None:
        raise HTTPException(415, f"one of {sorted(PARSERS)} please")
    parts = {k: torch.as_tensor(v) for k, v in parse(raw).items()}
    rows, cols = parts["weight"].shape
    head = nn.Linear(cols, rows)
    head.load_state_dict(parts)
    heads[name] = head.to(settings.device, next(tower.parameters()).dtype).eval()
    return {"name": name, "dim": rows}


@app.post("/embed")
async def embed(file: UploadFile, head: str | None = None):
    raw = await file.read()
    with torch.inference_mode():
        z = tower(pixels(raw))
        if head is not None:
            if head not in heads:
                raise HTTPException(404, f"no head {head!r}")
            z = heads[head](z)
        z = nn.functional.normalize(z, dim=-1)
    return {"embedding": z[0].cpu().tolist()}
