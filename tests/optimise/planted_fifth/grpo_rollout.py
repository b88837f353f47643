"""Rollout worker for GRPO style training; writes groups of completions with rewards."""
import json
import random
import re
from dataclasses import dataclass

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache


@dataclass
class RolloutConfig:
    model: str = "Qwen/Qwen2.5-0.5B-Instruct"
    prompts: str = "data/gsm8k_train.jsonl"
    out: str = "rollouts.jsonl"
    steps: int = 250
    prompts_per_step: int = 8
    group_size: int = 16
    max_new_tokens: int = 300
    temperature: float = 1.0
    seed: int = 1234


def reward(text, answer):
    found = re.findall(r"####\s*(-?[\d,\.]+)", text)
    if not found:
        return 0.0
    return float(found[-1].replace(",", "").rstrip(".") == answer)


class RolloutWorker:
    def __init__(self, cfg):
        self.cfg = cfg
        self.tok = AutoTokenizer.from_pretrained(cfg.model)
        self.model = AutoModelForCausalLM.from_pretrained(cfg.model, torch_dtype=torch.bfloat16).cuda()
        self.model.eval()

    def _draw(self, logits):
        probs = torch.softmax(logits / self.cfg.temperature, dim=-1)
        return torch.multinomial(probs, num_samples=1)

    def _prefill(self, prompt):
        ids = self.tok.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, return_tensors="pt"
        ).cuda()
        out = self.model(ids, past_key_values=DynamicCache(), use_cache=True)
        return self._draw(out.logits[:, -1]), out.past_key_values

    def _fan_out(self, token, cache):
        cache.batch_repeat_interleave(self.cfg.group_size)
        return token.expand(self.cfg.group_size, 1), cache

    @torch.inference_mode()
    def sample_group(self, prompt):
        token, cache = self._fan_out(*self._prefill(prompt))
        cols = [token]
        for _ in range(self.cfg.max_new_tokens - 1):
            out = self.model(token, past_key_values=cache, use_cache=True)
            token = self._draw(out.logits[:, -1])
            cols.append(token)
        rows = torch.cat(cols, dim=1).tolist()
        eos = self.tok.eos_token_id
        rows = [r[: r.index(eos)] if eos in r else r for r in rows]
        return self.tok.batch_decode(rows)

    def _seed(self):
        random.seed(self.cfg.seed)
        torch.manual_seed(self.cfg.seed)
        torch.cuda.manual_seed_all(self.cfg.seed)

    def collect(self, batch):
        self._seed()
        groups = []
        for ex in batch:
            texts = self.sample_group(ex["question"])
            rewards = [reward(t, ex["answer"]) for t in texts]
            mean = sum(rewards) / len(rewards)
            groups.append({
                "question": ex["question"],
                "completions": texts,
                "rewards": rewards,
                "advantages": [r - mean for r in rewards],
            })
        return groups


def main():
    cfg = RolloutConfig()
    worker = RolloutWorker(cfg)
    with open(cfg.prompts) as f:
        prompts = [json.loads(line) for line in f]
    n = cfg.prompts_per_step
    with open(cfg.out, "a") as sink:
        for step in range(cfg.steps):
            start = step * n % (len(prompts) - n)
            groups = worker.collect(prompts[start : start + n])
            for g in groups:
                sink.write(json.dumps({"step": step, **g}) + "\n")
            acc = sum(sum(g["rewards"]) for g in groups) / (n * cfg.group_size)
            print(f"step {step} mean reward {acc:.3f}")


if __name__ == "__main__":
    main()
