"""Clipped policy-gradient training of a language model against a reward model."""
import torch
import torch.nn.functional as F


class Meter:
    """Running mean of a scalar."""

    def __init__(self):
        self.total, self.count = 0.0, 0

    def update(self, value):
        self.total += float(value)
        self.count += 1

    def mean(self):
        return self.total / max(self.count, 1)


class PolicyTrainer:
    def __init__(self, policy, reward_fn, optimizer, cfg):
        self.policy = policy.train()
        self.train_forward = torch.compile(policy)
        self.reward_fn = reward_fn
        self.optimizer = optimizer
        self.cfg = cfg
        self.loss_meter = Meter()
        self.clip_meter = Meter()

    def _logprobs(self, forward, tokens):
        logits = forward(tokens[:, :-1])[:, self.cfg.prompt_len - 1 :]
        target = tokens[:, self.cfg.prompt_len :]
        nll = F.cross_entropy(logits.transpose(1, 2), target, reduction="none")
        return -nll

    def _draw(self, logits):
        probs = torch.softmax(logits[0] / self.cfg.temperature, dim=-1)
        return torch.multinomial(probs, 1)

    @torch.no_grad()
    def rollout(self, prompts):
        """prompts: (B, prompt_len), all of the same length."""
        self.policy.eval()
        B, P = prompts.shape
        total = P + self.cfg.new_tokens
        cache = self.policy.make_cache(B, total)
        tokens = prompts.new_zeros(B, total)
        tokens[:, :P] = prompts
        logits = self.policy(prompts, cache=cache)[:, -1]
        for t in range(P, total):
            tokens[:, t] = self._draw(logits)
            if t + 1 < total:
                logits = self.policy(tokens[:, t : t + 1], cache=cache)[:, -1]
        old = self._logprobs(self.policy, tokens)
        rewards = self.reward_fn(tokens)
        return tokens, old, rewards

    def _loss(self, tokens, old, advantage):
        new = self._logprobs(self.train_forward, tokens)
        ratio = (new - old).exp()
        clipped = ratio.clamp(1 - self.cfg.clip, 1 + self.cfg.clip)
        adv = advantage.unsqueeze(1)
        loss = -torch.minimum(ratio * adv, clipped * adv).mean()
        return loss, (ratio != clipped).float().mean()

    def update(self, tokens, old, rewards):
        advantage = (rewards - rewards.mean()) / (rewards.std() + 1e-6)
        size = self.cfg.minibatch
        for _ in range(self.cfg.ppo_epochs):
            order = torch.randperm(tokens.size(0), device=tokens.device)  # B is a multiple of minibatch
            for idx in order.view(-1, size):
                loss, clip_frac = self._loss(tokens[idx], old[idx], advantage[idx])
                self.optimizer.zero_grad(set_to_none=True)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.cfg.max_norm)
                self.optimizer.step()
                self.loss_meter.update(loss)
                self.clip_meter.update(clip_frac)

    def fit(self, prompt_batches):
        for i, prompts in enumerate(prompt_batches):
            tokens, old, rewards = self.rollout(prompts)
            self.update(tokens, old, rewards)
            if i % 10 == 0:
                print(f"{i}: loss {self.loss_meter.mean():.4f} clipped {self.clip_meter.mean():.3f}")
