"""Group rollouts for RL: one prefill, then an independent draw for each sample of the group."""
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicCache


@dataclass
class RolloutConfig:
    group: int = 32
    max_new: int = 256
    temperature: float = 1.0
    look_every: int = 32
    seed: int = 0


@dataclass
class Rollout:
    prompt: torch.Tensor   # (T,)
    tokens: torch.Tensor   # (group, n)
    mask: torch.Tensor     # (group, n), True up to and including the first EOS
    logp: torch.Tensor     # (group, n) of the sampling distribution


class Roller:
    def __init__(self, policy: PreTrainedModel, tok: PreTrainedTokenizerBase, cfg: RolloutConfig, rank: int = 0):
        self.policy, self.tok, self.cfg = policy, tok, cfg
        self.dev = policy.device
        self.limit = policy.config.max_position_embeddings
        self.fwd = torch.compile(policy, dynamic=True)
        # own stream of random numbers for each rank, seeded once
        self.gen = torch.Generator(self.dev).manual_seed(cfg.seed * 10_007 + rank)

    def state_dict(self):
        return {"generator": self.gen.get_state()}

    def load_state_dict(self, s):
        self.gen.set_state(s["generator"])

    def draw(self, logits, rows):
        """`rows` independent samples.  `logits` has one row (after the prefill) or `rows` rows."""
        logp = torch.log_softmax(logits / self.cfg.temperature, dim=-1)
        if logits.size(0) == 1:
            pick = torch.multinomial(logp.exp(), rows, replacement=True, generator=self.gen).view(rows, 1)
            return pick, logp.expand(rows, -1).gather(1, pick)
        pick = torch.multinomial(logp.exp(), 1, generator=self.gen)
        return pick, logp.gather(1, pick)

    @torch.no_grad()
    def __call__(self, prompt: torch.Tensor) -> Rollout:
        c = self.cfg
        if prompt.numel() + c.max_new > self.limit:
            raise ValueError(f"{prompt.numel()} + {c.max_new} tokens exceed the context of {self.limit}")
        was_training = self.policy.training
        self.policy.eval()
        try:
            return self._roll(prompt)
        finally:
            self.policy.train(was_training)

    def _roll(self, prompt):
        c, eos = self.cfg, self.tok.eos_token_id
        cache = DynamicCache()
        out = self.fwd(input_ids=prompt[None], past_key_values=cache, use_cache=True)
        tok, lp = self.draw(out.logits[:, -1], c.group)
        cache.batch_repeat_interleave(c.group)
        done = torch.zeros(c.group, 1, dtype=torch.bool, device=self.dev)
        toks, lps, masks = [], [], []
        for i in range(c.max_new):
            tok = tok.masked_fill(done, eos)
            toks.append(tok)
            lps.append(lp)
            masks.append(~done)
            done = done | (tok == eos)
            if i + 1 == c.max_new or i % c.look_every == c.look_every - 1 and bool(done.all()):
                break
            out = self.fwd(input_ids=tok, past_key_values=cache, use_cache=True)
            tok, lp = self.draw(out.logits[:, -1], c.group)
        return Rollout(prompt, torch.cat(toks, 1), torch.cat(masks, 1), torch.cat(lps, 1))


def group_advantage(rewards: torch.Tensor, eps: float = 1e-4) -> torch.Tensor:
    return (rewards - rewards.mean()) / (rewards.std() + eps)
