"""Roll-outs with a bf16 copy of the policy which is refreshed once per iteration."""
import re
from typing import List

import torch

ANSWER = re.compile(r"<answer>\s*(-?\d+)\s*</answer>")


class Worker:
    def __init__(self, actor, rank: int, seed: int, eos: int, group: int = 8, horizon: int = 512):
        self.actor = actor.to(torch.bfloat16).eval()
        self.device = next(actor.parameters()).device
        self.rng = torch.Generator(device=self.device).manual_seed(seed + rank)
        self.eos, self.group, self.horizon = eos, group, horizon

    @torch.no_grad()
    def refresh(self, master) -> None:
        for mine, theirs in zip(self.actor.parameters(), master.parameters()):
            mine.copy_(theirs)

    @torch.inference_mode()
    def play(self, prompt: torch.Tensor) -> torch.Tensor:
        cache = self.actor.new_cache(self.group, prompt.size(1) + self.horizon)
        logits = self.actor(prompt.expand(self.group, -1), cache)[:, -1]
        actions: List[torch.Tensor] = []
        alive = torch.ones(self.group, 1, dtype=torch.bool, device=self.device)
        for _ in range(self.horizon):
            action = torch.multinomial(logits.float().softmax(-1), 1, generator=self.rng)
            action = torch.where(alive, action, self.eos)
            alive &= action != self.eos
            actions.append(action)
            logits = self.actor(action, cache)[:, -1]
        return torch.cat(actions, dim=1)


def reward(text: str, target: int) -> float:
    hit = ANSWER.search(text)
    return float(hit is not None and int(hit.group(1)) == target)
