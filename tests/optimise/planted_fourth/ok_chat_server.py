"""Chat endpoint: one generator per request, one model behind a lock."""
import os
import secrets
import threading

import torch
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, Field
from safetensors.torch import load_file

from chat.model import ChatLM, ChatConfig
from chat.tokenizer import ChatTokenizer

ROOT = os.environ.get("CHAT_MODEL", "/models/chat")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

app = FastAPI()
lock = threading.Lock()


def build():
    model = ChatLM(ChatConfig.load(os.path.join(ROOT, "config.json")))
    model.load_state_dict(load_file(os.path.join(ROOT, "model.safetensors")))
    return model.to(DEVICE, torch.bfloat16).eval().requires_grad_(False)


model = build()
tokenizer = ChatTokenizer(os.path.join(ROOT, "tokenizer.json"))


class ChatRequest(BaseModel):
    messages: list[dict]
    n: int = Field(1, ge=1, le=16)
    max_tokens: int = Field(256, ge=1, le=2048)
    temperature: float = Field(0.7, gt=0, le=2)
    seed: int | None = None


def sampler(seed, n):
    base = secrets.randbits(48) if seed is None else seed
    generators = [torch.Generator(device=DEVICE) for _ in range(n)]
    for row, g in enumerate(generators):
        g.manual_seed(base * 1009 + row)

    def draw(probs):
        return torch.stack([torch.multinomial(p, 1, generator=g) for p, g in zip(probs, generators)])

    return draw


@torch.inference_mode()
def answer(ids, req):
    draw = sampler(req.seed, req.n)
    cache = model.new_cache(batch=req.n, length=len(ids) + req.max_tokens)
    x = torch.tensor(ids, device=DEVICE).repeat(req.n, 1)
    out = []
    for _ in range(req.max_tokens):
        logits = model(x, cache=cache)[:, -1]
        x = draw(torch.softmax(logits / req.temperature, dim=-1))
        out.append(x)
    return torch.cat(out, dim=1).tolist()


def until_end(row):
    return row[: row.index(tokenizer.end_id)] if tokenizer.end_id in row else row


@app.post("/chat")
def chat(req: ChatRequest):
    ids = tokenizer.render(req.messages)
    limit = model.config.max_len
    if len(ids) + req.max_tokens > limit:
        raise HTTPException(413, f"{len(ids)} prompt tokens and {req.max_tokens} new ones exceed {limit}")
    with lock:
        rows = answer(ids, req)
    return {"choices": [tokenizer.decode(until_end(row)) for row in rows]}
