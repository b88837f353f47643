import os
import secrets
import threading
from typing import Optional

import torch
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, Field
from transformers import AutoModelForCausalLM, AutoTokenizer

MODEL_ID = os.environ.get("MODEL_ID", "HuggingFaceTB/SmolLM2-360M-Instruct")
CHECK_EVERY = 16

app = FastAPI()
gpu = threading.Lock()
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
tokenizer = AutoTokenizer.from_pretrained(MODEL_ID)
model = AutoModelForCausalLM.from_pretrained(MODEL_ID, torch_dtype=dtype, use_safetensors=True)
model.to(device).eval()


class CompletionRequest(BaseModel):
    prompt: str
    max_tokens: int = Field(128, ge=1, le=1024)
    temperature: float = Field(0.8, gt=0)
    top_k: int = Field(50, ge=1)
    n: int = Field(1, ge=1, le=16)
    seed: Optional[int] = None


def draw(logits, req, gen):
    vals, idx = torch.topk(logits / req.temperature, req.top_k)
    return idx.gather(1, torch.multinomial(torch.softmax(vals, -1), 1, generator=gen))


@torch.inference_mode()
def complete(ids, req, seed):
    gen = torch.Generator(device=device).manual_seed(seed)
    eos = tokenizer.eos_token_id
    out = model(ids.expand(req.n, -1), use_cache=True)
    tok = draw(out.logits[:, -1], req, gen)
    done = tok.squeeze(1) == eos
    cols = [tok]
    for i in range(1, req.max_tokens):
        if i % CHECK_EVERY == 0 and bool(done.all()):
            break
        out = model(tok, past_key_values=out.past_key_values, use_cache=True)
        tok = draw(out.logits[:, -1], req, gen)
        done |= tok.squeeze(1) == eos
        cols.append(tok)
    rows = torch.cat(cols, dim=1).tolist()
    return [r[: r.index(eos)] if eos in r else r for r in rows]


@app.post("/v1/completions")
def completions(req: CompletionRequest):
    ids = tokenizer(req.prompt, return_tensors="pt").input_ids
    limit = model.config.max_position_embeddings
    if ids.size(1) + req.max_tokens > limit:
        raise HTTPException(413, f"{ids.size(1)} prompt tokens + {req.max_tokens} exceed {limit}")
    seed = secrets.randbits(63) if req.seed is None else req.seed
    with gpu:
        rows = complete(ids.to(device), req, seed)
    return {"seed": seed, "choices": tokenizer.batch_decode(rows)}


@app.get("/health")
def health():
    return {"device": str(device), "on_gpu": model.device.type == "cuda"}
