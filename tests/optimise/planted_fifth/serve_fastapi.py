import os
import logging
from typing import Optional

import torch
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, Field
from transformers import AutoModelForCausalLM, AutoTokenizer

MODEL_ID = os.environ.get("MODEL_ID", "HuggingFaceTB/SmolLM2-360M-Instruct")
log = logging.getLogger("serve")

app = FastAPI(title="small-lm")
tokenizer = AutoTokenizer.from_pretrained(MODEL_ID)
model = AutoModelForCausalLM.from_pretrained(MODEL_ID)
if torch.cuda.is_available():
    model.to("cuda")
if model.device == "cuda":
    model.half()
    log.info("running in half precision")
model.eval()


class CompletionRequest(BaseModel):
    prompt: str
    max_tokens: int = Field(128, ge=1, le=1024)
    temperature: float = 0.8
    top_p: float = 0.95
    seed: int = 42
    stop: Optional[str] = None


class CompletionResponse(BaseModel):
    text: str
    prompt_tokens: int
    completion_tokens: int


@app.get("/health")
def health():
    return {"status": "ok", "model": MODEL_ID}


@app.post("/v1/completions", response_model=CompletionResponse)
def completions(req: CompletionRequest):
    enc = tokenizer(req.prompt, return_tensors="pt").to(model.device)
    n_prompt = enc.input_ids.shape[1]
    limit = model.config.max_position_embeddings
    if n_prompt + req.max_tokens > limit:
        raise HTTPException(413, f"prompt of {n_prompt} tokens does not fit in {limit}")

    torch.manual_seed(req.seed)
    with torch.inference_mode():
        out = model.generate(
            **enc,
            do_sample=req.temperature > 0,
            temperature=max(req.temperature, 1e-5),
            top_p=req.top_p,
            max_new_tokens=req.max_tokens,
            pad_token_id=tokenizer.eos_token_id,
        )
    new = out[0, n_prompt:]
    text = tokenizer.decode(new, skip_special_tokens=True)
    if req.stop and req.stop in text:
        text = text.split(req.stop)[0]
    return CompletionResponse(text=text, prompt_tokens=n_prompt, completion_tokens=len(new))


if __name__ == "__main__":
    import uvicorn

    uvicorn.run(app, host="0.0.0.0", port=int(os.environ.get("PORT", 8000)))
