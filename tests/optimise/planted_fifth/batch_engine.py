"""Collects requests for a few milliseconds and decodes them as one batch."""
import queue
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass, field

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


@dataclass
class Request:
    prompt: str
    max_new_tokens: int = 128
    temperature: float = 0.8
    future: Future = field(default_factory=Future)


class BatchEngine:
    def __init__(self, name, max_batch=16, window_ms=8, device="cuda", seed=0):
        self.tok = AutoTokenizer.from_pretrained(name, padding_side="left")
        if self.tok.pad_token is None:
            self.tok.pad_token = self.tok.eos_token
        self.model = AutoModelForCausalLM.from_pretrained(name, torch_dtype=torch.bfloat16).to(device).eval()
        self.max_batch = max_batch
        self.window = window_ms / 1000
        self.device = device
        self.inbox = queue.Queue()
        self.gen = torch.Generator(device=device)
        self.gen.manual_seed(seed)

    def _pick(self, logits, temps):
        probs = torch.softmax(logits / temps, dim=-1)
        return torch.multinomial(probs, 1, generator=self.gen)

    def submit(self, prompt, **kw):
        req = Request(prompt, **kw)
        n = len(self.tok(prompt).input_ids)
        limit = self.model.config.max_position_embeddings
        if n + req.max_new_tokens > limit:
            req.future.set_exception(ValueError(f"{n} + {req.max_new_tokens} tokens > {limit}"))
        else:
            self.inbox.put(req)
        return req.future

    def _gather(self):
        batch = [self.inbox.get()]
        deadline = time.monotonic() + self.window
        while len(batch) < self.max_batch:
            left = deadline - time.monotonic()
            if left <= 0:
                break
            try:
                batch.append(self.inbox.get(timeout=left))
            except queue.Empty:
                break
        return batch

    @torch.inference_mode()
    def _decode(self, batch):
        enc = self.tok([r.prompt for r in batch], return_tensors="pt", padding=True).to(self.device)
        temps = torch.tensor([[max(r.temperature, 1e-4)] for r in batch], device=self.device)
        steps = max(r.max_new_tokens for r in batch)
        mask, past, cur = enc.attention_mask, None, enc.input_ids
        pos = (mask.cumsum(-1) - 1).clamp(min=0)
        cols = []
        for _ in range(steps):
            out = self.model(
                input_ids=cur, attention_mask=mask, position_ids=pos, past_key_values=past, use_cache=True
            )
            past = out.past_key_values
            cur = self._pick(out.logits[:, -1], temps)
            cols.append(cur)
            mask = torch.cat([mask, mask.new_ones(len(batch), 1)], dim=1)
            pos = pos[:, -1:] + 1
        return torch.cat(cols, dim=1).tolist()

    def _answer(self, batch):
        for req, row in zip(batch, self._decode(batch)):
            row = row[: req.max_new_tokens]
            if self.tok.eos_token_id in row:
                row = row[: row.index(self.tok.eos_token_id)]
            req.future.set_result(self.tok.decode(row, skip_special_tokens=True))

    def run(self):
        while True:
            batch = self._gather()
            try:
                self._answer(batch)
            except Exception as e:
                for req in batch:
                    if not req.future.done():
                        req.future.set_exception(e)

    def start(self):
        threading.Thread(target=self.run, daemon=True).start()
        return self


if __name__ == "__main__":
    engine = BatchEngine("Qwen/Qwen2.5-0.5B").start()
    futures = [engine.submit(f"{n} is a number that") for n in range(20)]
    for f in futures:
        print(repr(f.result()))
