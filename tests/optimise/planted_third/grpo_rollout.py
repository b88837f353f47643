"""Group rollouts for GRPO on short arithmetic prompts."""
from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass
class RolloutConfig:
    group: int = 8
    max_new: int = 256
    temperature: float = 0.9
    top_p: float = 0.95
    seed: int = 1234
    eos_id: int = 2
    pad_id: int = 0


class GroupRollout:
    def __init__(self, policy, cfg: RolloutConfig, device):
        self.policy = policy
        self.cfg = cfg
        self.device = torch.device(device)
        self.gen = torch.Generator(device=self.device)

    def _probs(self, logits):
        probs = F.softmax(logits / self.cfg.temperature, dim=-1)
        ordered, order = probs.sort(dim=-1, descending=True)
        outside = ordered.cumsum(-1) - ordered > self.cfg.top_p
        ordered = ordered.masked_fill(outside, 0.0)
        kept = torch.zeros_like(probs).scatter(-1, order, ordered)
        return kept / kept.sum(-1, keepdim=True)

    @torch.no_grad()
    def collect(self, prompt):
        """prompt: LongTensor [T]. Returns tokens [group, max_new] and a loss mask."""
        cfg = self.cfg
        total = prompt.numel() + cfg.max_new
        if total > self.policy.max_positions:
            raise ValueError(f"{total} positions asked for, {self.policy.max_positions} there")

        was_training = self.policy.training
        self.policy.eval()
        self.gen.manual_seed(cfg.seed)

        cache = self.policy.new_cache(rows=1, length=total)
        logits = self.policy(prompt[None], cache=cache)[:, -1]
        cache.expand_rows(cfg.group)

        first = torch.multinomial(self._probs(logits), 1, generator=self.gen)
        tok = first.expand(cfg.group, 1).contiguous()

        tokens = torch.full((cfg.group, cfg.max_new), cfg.pad_id, device=self.device)
        mask = torch.zeros_like(tokens, dtype=torch.bool)
        done = torch.zeros(cfg.group, 1, dtype=torch.bool, device=self.device)
        for t in range(cfg.max_new):
            tokens[:, t:t + 1] = torch.where(done, cfg.pad_id, tok)
            mask[:, t:t + 1] = ~done
            done = done | (tok == cfg.eos_id)
            if t + 1 == cfg.max_new:
                break
            logits = self.policy(tok, cache=cache)[:, -1]
            tok = torch.multinomial(self._probs(logits), 1, generator=self.gen)

        self.policy.train(was_training)
        return tokens, mask


def group_advantages(rewards, eps=1e-4):
    """rewards: [prompts, group] -> advantages normalised inside each group."""
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    return centred / (rewards.std(dim=1, keepdim=True) + eps)


def rollout_batch(sampler, prompts, reward_fn):
    batches = []
    for prompt in prompts:
        tokens, mask = sampler.collect(prompt.to(sampler.device))
        batches.append((tokens, mask, reward_fn(prompt, tokens, mask)))
    tokens, masks, rewards = zip(*batches)
    adv = group_advantages(torch.stack(rewards))
    return torch.stack(tokens), torch.stack(masks), adv
