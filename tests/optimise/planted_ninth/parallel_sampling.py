"""Best-of-n sampling with mean log-probability reranking.

Usage:
    python parallel_sampling.py --model Qwen/Qwen2.5-1.5B --n 16 "Once upon"
"""
from __future__ import annotations

import argparse
from dataclasses import dataclass

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


@dataclass
class Candidate:
    text: str
    score: float


class BestOfN:
    def __init__(self, name: str, n: int = 8, temperature: float = 0.8,
                 top_p: float = 0.95, device: str = "cuda"):
        self.n = n
        self.temperature = temperature
        self.top_p = top_p
        self.device = device
        self.tok = AutoTokenizer.from_pretrained(name)
        self.lm = AutoModelForCausalLM.from_pretrained(name, torch_dtype=torch.bfloat16)
        self.lm.to(device).eval()

    def _nucleus(self, logits: torch.Tensor) -> torch.Tensor:
        probs = torch.softmax(logits.float() / self.temperature, dim=-1)
        sorted_p, order = probs.sort(dim=-1, descending=True)
        before = sorted_p.cumsum(-1) - sorted_p
        sorted_p = sorted_p.masked_fill(before > self.top_p, 0.0)
        out = torch.zeros_like(probs).scatter_(-1, order, sorted_p)
        return out / out.sum(-1, keepdim=True)

    @torch.inference_mode()
    def sample(self, prompt: str, max_new_tokens: int = 256) -> list[Candidate]:
        enc = self.tok(prompt, return_tensors="pt").to(self.device)
        out = self.lm(**enc, use_cache=True, logits_to_keep=1)
        cache = out.past_key_values
        cache.batch_repeat_interleave(self.n)

        probs = self._nucleus(out.logits[:, -1])
        tok = torch.multinomial(probs, num_samples=1)
        total = probs.gather(-1, tok).log()
        tok, total = (t.repeat(self.n, 1) for t in (tok, total))

        eos = self.tok.eos_token_id
        alive = tok.ne(eos)
        count = torch.ones_like(total)
        pieces = [tok]
        while alive.any() and len(pieces) < max_new_tokens:
            out = self.lm(input_ids=tok, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            probs = self._nucleus(out.logits[:, -1])
            nxt = torch.multinomial(probs, num_samples=1)
            lp = probs.gather(-1, nxt).log()
            total = total + torch.where(alive, lp, torch.zeros_like(lp))
            count = count + alive.to(count.dtype)
            tok = torch.where(alive, nxt, torch.full_like(nxt, eos))
            pieces.append(tok)
            alive = alive & tok.ne(eos)

        ids = torch.cat(pieces, dim=1).cpu()
        scores = (total / count).squeeze(1).cpu()
        texts = self.tok.batch_decode(ids, skip_special_tokens=True)
        ranked = [Candidate(t, float(s)) for t, s in zip(texts, scores)]
        ranked.sort(key=lambda c: c.score, reverse=True)
        return ranked


def main() -> None:
    ap = argparse.ArgumentParser()
    ap.add_argument("prompt")
    ap.add_argument("--model", default="Qwen/Qwen2.5-1.5B")
    ap.add_argument("--n", type=int, default=8)
    ap.add_argument("--max-new-tokens", type=int, default=256)
    a = ap.parse_args()
    engine = BestOfN(a.model, n=a.n)
    for cand in engine.sample(a.prompt, a.max_new_tokens):
        print(f"{cand.score:8.3f}  {cand.text!r}")


if __name__ == "__main__":
    main()
