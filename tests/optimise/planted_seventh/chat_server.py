"""Continuous-batching chat server (one worker thread owns the GPU)."""
import queue
import re
import threading
from typing import Optional

import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from lmkit import build_model, build_tokenizer  # decode_one(tokens, positions, cache) / prefill(ids, slot, cache)

SLOTS = 32
MAX_CTX = 4096
TOOL = re.compile(r"<tool>(?P<name>\w+)\((?P<args>.*?)\)</tool>", re.S)


class ChatRequest(BaseModel):
    messages: list[dict]
    max_tokens: int = 512
    temperature: float = 0.7
    seed: Optional[int] = None


class Job:
    def __init__(self, req, ids):
        self.req, self.ids = req, ids
        self.out, self.reason = [], None
        self.done = threading.Event()


def get_weather(city: str, unit: str = "C"):
    return f"21 {unit} in {city}"


def convert(amount: float, rate: float = 1.0):
    return amount * rate


TOOLS = {"get_weather": get_weather, "convert": convert}


def call_tools(reply: str):
    results = []
    for m in TOOL.finditer(reply):
        fn = TOOLS.get(m["name"])
        if fn is None:
            results.append({"error": f"unknown tool {m['name']}"})
            continue
        kwargs = eval(f"dict({m['args']})")
        results.append({"tool": m["name"], "result": fn(**kwargs)})
    return results


class Worker(threading.Thread):
    def __init__(self, path):
        super().__init__(daemon=True)
        self.dev = torch.device("cuda")
        self.tok = build_tokenizer(path)
        self.model = build_model(path).to(self.dev, torch.bfloat16).eval()
        self.cache = self.model.new_cache(SLOTS, MAX_CTX)
        self.step = torch.compile(self.model.decode_one, mode="reduce-overhead")
        self.rng = torch.Generator(self.dev).manual_seed(0)
        self.jobs = [None] * SLOTS
        self.inbox = queue.Queue()
        self.cur = torch.zeros(SLOTS, 1, dtype=torch.long, device=self.dev)
        self.pos = torch.zeros(SLOTS, dtype=torch.long, device=self.dev)
        self.temp = torch.ones(SLOTS, 1, device=self.dev)
        self.idle = torch.ones(SLOTS, dtype=torch.bool, device=self.dev)
        self.landing = torch.empty(SLOTS, 1, dtype=torch.long, pin_memory=True)

    def admit(self, job, slot):
        ids = torch.tensor(job.ids, device=self.dev)
        logits = self.model.prefill(ids, slot, self.cache)
        if job.req.seed is not None:
            self.rng.manual_seed(job.req.seed)
        self.temp[slot] = max(job.req.temperature, 1e-3)
        self.cur[slot] = self.pick(logits.view(1, -1), self.temp[slot:slot + 1])[0]
        self.pos[slot] = len(job.ids)
        self.idle[slot] = False
        self.jobs[slot] = job

    def pick(self, logits, temp):
        return torch.multinomial(torch.softmax(logits / temp, dim=-1), 1, generator=self.rng)

    def to_host(self, t):
        self.landing.copy_(t, non_blocking=True)
        return self.landing.numpy()

    def finish(self, slot, reason):
        job, self.jobs[slot] = self.jobs[slot], None
        self.idle[slot] = True
        job.reason = reason
        job.done.set()

    @torch.inference_mode()
    def run(self):
        while True:
            for slot in range(SLOTS):
                if self.jobs[slot] is None and not self.inbox.empty():
                    self.admit(self.inbox.get(), slot)
            if not any(self.jobs):
                self.admit(self.inbox.get(), 0)
            tokens = self.to_host(self.cur)
            for slot, job in enumerate(self.jobs):
                if job is None:
                    continue
                t = int(tokens[slot, 0])
                if t == self.tok.eos_id:
                    self.finish(slot, "stop")
                    continue
                job.out.append(t)
                if len(job.out) >= job.req.max_tokens or len(job.ids) + len(job.out) >= MAX_CTX:
                    self.finish(slot, "length")
            logits = self.step(self.cur, self.pos, self.cache)
            self.cur = self.pick(logits, self.temp)
            self.pos += 1
            self.pos.masked_fill_(self.idle, 0)


app = FastAPI()
worker = Worker("/models/chat-1b")


@app.on_event("startup")
def start():
    worker.start()


@app.post("/chat")
def chat(req: ChatRequest):
    ids = worker.tok.chat(req.messages)
    if len(ids) + req.max_tokens > MAX_CTX:
        return {"error": f"the prompt has {len(ids)} tokens; prompt + max_tokens must stay below {MAX_CTX}"}
    job = Job(req, ids)
    worker.inbox.put(job)
    job.done.wait()
    text = worker.tok.decode(job.out)
    return {"text": text, "finish_reason": job.reason, "tools": call_tools(text)}


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=8080)
