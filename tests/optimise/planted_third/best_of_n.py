"""Best-of-n decoding scored by mean log-probability."""
from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass
class SamplingSettings:
    n: int = 16
    steps: int = 128
    temperature: float = 1.0
    seed: int = 2024
    device: str = "cuda"

    @property
    def noise(self):
        g = torch.Generator(device=self.device)
        g.manual_seed(self.seed)
        return g


class BestOfN:
    def __init__(self, model, tokenizer, settings=None):
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.s = settings or SamplingSettings()
        self.side = torch.cuda.Stream()

    def _step(self, logits):
        logp = F.log_softmax(logits / self.s.temperature, dim=-1)
        tok = torch.multinomial(logp.exp(), 1, generator=self.s.noise)
        return tok, logp.gather(1, tok)

    @torch.inference_mode()
    def _rollout(self, prompt):
        need = prompt.shape[1] + self.s.steps
        if need > self.model.context:
            raise ValueError(f"{need} positions needed, the model has {self.model.context}")
        kv = self.model.make_cache(self.s.n, need)
        logits = self.model(prompt.expand(self.s.n, -1), cache=kv)[:, -1]
        toks, scores = [], []
        for t in range(self.s.steps):
            tok, score = self._step(logits)
            toks.append(tok)
            scores.append(score)
            if t + 1 < self.s.steps:
                logits = self.model(tok, cache=kv)[:, -1]
        return torch.cat(toks, 1), torch.cat(scores, 1)

    def _score(self, toks, logp):
        ended = (toks == self.tokenizer.eos_token_id).cumsum(1)
        alive = (ended == 0) | ((ended == 1) & (toks == self.tokenizer.eos_token_id))
        return (logp * alive).sum(1) / alive.sum(1), alive.sum(1)

    def _to_host(self, *tensors):
        self.side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.side):
            host = [t.to("cpu", non_blocking=True) for t in tensors]
        return [h.numpy() for h in host]

    def __call__(self, text):
        ids = self.tokenizer(text, return_tensors="pt").input_ids.to(self.s.device)
        toks, logp = self._rollout(ids)
        score, length = self._score(toks, logp)
        toks, score, length = self._to_host(toks, score, length)
        best = int(score.argmax())
        return self.tokenizer.decode(toks[best][:length[best]]), float(score[best])


def answer_all(model, tokenizer, questions, **overrides):
    chooser = BestOfN(model, tokenizer, SamplingSettings(**overrides))
    return [chooser(q) for q in questions]
