"""GRPO on short programming tasks with unit-test rewards (single GPU)."""
from __future__ import annotations

import json
import os
import random
import re
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.cache_utils import DynamicCache


@dataclass
class GRPOConfig:
    model: str = "Qwen/Qwen2.5-Coder-0.5B-Instruct"
    tasks: str = "tasks.jsonl"
    out: str = "runs/grpo/policy.pt"
    group: int = 64
    max_new: int = 384
    micro: int = 16  # sequences per backward pass; a group is one optimizer step
    steps: int = 800
    lr: float = 1e-6
    clip: float = 0.2
    temperature: float = 1.0
    seed: int = 5


FENCE = re.compile(r"```(?:python)?\n(.*?)```", re.S)


def extract(text: str) -> str:
    m = FENCE.search(text)
    return m.group(1) if m else text


def passes(program: str, tests: list[str]) -> float:
    scope: dict = {}
    ok = 0
    try:
        exec(program, scope)
        for name, args, want in tests:
            ok += scope[name](*args) == want
    except Exception:
        return 0.0
    return ok / len(tests)


def fan_out(tok: torch.Tensor, n: int) -> torch.Tensor:
    return tok.repeat_interleave(n, dim=0)


class GRPO:
    def __init__(self, cfg: GRPOConfig):
        self.cfg = cfg
        self.dev = torch.device("cuda")
        self.tok = AutoTokenizer.from_pretrained(cfg.model)
        self.policy = AutoModelForCausalLM.from_pretrained(cfg.model, torch_dtype=torch.bfloat16).to(self.dev)
        self.fwd = torch.compile(self.policy, dynamic=True)
        self.opt = torch.optim.AdamW(self.policy.parameters(), lr=cfg.lr, weight_decay=0.0)
        self.gen = torch.Generator(self.dev).manual_seed(cfg.seed)

    def draw(self, logits):
        p = torch.softmax(logits / self.cfg.temperature, dim=-1)
        return torch.multinomial(p, 1, generator=self.gen)

    @torch.no_grad()
    def rollout(self, prompt):
        c = self.cfg
        self.policy.eval()
        cache = DynamicCache()
        out = self.fwd(input_ids=prompt, past_key_values=cache, use_cache=True)
        cur = fan_out(self.draw(out.logits[:, -1]), c.group)
        cache.batch_repeat_interleave(c.group)
        done = torch.zeros(c.group, 1, dtype=torch.bool, device=self.dev)
        toks = [cur]
        for t in range(c.max_new - 1):
            done = done | (cur == self.tok.eos_token_id)
            out = self.fwd(input_ids=cur, past_key_values=cache, use_cache=True)
            cur = self.draw(out.logits[:, -1]).masked_fill(done, self.tok.eos_token_id)
            toks.append(cur)
        self.policy.train()
        return torch.cat(toks, dim=1)

    def token_logp(self, prompt, comp):
        full = torch.cat([prompt.expand(comp.size(0), -1), comp], dim=1)
        logits = self.fwd(input_ids=full[:, :-1], use_cache=False).logits[:, prompt.size(1) - 1:]
        return -F.cross_entropy(logits.transpose(1, 2), comp, reduction="none")

    def descend(self, loss):
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.policy.parameters(), 1.0)
        self.opt.step()
        self.opt.zero_grad(set_to_none=True)

    def update(self, prompt, comp, adv):
        is_eos = comp == self.tok.eos_token_id
        mask = (is_eos.cumsum(1) - is_eos.long()) == 0
        n_tok = mask.sum()
        with torch.no_grad():
            old = torch.cat([self.token_logp(prompt, c) for c in comp.split(self.cfg.micro)])
        for lo in range(0, comp.size(0), self.cfg.micro):
            sl = slice(lo, lo + self.cfg.micro)
            ratio = (self.token_logp(prompt, comp[sl]) - old[sl]).exp()
            a = adv[sl, None]
            obj = torch.minimum(ratio * a, ratio.clamp(1 - self.cfg.clip, 1 + self.cfg.clip) * a)
            self.descend(-(obj * mask[sl]).sum() / n_tok)

    def train(self):
        c = self.cfg
        with open(c.tasks) as f:
            tasks = [json.loads(l) for l in f]
        random.Random(c.seed).shuffle(tasks)
        for step in range(c.steps):
            task = tasks[step % len(tasks)]
            prompt = self.tok.apply_chat_template([{"role": "user", "content": task["prompt"]}],
                                                  add_generation_prompt=True, return_tensors="pt").to(self.dev)
            comp = self.rollout(prompt)
            texts = self.tok.batch_decode(comp, skip_special_tokens=True)
            rewards = torch.tensor([passes(extract(t), task["tests"]) for t in texts])
            adv = ((rewards - rewards.mean()) / (rewards.std() + 1e-4)).to(self.dev)
            self.update(prompt, comp, adv)
            if step % 10 == 0:
                print(f"[{step}] reward {rewards.mean().item():.3f}")
        os.makedirs(os.path.dirname(c.out), exist_ok=True)
        torch.save(self.policy.state_dict(), c.out + ".part")
        os.replace(c.out + ".part", c.out)


if __name__ == "__main__":
    GRPO(GRPOConfig()).train()
