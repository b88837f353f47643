"""Text sampling endpoint for the storyteller demo."""
from __future__ import annotations

import logging
import os
from dataclasses import dataclass

import torch
from fastapi import FastAPI, HTTPException
from huggingface_hub import hf_hub_download
from pydantic import BaseModel, Field
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, set_seed

log = logging.getLogger("storyteller")


@dataclass(frozen=True)
class Settings:
    base: str = "EleutherAI/pythia-410m"
    weights_repo: str = os.environ.get("STORY_WEIGHTS", "community/story-pythia")
    seed: int = 1234
    max_context: int = 2048


SETTINGS = Settings()
DEVICE = torch.device("cuda", 0)
app = FastAPI(title="storyteller")


class StoryRequest(BaseModel):
    prompt: str
    n: int = Field(4, ge=1, le=16)
    max_new_tokens: int = Field(128, ge=2, le=512)
    temperature: float = Field(0.9, gt=0.0, le=2.0)


def build_model() -> torch.nn.Module:
    config = AutoConfig.from_pretrained(SETTINGS.base)
    net = AutoModelForCausalLM.from_config(config, torch_dtype=torch.bfloat16)
    blob = hf_hub_download(SETTINGS.weights_repo, "story.ckpt")
    payload = torch.load(blob, map_location="cpu", weights_only=False)
    net.load_state_dict(payload["model"])
    return net.to(DEVICE).eval()


tokenizer = AutoTokenizer.from_pretrained(SETTINGS.base)
model = build_model()


def draw(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    probs = torch.softmax(logits.float() / temperature, dim=-1)
    return torch.multinomial(probs, num_samples=1)


@torch.inference_mode()
def continue_story(prompt_ids, n, max_new_tokens, temperature):
    prefill = model(prompt_ids, use_cache=True, logits_to_keep=1)
    cache = prefill.past_key_values
    cache.batch_repeat_interleave(n)

    token = draw(prefill.logits[:, -1], temperature).expand(n, 1)
    pieces = [token]
    for _ in range(max_new_tokens - 1):
        out = model(token, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        token = draw(out.logits[:, -1], temperature)
        pieces.append(token)
    return torch.cat(pieces, dim=1)


def cut_at_eos(ids: list[int]) -> list[int]:
    if tokenizer.eos_token_id in ids:
        return ids[: ids.index(tokenizer.eos_token_id)]
    return ids


@app.post("/v1/story")
def story(req: StoryRequest):
    set_seed(SETTINGS.seed)
    ids = tokenizer(req.prompt, return_tensors="pt").input_ids
    if ids.size(1) + req.max_new_tokens > SETTINGS.max_context:
        raise HTTPException(413, "prompt plus continuation exceeds the context")
    rows = continue_story(
        ids.to(DEVICE), req.n, req.max_new_tokens, req.temperature
    ).tolist()
    texts = [tokenizer.decode(cut_at_eos(r)) for r in rows]
    log.info("served %d stories", len(texts))
    return {"stories": texts}


@app.get("/healthz")
def healthz():
    return {"ok": True, "model": SETTINGS.base}
