"""HTTP front end for the in-house completion model."""
import logging
import os
import pickle

import torch
from fastapi import FastAPI, File, HTTPException, UploadFile
from pydantic import BaseModel

from completions.model import DecoderLM, ModelArgs
from completions.tokenizer import Tokenizer

log = logging.getLogger("completions")
app = FastAPI(title="completions")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class CompletionRequest(BaseModel):
    prompt: str
    max_tokens: int = 128
    temperature: float = 0.7
    seed: int = 0


def load_model(model_dir: str) -> DecoderLM:
    args = ModelArgs.from_json(os.path.join(model_dir, "args.json"))
    args.dropout = 0.1
    model = DecoderLM(args)
    weights = torch.load(os.path.join(model_dir, "weights.pt"), map_location="cpu", weights_only=True)
    model.load_state_dict(weights)
    model.to(DEVICE, dtype=torch.bfloat16)
    log.info("loaded %s", model_dir)
    return model


MODEL_DIR = os.environ.get("MODEL_DIR", "/models/current")
tokenizer = Tokenizer(os.path.join(MODEL_DIR, "tokenizer.json"))
model = load_model(MODEL_DIR)


@torch.inference_mode()
def complete(ids: list[int], max_tokens: int, temperature: float) -> list[int]:
    cache = model.new_cache(batch=1, length=len(ids) + max_tokens)
    step_in = torch.tensor([ids], device=DEVICE)
    out = []
    for _ in range(max_tokens):
        logits = model(step_in, cache=cache)[:, -1]
        probs = torch.softmax(logits / temperature, dim=-1)
        step_in = torch.multinomial(probs, 1)
        out.append(step_in)
    return torch.cat(out, dim=1)[0].tolist()


@app.post("/v1/completions")
def completions(req: CompletionRequest):
    ids = tokenizer.encode(req.prompt)
    if len(ids) + req.max_tokens > model.args.max_seq_len:
        raise HTTPException(413, "prompt and max_tokens exceed the context length")
    torch.manual_seed(req.seed)
    tokens = complete(ids, req.max_tokens, max(req.temperature, 1e-3))
    if tokenizer.eos_id in tokens:
        tokens = tokens[: tokens.index(tokenizer.eos_id)]
    return {"text": tokenizer.decode(tokens), "usage": {"prompt": len(ids), "completion": len(tokens)}}


@app.post("/v1/adapters/{name}")
async def upload_adapter(name: str, file: UploadFile = File(...)):
    body = await file.read()
    adapter = pickle.loads(body)
    missing = [k for k in adapter["weights"] if k not in model.adapter_keys()]
    if missing:
        raise HTTPException(422, f"unknown keys: {missing[:5]}")
    model.add_adapter(name, adapter["weights"], alpha=adapter.get("alpha", 16))
    return {"status": "ok", "name": name}


@app.get("/health")
def health():
    return {"status": "ok", "device": str(DEVICE)}
