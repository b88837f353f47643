import os
import threading

import torch
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, Field
from transformers import AutoModelForCausalLM, AutoTokenizer

MODEL = os.environ.get("MODEL", "gpt2")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

app = FastAPI(title="tiny-lm")
tokenizer = AutoTokenizer.from_pretrained(MODEL)
model = AutoModelForCausalLM.from_pretrained(MODEL).to(DEVICE).eval()
if model.device == "cuda":
    model = model.half()
lock = threading.Lock()


class GenRequest(BaseModel):
    prompt: str
    max_tokens: int = Field(64, ge=1, le=512)
    temperature: float = 0.8
    top_k: int = 50


class GenResponse(BaseModel):
    text: str
    tokens: int


def top_k_filter(logits, k):
    if k <= 0:
        return logits
    kth = torch.topk(logits, min(k, logits.size(-1))).values[..., -1, None]
    return logits.masked_fill(logits < kth, float("-inf"))


@torch.inference_mode()
def generate(ids, req):
    for _ in range(req.max_tokens):
        logits = model(ids).logits[:, -1, :] / max(req.temperature, 1e-4)
        probs = torch.softmax(top_k_filter(logits, req.top_k), dim=-1)
        nxt = torch.multinomial(probs, 1)
        ids = torch.cat([ids, nxt], dim=1)
    return ids


@app.get("/health")
def health():
    return {"ok": True, "device": DEVICE}


@app.post("/generate", response_model=GenResponse)
def generate_endpoint(req: GenRequest):
    ids = tokenizer(req.prompt, return_tensors="pt").input_ids.to(DEVICE)
    limit = model.config.max_position_embeddings
    if ids.shape[1] + req.max_tokens > limit:
        raise HTTPException(413, f"prompt + max_tokens exceeds {limit}")
    with lock:
        torch.manual_seed(42)
        out = generate(ids, req)
    new = out[0, ids.shape[1]:]
    eos = (new == tokenizer.eos_token_id).nonzero()
    if len(eos):
        new = new[: eos[0, 0]]
    return GenResponse(text=tokenizer.decode(new), tokens=len(new))
