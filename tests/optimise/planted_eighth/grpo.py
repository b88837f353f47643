"""GRPO on arithmetic word problems.  Single node, one policy, one frozen reference."""
import copy
import re

import torch
import torch.nn.functional as F

from lm import Transformer, Tokenizer
from problems import ProblemStream

GROUP = 16
PROMPT_LEN, NEW = 128, 256
CLIP, BETA = 0.2, 0.02


class TokenDrawer:
    def __init__(self, temperature):
        self.temperature = temperature

    def uniform_like(self, logits):
        return torch.rand(1, logits.size(-1), device=logits.device).clamp_min(1e-9)

    def __call__(self, logits):
        gumbel = -torch.log(-torch.log(self.uniform_like(logits)))
        return (logits / self.temperature + gumbel).argmax(-1, keepdim=True)


@torch.no_grad()
def rollout(policy, step_fn, prompts, draw):
    """prompts: (N, PROMPT_LEN), all the same length -> (N, PROMPT_LEN + NEW)."""
    policy.eval()
    cache = policy.new_cache(prompts.size(0), PROMPT_LEN + NEW)
    out = [prompts]
    nxt = draw(policy(prompts, cache=cache)[:, -1])
    for _ in range(NEW - 1):
        out.append(nxt)
        nxt = draw(step_fn(nxt, cache)[:, -1])
    out.append(nxt)
    policy.train()
    return torch.cat(out, 1)


def answer_reward(text, target):
    boxed = re.findall(r"\\boxed\{(.+?)\}", text)
    if not boxed:
        return 0.0
    try:
        value = eval(boxed[-1].replace("^", "**"))
    except Exception:
        return 0.1
    return 1.0 if abs(value - target) < 1e-6 else 0.1


def completion_logps(net, seqs):
    logits = net(seqs[:, :-1])[:, PROMPT_LEN - 1:]
    tgt = seqs[:, PROMPT_LEN:]
    return -F.cross_entropy(logits.flatten(0, 1), tgt.flatten(), reduction="none").view_as(tgt)


def completion_mask(comp, eos):
    after = (comp == eos).cumsum(1)
    return (after - (comp == eos).long() == 0).float()


def main():
    tok = Tokenizer.load("tok.json")
    policy = Transformer.from_dir("sft").cuda()
    ref = copy.deepcopy(policy).eval()
    # the cache keeps its position in a device tensor, so one graph serves all steps
    step_fn = torch.compile(lambda t, c: policy(t, cache=c))
    logps = torch.compile(completion_logps)
    opt = torch.optim.AdamW(policy.parameters(), lr=1e-6, fused=True)
    draw = TokenDrawer(1.0)

    for it, (prompts, targets) in enumerate(ProblemStream(tok, PROMPT_LEN, per_step=32)):
        seqs = rollout(policy, step_fn, prompts.cuda().repeat_interleave(GROUP, 0), draw)
        texts = tok.decode_batch(seqs[:, PROMPT_LEN:].cpu())
        rew = torch.tensor([answer_reward(t, targets[i // GROUP]) for i, t in enumerate(texts)]).cuda()
        rew = rew.view(-1, GROUP)
        adv = ((rew - rew.mean(1, keepdim=True)) / (rew.std(1, keepdim=True) + 1e-4)).flatten()[:, None]
        mask = completion_mask(seqs[:, PROMPT_LEN:], tok.eos)
        with torch.no_grad():
            old = logps(policy, seqs)

        for _ in range(2):
            new = logps(policy, seqs)
            base = logps(ref, seqs)
            ratio = (new - old).exp()
            surr = torch.min(ratio * adv, ratio.clamp(1 - CLIP, 1 + CLIP) * adv)
            kl = (base - new).exp() - (base - new) - 1
            loss = -((surr - BETA * kl) * mask).sum() / mask.sum()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
            opt.step()
            opt.zero_grad(set_to_none=True)
        if it % 50 == 0:
            print(it, "reward", rew.mean().item())


if __name__ == "__main__":
    main()
