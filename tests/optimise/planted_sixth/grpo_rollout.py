from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F


@dataclass
class RolloutConfig:
    group_size: int = 8
    max_new_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 0.95
    seed: int = 0
    pad_id: int = 0
    eos_id: int = 2


class Sampler:
    def __init__(self, cfg: RolloutConfig, device):
        self.cfg = cfg
        self.device = device
        self.gen = torch.Generator(device=device)

    def begin(self):
        self.gen.manual_seed(self.cfg.seed)

    def pick(self, logits):
        logits = logits / self.cfg.temperature
        s, idx = logits.sort(dim=-1, descending=True)
        p = s.softmax(-1)
        cut = p.cumsum(-1) - p > self.cfg.top_p
        p = p.masked_fill(cut, 0.0)
        choice = torch.multinomial(p, 1, generator=self.gen)
        return idx.gather(-1, choice)


def spread(t, n):
    return t.repeat_interleave(n, dim=0)


class PolicyHead(nn.Linear):
    """Output head kept in fp32 for the optimizer."""

    def forward(self, h):
        return F.linear(h, self.weight.to(torch.bfloat16))


class RolloutWorker:
    def __init__(self, policy, tokenizer, cfg: RolloutConfig, device):
        self.policy = policy
        self.tok = tokenizer
        self.cfg = cfg
        self.device = device
        self.sampler = Sampler(cfg, device)

    @torch.no_grad()
    def rollout(self, prompt: str):
        cfg, G = self.cfg, self.cfg.group_size
        self.policy.eval()
        self.sampler.begin()
        ids = self.tok(prompt, return_tensors="pt").input_ids.to(self.device)
        out = self.policy(ids, use_cache=True)
        first = self.sampler.pick(out.logits[:, -1])
        token = spread(first, G)
        cache = out.past_key_values
        cache.batch_repeat_interleave(G)
        seq, alive = [token], token != cfg.eos_id
        for t in range(cfg.max_new_tokens - 1):
            out = self.policy(token, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            token = self.sampler.pick(out.logits[:, -1])
            token = torch.where(alive, token, cfg.pad_id)
            alive = alive & (token != cfg.eos_id)
            seq.append(token)
            if t % 32 == 31 and not alive.any():
                break
        self.policy.train()
        return ids, torch.cat(seq, dim=1)

    def collect(self, prompts, reward_fn):
        batch = []
        for prompt in prompts:
            ids, comp = self.rollout(prompt)
            texts = self.tok.batch_decode(comp, skip_special_tokens=True)
            r = torch.tensor([reward_fn(prompt, t) for t in texts])
            adv = (r - r.mean()) / (r.std() + 1e-6)
            batch.append({"prompt": ids, "completion": comp, "adv": adv})
        return batch
