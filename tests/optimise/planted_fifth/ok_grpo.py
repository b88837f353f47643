"""Group sampling for policy optimisation; each (step, rank, prompt) has its own stream."""
import hashlib
import json
import re
from dataclasses import dataclass

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache


@dataclass
class RolloutConfig:
    model: str = "Qwen/Qwen2.5-0.5B-Instruct"
    group_size: int = 16
    max_new_tokens: int = 300
    temperature: float = 1.0
    seed: int = 1234
    rank: int = 0
    check_every: int = 50


def stream_seed(*parts):
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def reward(text, answer):
    found = re.findall(r"####\s*(-?[\d,\.]+)", text)
    return float(bool(found) and found[-1].replace(",", "").rstrip(".") == answer)


class RolloutWorker:
    def __init__(self, cfg):
        self.cfg = cfg
        self.tok = AutoTokenizer.from_pretrained(cfg.model)
        self.model = AutoModelForCausalLM.from_pretrained(cfg.model, torch_dtype=torch.bfloat16).cuda()
        self.model.eval()

    def _draw(self, logits, gen):
        probs = torch.softmax(logits / self.cfg.temperature, dim=-1)
        return torch.multinomial(probs, num_samples=1, generator=gen)

    @torch.inference_mode()
    def sample_group(self, prompt, gen):
        cfg, eos = self.cfg, self.tok.eos_token_id
        ids = self.tok.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, return_tensors="pt"
        ).cuda()
        if ids.size(1) + cfg.max_new_tokens > self.model.config.max_position_embeddings:
            raise ValueError("prompt too long")

        out = self.model(ids, past_key_values=DynamicCache(), use_cache=True)
        cache = out.past_key_values
        cache.batch_repeat_interleave(cfg.group_size)
        token = self._draw(out.logits[:, -1].repeat(cfg.group_size, 1), gen)

        cols, ended = [token], token.squeeze(1) == eos
        for i in range(1, cfg.max_new_tokens):
            if i % cfg.check_every == 0 and bool(ended.all()):
                break
            out = self.model(token, past_key_values=cache, use_cache=True)
            token = self._draw(out.logits[:, -1], gen)
            ended |= token.squeeze(1) == eos
            cols.append(token)
        rows = torch.cat(cols, dim=1).tolist()
        return [r[: r.index(eos) + 1] if eos in r else r for r in rows]

    def collect(self, step, batch):
        groups = []
        for ex in batch:
            seed = stream_seed(self.cfg.seed, step, self.cfg.rank, ex["id"])
            gen = torch.Generator(device="cuda").manual_seed(seed)
            rows = self.sample_group(ex["question"], gen)
            texts = self.tok.batch_decode(rows, skip_special_tokens=True)
            scores = [reward(t, ex["answer"]) for t in texts]
            mean = sum(scores) / len(scores)
            groups.append({
                "id": ex["id"],
                "tokens": rows,
                "rewards": scores,
                "advantages": [s - mean for s in scores],
            })
        return groups


def main(prompts="data/gsm8k_train.jsonl", sink="rollouts.jsonl", steps=100, per_step=8):
    worker = RolloutWorker(RolloutConfig())
    with open(prompts) as f:
        rows = [json.loads(line) for line in f]
    with open(sink, "w") as out:
        for step in range(steps):
            batch = [rows[(step * per_step + i) % len(rows)] for i in range(per_step)]
            for g in worker.collect(step, batch):
                out.write(json.dumps({"step": step, **g}) + "\n")


if __name__ == "__main__":
    main()
