import io
import logging
import threading
import uuid

import numpy as np
import torch
from fastapi import FastAPI, File, HTTPException, UploadFile
from pydantic import BaseModel, Field
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

log = logging.getLogger("chat")
app = FastAPI(title="chat")

MODEL_ID = "meta-llama/Llama-3.2-3B-Instruct"
MAX_PROMPT = 3072

tokenizer = AutoTokenizer.from_pretrained(MODEL_ID)
model = AutoModelForCausalLM.from_pretrained(
    MODEL_ID, torch_dtype=torch.bfloat16, device_map="cuda"
).eval()
eager_forward = model.forward

_gpu = threading.Lock()
_prefixes: dict[str, torch.Tensor] = {}


class ChatRequest(BaseModel):
    messages: list[dict[str, str]]
    prefix_id: str | None = None
    temperature: float = Field(0.7, gt=0, le=2)
    top_p: float = Field(0.95, gt=0, le=1)
    max_new_tokens: int = Field(256, ge=1, le=1024)
    seed: int = 20240501


class ChatReply(BaseModel):
    text: str
    prompt_tokens: int


@app.post("/prefix")
async def upload_prefix(file: UploadFile = File(...)):
    raw = await file.read()
    with np.load(io.BytesIO(raw), allow_pickle=True) as bundle:
        if "embeds" not in bundle.files:
            raise HTTPException(422, "archive has no 'embeds' entry")
        table = np.asarray(bundle["embeds"], dtype=np.float32)
    if table.ndim != 2 or table.shape[1] != model.config.hidden_size:
        raise HTTPException(422, f"bad shape {table.shape}")
    key = uuid.uuid4().hex
    _prefixes[key] = torch.from_numpy(table).to(model.device, model.dtype)
    return {"prefix_id": key, "length": int(table.shape[0])}


def embed_prompt(req: ChatRequest) -> torch.Tensor:
    ids = tokenizer.apply_chat_template(
        req.messages, add_generation_prompt=True, return_tensors="pt"
    )
    if ids.shape[1] > MAX_PROMPT:
        raise HTTPException(413, "prompt too long")
    embeds = model.get_input_embeddings()(ids.to(model.device))
    if req.prefix_id is not None:
        if req.prefix_id not in _prefixes:
            raise HTTPException(404, "unknown prefix")
        embeds = torch.cat([_prefixes[req.prefix_id].unsqueeze(0), embeds], dim=1)
    return embeds


@app.post("/chat", response_model=ChatReply)
def chat(req: ChatRequest):
    with _gpu, torch.inference_mode():
        set_seed(req.seed)
        embeds = embed_prompt(req)
        model.forward = torch.compile(eager_forward, mode="reduce-overhead", fullgraph=True)
        out = model.generate(
            inputs_embeds=embeds,
            attention_mask=torch.ones(embeds.shape[:2], dtype=torch.long, device=model.device),
            do_sample=True,
            temperature=req.temperature,
            top_p=req.top_p,
            max_new_tokens=req.max_new_tokens,
            cache_implementation="static",
            pad_token_id=tokenizer.eos_token_id,
        )
    text = tokenizer.decode(out[0], skip_special_tokens=True)
    log.info("served prompt=%d new=%d", embeds.shape[1], out.shape[1])
    return ChatReply(text=text, prompt_tokens=embeds.shape[1])


@app.get("/healthz")
def healthz():
    return {"ok": True, "prefixes": len(_prefixes)}
