"""Sampling endpoint: n independent continuations per request."""
import secrets
from typing import List, Optional

import torch
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, Field
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

BASE = "EleutherAI/pythia-410m"
MAX_CONTEXT = 2048
DEVICE = torch.device("cuda", 0)

app = FastAPI()
tokenizer = AutoTokenizer.from_pretrained(BASE)


def build(weights: str) -> torch.nn.Module:
    net = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(BASE), torch_dtype=torch.bfloat16)
    net.load_state_dict(load_file(weights))
    if DEVICE.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
    return net.to(DEVICE).eval()


model = build("weights/story.safetensors")


class Ask(BaseModel):
    prompt: str
    n: int = Field(4, ge=1, le=16)
    max_new_tokens: int = Field(128, ge=2, le=512)
    temperature: float = Field(0.9, gt=0.0, le=2.0)
    seed: Optional[int] = None


def draw(logits: torch.Tensor, temperature: float, rng: torch.Generator) -> torch.Tensor:
    probs = torch.softmax(logits.float() / temperature, dim=-1)
    return torch.multinomial(probs, 1, generator=rng)


@torch.inference_mode()
def continuations(ids: torch.Tensor, ask: Ask, rng: torch.Generator) -> torch.Tensor:
    out = model(ids, use_cache=True, logits_to_keep=1)
    cache = out.past_key_values
    cache.batch_repeat_interleave(ask.n)
    last = out.logits[:, -1].expand(ask.n, -1)
    token = draw(last, ask.temperature, rng)
    pieces: List[torch.Tensor] = [token]
    for _ in range(ask.max_new_tokens - 1):
        out = model(token, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        token = draw(out.logits[:, -1], ask.temperature, rng)
        pieces.append(token)
    return torch.cat(pieces, dim=1)


def until_eos(row: List[int]) -> List[int]:
    eos = tokenizer.eos_token_id
    return row[: row.index(eos)] if eos in row else row


@app.post("/v1/story")
def story(ask: Ask):
    ids = tokenizer(ask.prompt, return_tensors="pt").input_ids
    if ids.size(1) + ask.max_new_tokens > MAX_CONTEXT:
        raise HTTPException(413, "prompt plus continuation exceeds the context")
    seed = ask.seed if ask.seed is not None else secrets.randbits(62)
    rng = torch.Generator(device=DEVICE)
    rng.manual_seed(seed)
    rows = continuations(ids.to(DEVICE), ask, rng).tolist()
    return {"seed": seed, "stories": [tokenizer.decode(until_eos(r)) for r in rows]}
