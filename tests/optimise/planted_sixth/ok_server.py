import secrets
import threading
from typing import Optional

import torch
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

NAME = "gpt2"
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
tok = AutoTokenizer.from_pretrained(NAME)
dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
model = AutoModelForCausalLM.from_pretrained(NAME, torch_dtype=dtype).to(device).eval()
app = FastAPI()
lock = threading.Lock()


class Query(BaseModel):
    prompt: str
    n: int = 64
    temperature: float = 1.0
    seed: Optional[int] = None


@torch.inference_mode()
def decode(ids, n, temperature, gen):
    cache = DynamicCache()
    step_in, new = ids, []
    for _ in range(n):
        out = model(step_in, past_key_values=cache, use_cache=True)
        p = torch.softmax(out.logits[:, -1] / temperature, dim=-1)
        step_in = torch.multinomial(p, 1, generator=gen)
        new.append(step_in)
    return torch.cat(new, dim=1)


@app.post("/complete")
def complete(q: Query):
    ids = tok(q.prompt, return_tensors="pt").input_ids.to(device)
    if ids.shape[1] + q.n > model.config.max_position_embeddings:
        raise HTTPException(413, "prompt and n exceed the context window")
    seed = q.seed if q.seed is not None else secrets.randbits(63)
    gen = torch.Generator(device=device).manual_seed(seed)
    with lock:
        new = decode(ids, q.n, max(q.temperature, 1e-3), gen)
    return {"text": tok.decode(new[0]), "seed": seed}
