"""Sampling core of a batch server: each request owns a generator, a KV cache row and a limit."""
import itertools
import json
import secrets
from dataclasses import dataclass, field

import torch

from lmkit import build_model  # prefill(ids, row, cache) -> logits (1, V); decode_one(tok, pos, cache) -> logits (rows, V)


class RequestTooLong(ValueError):
    pass


@dataclass
class Request:
    ids: list
    max_new: int
    temperature: float = 1.0
    seed: int = field(default_factory=lambda: secrets.randbits(48))
    out: list = field(default_factory=list)
    generator: torch.Generator = None


class Core:
    def __init__(self, path, rows=16, ctx=4096, eos=2, drain=16):
        self.dev = torch.device("cuda")
        self.net = build_model(path).to(self.dev, torch.bfloat16).eval()
        self.step = torch.compile(self.net.decode_one)
        self.cache = self.net.new_cache(rows, ctx)
        self.rows, self.ctx, self.eos, self.drain = rows, ctx, eos, drain
        self.live = [None] * rows
        self.tok = torch.zeros(rows, 1, dtype=torch.long, device=self.dev)
        self.pos = torch.zeros(rows, dtype=torch.long, device=self.dev)

    def sample(self, logits, req):
        probs = torch.softmax(logits / max(req.temperature, 1e-3), dim=-1)
        return torch.multinomial(probs, 1, generator=req.generator)

    @torch.inference_mode()
    def admit(self, req):
        # `drain` extra positions: a row may run on until the next time the host looks
        if len(req.ids) + req.max_new + self.drain > self.ctx:
            raise RequestTooLong(f"{len(req.ids)} + {req.max_new} tokens do not fit {self.ctx} (reserve {self.drain})")
        row = self.live.index(None)
        req.generator = torch.Generator(self.dev).manual_seed(req.seed)
        logits = self.net.prefill(torch.tensor(req.ids, device=self.dev), row, self.cache)
        self.tok[row] = self.sample(logits, req)[0]
        self.pos[row] = len(req.ids)
        self.live[row] = req

    @torch.inference_mode()
    def advance(self):
        """`drain` decode steps on the device, then one transfer of the tokens to the host."""
        block = []
        for _ in range(self.drain):
            block.append(self.tok.clone())
            logits = self.step(self.tok, self.pos, self.cache)
            for row, req in enumerate(self.live):
                if req is not None:
                    self.tok[row] = self.sample(logits[row:row + 1], req)[0]
            self.pos += 1
        return self.collect(torch.cat(block, 1).cpu().numpy())

    def collect(self, block):
        finished = []
        for row, req in enumerate(self.live):
            if req is None:
                self.pos[row] = 0
                continue
            for t in itertools.islice(block[row], req.max_new - len(req.out)):
                req.out.append(int(t))
                if t == self.eos:
                    break
            if len(req.out) >= req.max_new or req.out and req.out[-1] == self.eos:
                finished.append(req)
                self.live[row] = None
                self.pos[row] = 0
        return finished

    def serve(self, requests):
        waiting = list(reversed(requests))
        while waiting or any(r is not None for r in self.live):
            while waiting and None in self.live:
                self.admit(waiting.pop())
            yield from self.advance()


def tool_call(text):
    """Tool calls are JSON objects with a name and plain arguments."""
    call = json.loads(text)
    if not isinstance(call, dict) or set(call) != {"name", "arguments"} or not isinstance(call["arguments"], dict):
        raise ValueError("malformed tool call")
    return call["name"], call["arguments"]
