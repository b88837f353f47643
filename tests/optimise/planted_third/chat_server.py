import threading

import torch
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, Field

from house_lm import load_tokenizer, load_transformer

MAX_LEN = 4096
DEVICE = torch.device("cuda:0")

app = FastAPI(title="house-chat")
tok = load_tokenizer("weights/tokenizer.json")
lm = load_transformer("weights/model.safetensors", dtype=torch.bfloat16).to(DEVICE).eval()


class ChatRequest(BaseModel):
    messages: list[dict]
    max_tokens: int = Field(512, ge=1)
    temperature: float = Field(0.7, gt=0)
    seed: int = 0


class Session:
    """One KV cache of MAX_LEN positions, reset for each request."""

    def __init__(self, model):
        self.model = model
        shape = (model.n_layers, 2, 1, model.n_kv_heads, MAX_LEN, model.head_dim)
        self.kv = torch.zeros(shape, dtype=torch.bfloat16, device=DEVICE)
        self.pos = 0

    def reset(self):
        self.pos = 0

    def feed(self, ids):
        n = ids.shape[1]
        start = min(self.pos, MAX_LEN - n)
        where = torch.arange(start, start + n, device=DEVICE)
        logits = self.model.forward_cached(ids, self.kv, where)
        self.pos += n
        return logits[:, -1]


session = Session(lm)
lock = threading.Lock()


@torch.inference_mode()
def complete(prompt_ids, req):
    session.reset()
    logits = session.feed(torch.tensor([prompt_ids], device=DEVICE))
    written = []
    for _ in range(req.max_tokens):
        probs = torch.softmax(logits / req.temperature, dim=-1)
        nxt = torch.multinomial(probs, 1)
        token = nxt.item()
        if token == tok.eos_id:
            break
        written.append(token)
        logits = session.feed(nxt)
    return written


@app.post("/v1/chat")
def chat(req: ChatRequest):
    ids = tok.encode_chat(req.messages)
    if len(ids) >= MAX_LEN:
        raise HTTPException(413, f"prompt of {len(ids)} tokens, limit {MAX_LEN - 1}")
    with lock:
        torch.manual_seed(req.seed)
        out = complete(ids, req)
    return {
        "text": tok.decode(out),
        "usage": {"prompt_tokens": len(ids), "completion_tokens": len(out)},
    }


@app.get("/healthz")
def healthz():
    return {"ok": True, "device": str(DEVICE)}
