"""HTTP front end: POST /v1/complete {"prompt": ..., "n": 4, "seed": 7}"""
import os
from contextlib import asynccontextmanager
from typing import List, Optional

import torch
from fastapi import FastAPI
from pydantic import BaseModel, Field
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

MODEL_DIR = os.environ.get("MODEL_DIR", "/models/chat-small")
state = {}


class CompletionRequest(BaseModel):
    prompt: str
    n: int = Field(1, ge=1, le=16)
    max_tokens: int = Field(128, ge=1, le=1024)
    temperature: float = 0.9
    seed: Optional[int] = None


class CompletionResponse(BaseModel):
    choices: List[str]


@asynccontextmanager
async def lifespan(app: FastAPI):
    state["tok"] = AutoTokenizer.from_pretrained(MODEL_DIR)
    model = AutoModelForCausalLM.from_pretrained(MODEL_DIR, torch_dtype=torch.bfloat16)
    state["model"] = model.to("cuda").eval()
    yield
    state.clear()


app = FastAPI(lifespan=lifespan)


def draw(logits, temperature):
    return torch.multinomial(torch.softmax(logits.float() / temperature, dim=-1), 1)


@torch.inference_mode()
def run_request(req: CompletionRequest) -> List[str]:
    tok, model = state["tok"], state["model"]
    if req.seed is not None:
        torch.manual_seed(req.seed)
    ids = tok(req.prompt, return_tensors="pt").input_ids.to(model.device)
    cache = DynamicCache()
    out = model(ids, past_key_values=cache, use_cache=True)
    first_id = draw(out.logits[:, -1], req.temperature)[0, 0].item()
    cache.batch_repeat_interleave(req.n)
    column = torch.full((req.n, 1), first_id, device=model.device)
    pieces = [column]
    ended = column == tok.eos_token_id
    for i in range(1, req.max_tokens):
        out = model(pieces[-1], past_key_values=cache, use_cache=True)
        nxt = draw(out.logits[:, -1], req.temperature)
        nxt = nxt.masked_fill(ended, tok.eos_token_id)
        ended = ended | (nxt == tok.eos_token_id)
        pieces.append(nxt)
        if i % 32 == 0 and bool(ended.all()):
            break
    return tok.batch_decode(torch.cat(pieces, dim=1), skip_special_tokens=True)


@app.post("/v1/complete", response_model=CompletionResponse)
def complete(req: CompletionRequest):
    # plain def: FastAPI runs it on its thread pool
    return CompletionResponse(choices=run_request(req))
