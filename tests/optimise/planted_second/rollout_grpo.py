"""Roll-outs for group-relative policy optimisation."""
from typing import Callable, Dict, List, NamedTuple

import torch
from torch.func import functional_call


class Group(NamedTuple):
    prompt: torch.Tensor
    completions: torch.Tensor
    logprobs: torch.Tensor
    advantages: torch.Tensor


class RolloutWorker:
    def __init__(self, skeleton, master: Dict[str, torch.Tensor], reward_fn: Callable, group_size=8, horizon=256, eos=2):
        self.skeleton = skeleton.eval()
        self.master = master          # fp32, owned by the optimizer
        self.reward_fn = reward_fn
        self.group_size = group_size
        self.horizon = horizon
        self.eos = eos

    def _forward(self, ids, cache):
        weights = {name: w.to(torch.bfloat16) for name, w in self.master.items()}
        return functional_call(self.skeleton, weights, (ids,), {"cache": cache})

    @staticmethod
    def _sample(logits):
        logp = torch.log_softmax(logits, dim=-1)
        action = torch.multinomial(logp.exp(), 1)
        return action, logp.gather(-1, action)

    @torch.no_grad()
    def rollout(self, prompt: torch.Tensor) -> Group:
        cache = self.skeleton.new_cache(1, prompt.size(1) + self.horizon)
        logits = self._forward(prompt, cache)[:, -1].float()
        action, logp = self._sample(logits)

        cache = cache.fork(self.group_size)
        action = action.expand(self.group_size, -1)
        logp = logp.expand(self.group_size, -1)
        actions, logps = [action], [logp]
        alive = action != self.eos
        while len(actions) < self.horizon:
            logits = self._forward(action, cache)[:, -1].float()
            action, logp = self._sample(logits)
            action = torch.where(alive, action, self.eos)
            actions.append(action)
            logps.append(logp * alive)
            alive = alive & (action != self.eos)

        completions = torch.cat(actions, 1)
        rewards = self.reward_fn(prompt, completions)
        adv = (rewards - rewards.mean()) / (rewards.std() + 1e-6)
        return Group(prompt, completions, torch.cat(logps, 1), adv)

    def collect(self, prompts: List[torch.Tensor]) -> List[Group]:
        return [self.rollout(p) for p in prompts]
