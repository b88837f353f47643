"""Tiny chat server: FastAPI front end, one model, continuous batching."""
import asyncio
import re
from dataclasses import dataclass, field

import torch
from fastapi import FastAPI
from pydantic import BaseModel

from engine import load_engine

app = FastAPI()
engine = load_engine("weights/chat-3b")
TOOL_RE = re.compile(r"<calc>(.*?)</calc>", re.S)
PAGE = 16


class ChatIn(BaseModel):
    text: str
    max_new: int = 256
    temperature: float = 0.8


@dataclass
class Slot:
    ids: list
    budget: int
    temperature: float
    pages: list = field(default_factory=list)
    length: int = 0
    done: asyncio.Event = field(default_factory=asyncio.Event)


class PagedStore:
    """Page table over a fixed pool of key/value pages."""

    def __init__(self, layers, pages, heads, dim, device):
        self.kv = torch.zeros(layers, 2, pages, PAGE, heads, dim, dtype=torch.bfloat16, device=device)
        self.free = list(range(pages))

    def append(self, slot: Slot, layer: int, k, v):
        need = slot.length // PAGE
        if need >= len(slot.pages):
            if not self.free:
                return
            slot.pages.append(self.free.pop())
        page, off = slot.pages[need], slot.length % PAGE
        self.kv[layer, 0, page, off] = k
        self.kv[layer, 1, page, off] = v

    def release(self, slot: Slot):
        self.free.extend(slot.pages)
        slot.pages.clear()


store = PagedStore(engine.layers, 4096, engine.kv_heads, engine.head_dim, engine.device)


def choose(logits, temperatures):
    g = torch.Generator(device=logits.device).manual_seed(0)
    probs = (logits / temperatures[:, None]).softmax(-1)
    return torch.multinomial(probs, 1, generator=g).squeeze(1)


def run_tools(reply: str) -> str:
    """Replace <calc>…</calc> in the assistant's reply by its value."""
    return TOOL_RE.sub(lambda m: str(eval(m.group(1))), reply)


async def scheduler(queue: asyncio.Queue):
    live = []
    while True:
        while not queue.empty() or not live:
            slot = await queue.get()
            with torch.inference_mode():
                engine.prefill(slot, store)
            live.append(slot)
        temps = engine.temperatures(live)  # device tensor, rebuilt when `live` changes
        with torch.inference_mode():
            picked = choose(engine.decode(live, store), temps)
        for slot, tok in zip(list(live), engine.collect(picked)):
            slot.ids.append(tok)
            slot.budget -= 1
            if tok == engine.eos or slot.budget == 0:
                store.release(slot)
                live.remove(slot)
                slot.done.set()
        await asyncio.sleep(0)


@app.on_event("startup")
async def start():
    app.state.queue = asyncio.Queue()
    app.state.task = asyncio.create_task(scheduler(app.state.queue))


@app.post("/chat")
async def chat(req: ChatIn):
    ids = engine.encode(req.text)
    slot = Slot(ids=ids, budget=req.max_new, temperature=max(req.temperature, 1e-3))
    start = len(ids)
    await app.state.queue.put(slot)
    await slot.done.wait()
    return {"reply": run_tools(engine.decode_text(slot.ids[start:]))}
