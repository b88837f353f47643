"""Completion server: a generator and a cache of its own for each request."""
import secrets
import threading

import torch
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, Field

from house_lm import load_tokenizer, load_transformer

CONTEXT = 4096
CHECK_EVERY = 32

app = FastAPI()
device = torch.device("cuda")
tokenizer = load_tokenizer("weights/tokenizer.json")
model = load_transformer("weights/model.safetensors", dtype=torch.bfloat16).to(device).eval()
gate = threading.Semaphore(1)


class Request(BaseModel):
    prompt: str
    max_tokens: int = Field(256, ge=1, le=CONTEXT)
    temperature: float = Field(0.8, gt=0)
    samples: int = Field(1, ge=1, le=16)
    seed: int | None = None


def cut(row, eos):
    return row[:row.index(eos)] if eos in row else row


@torch.inference_mode()
def complete(ids, req):
    rng = torch.Generator(device=device)
    rng.manual_seed(secrets.randbits(63) if req.seed is None else req.seed)
    cache = model.new_cache(rows=1, length=len(ids) + req.max_tokens)
    logits = model(torch.tensor([ids], device=device), cache=cache)[:, -1]
    cache.expand_rows(req.samples)
    probs = torch.softmax(logits / req.temperature, dim=-1).expand(req.samples, -1)
    done = torch.zeros(req.samples, 1, dtype=torch.bool, device=device)
    picked = []
    for t in range(req.max_tokens):
        tok = torch.multinomial(probs, 1, generator=rng)
        tok = tok.masked_fill(done, tokenizer.eos_id)
        picked.append(tok)
        done = done | (tok == tokenizer.eos_id)
        if t + 1 == req.max_tokens:
            break
        if t % CHECK_EVERY == CHECK_EVERY - 1 and bool(done.all()):
            break
        logits = model(tok, cache=cache)[:, -1]
        probs = torch.softmax(logits / req.temperature, dim=-1)
    rows = torch.cat(picked, dim=1).tolist()
    return [cut(r, tokenizer.eos_id) for r in rows]


@app.post("/complete")
def handle(req: Request):
    ids = tokenizer.encode(req.prompt)
    if len(ids) + req.max_tokens > CONTEXT:
        raise HTTPException(413, f"{len(ids)} prompt tokens and {req.max_tokens} new ones "
                                 f"do not fit {CONTEXT}")
    with gate:
        rows = complete(ids, req)
    return {"texts": [tokenizer.decode(r) for r in rows]}
