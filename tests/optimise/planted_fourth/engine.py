"""Small inference engine: queue of requests, several samples per request."""
import itertools
import queue
import threading
from concurrent.futures import Future
from dataclasses import dataclass

import torch

CHECK_EVERY = 32


@dataclass
class Request:
    uid: int
    ids: list
    n: int
    max_new: int
    temperature: float
    future: Future


class Engine:
    def __init__(self, model, tokenizer, device="cuda", seed=0):
        self.model = model.to(device).eval()
        self.tokenizer = tokenizer
        self.device = device
        self.ctx_len = model.config.max_seq_len
        self.generator = torch.Generator(device=device)
        self.generator.manual_seed(seed)
        self.inbox = queue.Queue()
        self.counter = itertools.count()
        self.worker = threading.Thread(target=self._serve, daemon=True)
        self.worker.start()

    def submit(self, prompt, n=1, max_new=256, temperature=0.8):
        if max_new >= self.ctx_len:
            raise ValueError(f"max_new must be below {self.ctx_len}")
        ids = self._fit(self.tokenizer.encode(prompt), self.ctx_len - max_new)
        req = Request(next(self.counter), ids, n, max_new, temperature, Future())
        self.inbox.put(req)
        return req.future

    def _fit(self, ids, budget):
        return ids[-budget:]

    def _serve(self):
        while True:
            req = self.inbox.get()
            try:
                req.future.set_result(self._run(req))
            except Exception as err:
                req.future.set_exception(err)

    def _pick(self, logits, temperature):
        if temperature == 0:
            return logits.argmax(dim=-1, keepdim=True)
        probs = torch.softmax(logits / temperature, dim=-1)
        return torch.multinomial(probs, 1, generator=self.generator)

    @torch.inference_mode()
    def _run(self, req):
        eos = self.tokenizer.eos_id
        cache = self.model.allocate_cache(req.n, len(req.ids) + req.max_new)
        x = torch.tensor(req.ids, device=self.device).repeat(req.n, 1)
        done = torch.zeros(req.n, 1, dtype=torch.bool, device=self.device)
        out = []
        for i in range(req.max_new):
            logits = self.model(x, cache=cache)[:, -1]
            x = self._pick(logits, req.temperature)
            x = x.masked_fill(done, eos)
            done |= x == eos
            out.append(x)
            if i % CHECK_EVERY == CHECK_EVERY - 1 and bool(done.all()):
                break
        return [self._text(row) for row in torch.cat(out, dim=1).tolist()]

    def _text(self, row):
        eos = self.tokenizer.eos_id
        return self.tokenizer.decode(row[: row.index(eos)] if eos in row else row)
